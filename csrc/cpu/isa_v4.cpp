#if defined(__x86_64__)
#define ADVCORE_NS advcore::v4
#define ADVCORE_ISA_NAME "v4"
#define ADVCORE_LANES 16
#include "cpu/isa_body.h"
#endif

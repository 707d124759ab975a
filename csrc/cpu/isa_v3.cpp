#if defined(__x86_64__)
#define ADVCORE_NS advcore::v3
#define ADVCORE_ISA_NAME "v3"
#define ADVCORE_LANES 8
#include "cpu/isa_body.h"
#endif

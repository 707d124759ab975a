#define ADVCORE_NS advcore::base
#define ADVCORE_ISA_NAME "base"
#define ADVCORE_LANES 4
#include "cpu/isa_body.h"

// The solver compiled here once more, with the flags of the program, to reach its parts.
// ADVCORE_CHECK_LANES: floats in a vector.
#pragma once

#ifndef ADVCORE_CHECK_LANES
#define ADVCORE_CHECK_LANES 4
#endif
#define ADVCORE_NS advcore::parts
#define ADVCORE_ISA_NAME "parts"
#define ADVCORE_LANES ADVCORE_CHECK_LANES

#include "cpu/isa_body.h"

namespace parts = advcore::parts;
using parts::kTrialCs;
using parts::kTrialLanes;
using parts::TrialC;
using Team = parts::SerialTeam;

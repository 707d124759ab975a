// The solver's parts, compiled here for one vector length with the flags of the program.
// ADVCORE_CHECK_LANES: floats in a vector.
#pragma once

#ifndef ADVCORE_CHECK_LANES
#define ADVCORE_CHECK_LANES 4
#endif
#define ADVCORE_NS advcore::parts
#define ADVCORE_LANES ADVCORE_CHECK_LANES

#include "problem.h"

// in the order of their dependences
#include "cpu/lanes.h"

#include "team.h"

#include "box.h"

#include "head.h"

#include "small_solve.h"

#include "history.h"

#include "c_search.h"

#include "polish.h"

#include "advance.h"

namespace parts = advcore::parts;
using parts::kShifts;
using parts::Shifts;
using Team = parts::SerialTeam;

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
// then
#include "team.h"
// then
#include "box.h"
// then
#include "head.h"
// then
#include "small_solve.h"
// then
#include "history.h"
// then
#include "c_search.h"
// then
#include "polish.h"
// then
#include "advance.h"

namespace parts = advcore::parts;
using parts::kShifts;
using parts::Shifts;
using Team = parts::SerialTeam;

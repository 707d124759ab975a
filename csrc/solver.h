// The solver for one team and its lanes, in the order of the dependences. ADVCORE_NS is the
// namespace; the lanes and the teams come before.
#pragma once

#include "box.h"

#include "head.h"

#include "small_solve.h"

#include "history.h"

#include "c_search.h"

#include "bundle.h"

#include "advance.h"

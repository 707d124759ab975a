// The whole solver for one team and its lanes. Before it come the definition of ADVCORE_NS (the
// namespace that everything in this folder is compiled into), the lanes (cpu/lanes.h or
// cuda/lanes.h) and the team; the headers of this folder include everything else that they use.
#pragma once

#include "solver/advance.h"
#include "solver/margin_loss.h"

// Everything that is compiled once per instruction set. Included by isa_*.cpp alone, which define
// ADVCORE_NS (its namespace), ADVCORE_ISA_NAME and ADVCORE_LANES.
#pragma once

#include "cpu/isa.h"
#include "cpu/propagate.h"

#include "solver/team.h"

#include "solver/solver.h"

namespace ADVCORE_NS {

namespace {
void begin_image(const Params& params, Problem& p, int label) {
  begin(SerialTeam{}, params, p, label);
}
void margin_loss_image(const Params& params, State& state, float* logits, float* dlogits) {
  const FlushDenormals flush;
  margin_loss(SerialTeam{}, params, state, logits, dlogits);
}
void advance_image(const Params& params, Problem& p) {
  const FlushDenormals flush;
  advance(SerialTeam{}, params, p);
}
}  // namespace

extern const IsaTable kTable;
const IsaTable kTable = {
    .name = ADVCORE_ISA_NAME,
    .lanes = kLanes,
    .packed_floats = packed_floats,
    .pack = pack,
    .scratch_bytes = scratch_bytes,
    .carve_scratch = carve_scratch,
    .forward = forward,
    .backward = backward,
    .begin = begin_image,
    .margin_loss = margin_loss_image,
    .advance = advance_image,
};

}  // namespace ADVCORE_NS

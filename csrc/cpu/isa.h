// The functions of one instruction set as a table, and the choice at run time.
//
// Every isa_*.cpp compiles the same bodies (isa_body.h) in its own namespace and exports one table.
// All rows are 64-byte aligned and padded to a multiple of kPad floats; kernels write whole lanes.
// A row's result does not depend on the other rows of the call nor on its place among them.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "cpu/packed_network.h"
#include "problem.h"

namespace advcore {

struct IsaTable {
  const char* name;  // base, v3 or v4.
  int lanes;         // Floats in a vector.

  // Packing of a (depth, columns) matrix, element (k, j) at m[k * row_step + j * column_step].
  size_t (*packed_floats)(int depth, int columns);
  void (*pack)(const float* m, int depth, int columns, size_t row_step, size_t column_step,
               float* packed);

  // Scratch for up to max_rows rows: bytes of the memory (64-byte aligned), and its layout.
  size_t (*scratch_bytes)(const PackedNetwork& net, int max_rows);
  Scratch* (*carve_scratch)(const PackedNetwork& net, int max_rows, void* memory);

  // x (rows, inputs) -> logits (rows, classes), padding of the logits filled with kPadLogit.
  // k (rows) or null: the smoothing of each row, 0 or null for the exact network.
  // scales (rows, net.scales) or null: the half-widths at k = 1, read where k > 0.
  // record_scales (rows) or null: where set, the row's scales are written; k must be 0.
  void (*forward)(const PackedNetwork& net, Scratch& scratch, const float* const* x, int rows,
                  const float* k, float* const* scales, const uint8_t* record_scales,
                  float* const* logits);

  // Gradient at x of sum(dlogits * logits) for the rows[0..count) of the last forward.
  // dlogits and dx are indexed by the row of that forward; dx is written whole, padding 0.
  void (*backward)(const PackedNetwork& net, Scratch& scratch, const int* rows, int count,
                   const float* const* dlogits, float* const* dx);

  // The solver on one image: begin puts its first evaluation into p, margin_loss turns
  // logits into p.state.eval and their cotangent dlogits, advance asks for the next evaluation.
  void (*begin)(const Params& params, Problem& p, int label);
  void (*margin_loss)(const Params& params, State& state, float* logits, float* dlogits);
  void (*advance)(const Params& params, Problem& p);
};

// The widest instruction set of this CPU, capped by ADVCORE_ISA = base | v3 | v4. Chosen once;
// throws std::invalid_argument for another value of the variable.
const IsaTable& isa();

// The table of that name; null if this CPU or this build does not have it.
const IsaTable* find_isa(const char* name);

}  // namespace advcore

// The memory of the slots: one arena a pool, divided before the run; nothing is allocated after.
#pragma once

#include <cstring>
#include <memory>
#include <new>

#include "problem.h"

namespace advcore {

struct AlignedFree {
  void operator()(float* p) const { ::operator delete(p, std::align_val_t{64}); }
};
using AlignedFloats = std::unique_ptr<float, AlignedFree>;

// Allocates zeroed memory, aligned to 64 bytes.
inline AlignedFloats allocate(size_t floats) {
  const size_t bytes = sizeof(float) * (floats > 0 ? floats : 1);
  AlignedFloats memory(static_cast<float*>(::operator new(bytes, std::align_val_t{64})));
  std::memset(memory.get(), 0, bytes);
  return memory;
}

// The vectors of a slot: x0, x, trial, two gradients, best and stage_point, which are seven;
// the ring of pairs or cuts; and bounds where each image has its own.
inline int slot_vectors(const Params& params, bool own_bounds) {
  const int ring = 2 * params.history > kMaxCuts ? 2 * params.history : kMaxCuts;
  return 7 + ring + (own_bounds ? 2 : 0);
}

inline size_t slot_floats(const Params& params, bool own_bounds) {
  return (size_t)slot_vectors(params, own_bounds) * params.stride;
}

// Sets the pointers of p into `memory`, slot_floats() zeroed floats aligned to 64 bytes.
inline void carve_slot(const Params& params, bool own_bounds, float* memory, Problem& p) {
  const auto take = [&](int vectors) {
    float* const start = memory;
    memory += (size_t)vectors * params.stride;
    return start;
  };
  p.x0 = take(1);
  p.x = take(1);
  p.trial = take(1);
  p.gradient = take(1);
  p.trial_gradient = take(1);
  p.best = take(1);
  p.stage_point = take(1);
  p.ring = take(slot_vectors(params, false) - 7);
  if (own_bounds) {
    p.lo = take(1);
    p.hi = take(1);
  }
}

// The slots of a pool as kernels outside the engine see them. problems[i].trial and .trial_gradient
// say where the rows of slot i are now, as the solver swaps its vectors: behind `vectors`, by a
// multiple of 16 floats.
struct SlotRows {
  Problem* problems;
  float* vectors;
};

}  // namespace advcore

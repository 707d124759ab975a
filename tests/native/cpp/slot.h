// One image's slot in aligned memory, with bounds of its own, for the checks of the solver.
#pragma once

#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>

#include "dense.h"
#include "problem.h"
#include "workspace.h"

using advcore::Params;
using advcore::Phase;
using advcore::Problem;
using advcore::State;
using advcore::Status;

using Random = std::mt19937;

inline double normal(Random& rng) { return std::normal_distribution<double>()(rng); }
inline double uniform(Random& rng, double low = 0, double high = 1) {
  return std::uniform_real_distribution<double>(low, high)(rng);
}
inline dense::Vector normals(Random& rng, size_t n) {
  dense::Vector out(n);
  for (double& v : out) v = normal(rng);
  return out;
}

struct Slot {
  Slot(int n, Params from)
      : params(prepared(n, from)), memory(advcore::allocate(advcore::slot_floats(params, true))) {
    advcore::carve_slot(params, true, memory.get(), p);
    lo = const_cast<float*>(p.lo);
    hi = const_cast<float*>(p.hi);
    bound(-std::numeric_limits<float>::infinity(), std::numeric_limits<float>::infinity());
  }
  static Params prepared(int n, Params params) {
    params.n = n;
    params.stride = advcore::row_stride(n);
    return params;
  }
  void bound(float low, float high) {
    for (int i = 0; i < params.n; ++i) lo[i] = low, hi[i] = high;
  }
  // NaN wherever a run must write before it reads: all but x0, the bounds and the padding.
  void poison() {
    const int vectors = advcore::slot_vectors(params, false);
    for (int v = 1; v < vectors; ++v)
      for (int i = 0; i < params.n; ++i)
        memory.get()[v * params.stride + i] = std::numeric_limits<float>::quiet_NaN();
  }
  size_t size() const { return static_cast<size_t>(params.n); }
  dense::Vector vector(const float* row) const { return dense::from_floats(row, size()); }
  void set(float* row, const dense::Vector& values) const {
    for (size_t i = 0; i < size(); ++i) row[i] = static_cast<float>(values[i]);
  }

  const Params params;
  advcore::AlignedFloats memory;
  Problem p;
  float *lo = nullptr, *hi = nullptr;
};

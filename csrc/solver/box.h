// The box of each image, lo <= x <= hi by variable, and vector operations that respect it.
#pragma once

#include "problem.h"

namespace ADVCORE_NS {
namespace {

ADVCORE_INLINE Lane clip(Lane v, Lane lo, Lane hi) { return min(max(v, lo), hi); }

// The free set of the two-metric projection (Bertsekas 1982), as 1 and 0: all variables but those
// on a bound whose descent direction -(total gradient) points out of the box.
ADVCORE_INLINE Lane free_variable(Lane x, Lane total, Lane lo, Lane hi) {
  const Mask fixed = ((x <= lo) & (total >= 0.0f)) | ((x >= hi) & (total <= 0.0f));
  return select(fixed, Lane{}, broadcast(1.0f));
}

// out = clip(start + t (end - start)). `out` may be one of the two.
template <class Team>
ADVCORE_FN void between(const Team& team, const Params& params, const Problem& p,
                        const float* start, const float* end, float t, float* out) {
  const float *const lo = p.lo, *const hi = p.hi;
  team.each(params.stride, [=](int i) {
    const Lane first = load(start, i);
    store(out, i, clip(first + t * (load(end, i) - first), load(lo, i), load(hi, i)));
  });
}

// ||x - x0||_2
template <class Team>
ADVCORE_FN float euclidean(const Team& team, const Params& params, const Problem& p,
                           const float* x) {
  const float* const x0 = p.x0;
  float r2[1];
  team.template sums<1>(params.stride, r2, [=](int i, Lane* acc) {
    const Lane r = load(x, i) - load(x0, i);
    acc[0] += r * r;
  });
  return __builtin_sqrtf(r2[0]);
}

// The distortion of x: x - x0 in the norm of the run.
template <class Team>
ADVCORE_FN float distortion(const Team& team, const Params& params, const Problem& p,
                            const float* x) {
  if (params.norm == Norm::l2) return euclidean(team, params, p, x);
  const float* const x0 = p.x0;
  if (params.norm == Norm::linf)
    return team.maximum(params.stride, [=](int i) { return abs(load(x, i) - load(x0, i)); });
  float sum[1];
  team.template sums<1>(params.stride, sum,
                        [=](int i, Lane* acc) { acc[0] += abs(load(x, i) - load(x0, i)); });
  return sum[0];
}

template <class Team>
ADVCORE_FN void copy(const Team& team, const Params& params, const float* source, float* target) {
  team.each(params.stride, [=](int i) { store(target, i, load(source, i)); });
}

}  // namespace
}  // namespace ADVCORE_NS

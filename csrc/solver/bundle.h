// The bundle of cutting planes of the exact margin, and the projection of x0 onto it:
//   min 1/2 ||x - q||^2   subject to  a_i'(x - x0) + h_i >= 0,  lo <= x <= hi,
//   q = x0 + w (centre - x0).
// It is solved through its dual in at most kMaxCuts variables, x(dual) = clip(q + A'dual), by a
// projected semismooth Newton method without a sort. Cuts are normalised, ||a|| = 1, so residuals
// are distances. With one cut the projection is the first step of the c-search; with several it is
// the step of the polish, a proximal bundle method.
#pragma once

#include "problem.h"
#include "solver/box.h"
#include "solver/history.h"
#include "solver/small_solve.h"

namespace ADVCORE_NS {
namespace {

// Passes of the projection, at most. The median is 6, and 90% of the projections take at most 9.
constexpr int kMaxPasses = 60;

// The a of cut i.
ADVCORE_FN inline float* cut_row(const Params& params, const Problem& p, int i) {
  return p.ring + (size_t)i * params.stride;
}

// Writes cut i from the margin and its gradient at x. Returns ||gradient||; no cut is written
// where it is 0 or NaN.
template <class Team>
ADVCORE_FN float write_cut(const Team& team, const Params& params, const Problem& p,
                           State::Bundle& bundle, int i, const float* gradient, const float* x,
                           float margin) {
  float dots[2];
  const float* const x0 = p.x0;
  team.template sums<2>(params.stride, dots, [=](int i, Lane* acc) {
    const Lane g = load(gradient, i);
    acc[0] += g * g;
    acc[1] += g * (load(x, i) - load(x0, i));
  });
  const float norm = __builtin_sqrtf(dots[0]);
  if (!(norm > 1e-18f && norm < 1e18f))  // Beyond that its square is not a float.
    return norm - norm;                  // 0, or NaN where it is not finite.
  const float inverse = 1 / norm;
  float* const row = cut_row(params, p, i);
  team.each(params.stride, [=](int i) { store(row, i, load(gradient, i) * inverse); });
  bundle.offset[i] = (margin - dots[1]) * inverse;
  bundle.dual[i] = 0;
  return norm;
}

struct DualPoint {
  float residual[kMaxCuts];
  float distance2;  // ||x(dual) - q||^2
};

// Residuals and distance at the multipliers `dual`; `inside` is 1 where x(dual) is inside the box,
// else 0.
template <int P, class Team>
ADVCORE_FN void dual_pass(const Team& team, const Params& params, const Problem& p,
                          const State::Bundle& bundle, const float* dual, float w, float* inside,
                          DualPoint& out) {
  const float* a[P];
  float lambda[P];
  const int last = bundle.count > 0 ? bundle.count - 1 : 0;
  for (int j = 0; j < P; ++j) {  // Past the last cut: a copy of it with multiplier zero.
    a[j] = cut_row(params, p, j < last ? j : last);
    lambda[j] = j < bundle.count ? dual[j] : 0;
  }
  float dots[P + 1];
  const float *const lower = p.lo, *const upper = p.hi, *const clean = p.x0, *const centre = p.x;
  team.template sums<P + 1>(params.stride, dots, [=](int i, Lane* acc) {
    const Lane lo = load(lower, i), hi = load(upper, i), x0 = load(clean, i);
    const Lane q = x0 + w * (load(centre, i) - x0);
    Lane row[P], y = q;
    ADVCORE_UNROLL
    for (int j = 0; j < P; ++j) {
      row[j] = load(a[j], i);
      y += lambda[j] * row[j];
    }
    // On a bound counts as inside: a clean image of zeros and ones can still move.
    store(inside, i, select((y >= lo) & (y <= hi), broadcast(1.0f), Lane{}));
    const Lane x = clip(y, lo, hi), r = x - x0;
    ADVCORE_UNROLL
    for (int j = 0; j < P; ++j) acc[j] += row[j] * r;
    acc[P] += (x - q) * (x - q);
  });
  for (int j = 0; j < P; ++j) out.residual[j] = dots[j] + bundle.offset[j < last ? j : last];
  out.distance2 = dots[P];
}

template <class Team>
ADVCORE_FN void dual_pass(const Team& team, const Params& params, const Problem& p,
                          const State::Bundle& bundle, const float* dual, float w, float* inside,
                          DualPoint& out) {
  if (bundle.count == 1) return dual_pass<1>(team, params, p, bundle, dual, w, inside, out);
  if (bundle.count == 2) return dual_pass<2>(team, params, p, bundle, dual, w, inside, out);
  if (bundle.count <= 4) return dual_pass<4>(team, params, p, bundle, dual, w, inside, out);
  if (bundle.count <= 6) return dual_pass<6>(team, params, p, bundle, dual, w, inside, out);
  if (bundle.count <= 10) return dual_pass<10>(team, params, p, bundle, dual, w, inside, out);
  return dual_pass<kMaxCuts>(team, params, p, bundle, dual, w, inside, out);
}

// Newton's step of the active multipliers goes toward the minimum of the quadratic model, to where
// the first multiplier becomes zero, and from there on without that one. Every part lowers the
// model, so the whole step is one of descent. Setting all negative multipliers to zero at once was
// not: 28% of the passes were lost in line searches.
ADVCORE_FN inline void newton_step(const DualPoint& point, const float (*hessian)[kMaxBasis],
                                   const float* dual, const int* active, int count,
                                   double (*H)[kMaxCuts], double* step) {
  double b[kMaxCuts], solved[kMaxCuts];
  int index[kMaxCuts], remaining = count;
  for (int i = 0; i < count; ++i) index[i] = i, step[i] = 0;
  while (remaining > 0) {
    for (int k = 0; k < remaining; ++k) {
      b[k] = -point.residual[active[index[k]]];
      for (int i = 0; i < count; ++i) b[k] -= (double)hessian[index[k]][i] * step[i];
      for (int l = 0; l < remaining; ++l) H[k][l] = hessian[index[k]][index[l]];
    }
    solve_positive(remaining, H, b, solved);
    int blocking = -1;
    double length = 1;
    for (int k = 0; k < remaining; ++k) {
      const double sum = dual[active[index[k]]] + step[index[k]], multiplier = sum > 0 ? sum : 0;
      if (multiplier + length * solved[k] >= 0) continue;
      length = multiplier / -solved[k];
      blocking = k;
    }
    for (int k = 0; k < remaining; ++k) step[index[k]] += length * solved[k];
    if (blocking < 0) return;
    step[index[blocking]] = -dual[active[index[blocking]]];
    index[blocking] = index[--remaining];
  }
}

ADVCORE_FN inline float dual_value(int cuts, const DualPoint& point, const float* dual) {
  float value = -0.5f * point.distance2;
  for (int j = 0; j < cuts; ++j) value += dual[j] * point.residual[j];
  return value;
}

// The largest residual of a cut in use, or miss of another one.
ADVCORE_FN inline float largest_violation(int cuts, const DualPoint& point, const float* dual) {
  float worst = 0;
  for (int j = 0; j < cuts; ++j)
    worst = max(worst, dual[j] > 0 ? abs(point.residual[j]) : -point.residual[j]);
  return worst;
}

// The active cuts: those in use, and those that x(dual) misses.
struct ActiveCuts {
  int cut[kMaxCuts];
  int count;
};

ADVCORE_FN inline ActiveCuts active_cuts(int cuts, const DualPoint& point, const float* dual) {
  ActiveCuts active;
  active.count = 0;
  for (int j = 0; j < cuts; ++j)
    if (dual[j] > 0 || point.residual[j] < 0) active.cut[active.count++] = j;
  return active;
}

// Moves `dual` along the Newton step as far as that gains, else along the gradient. Returns false
// where neither gains anything.
template <class Team>
ADVCORE_FN bool search_dual(const Team& team, const Params& params, const Problem& p,
                            const State::Bundle& bundle, float w, float* inside,
                            const ActiveCuts& active, const double* step, float* dual,
                            DualPoint& point) {
  const int cuts = bundle.count;
  const float value = dual_value(cuts, point, dual), worst = largest_violation(cuts, point, dual);
  float length = 1, next[kMaxCuts];
  DualPoint trial;
  bool success = false;
  for (int halving = 0; halving < 8 && !success; ++halving, length *= 0.4f) {
    double descent = 0;
    for (int j = 0; j < cuts; ++j) next[j] = dual[j];
    for (int i = 0; i < active.count; ++i) {
      const int j = active.cut[i];
      next[j] = max(dual[j] + length * (float)step[i], 0.0f);
      descent += point.residual[j] * (next[j] - dual[j]);
    }
    dual_pass(team, params, p, bundle, next, w, inside, trial);
    // The values of near points differ by less than their rounding, the violations do not.
    success =
        dual_value(cuts, trial, next) <= value + 1e-4f * (float)descent + 2e-7f * point.distance2 ||
        largest_violation(cuts, trial, next) <= 0.5f * worst;
  }
  if (!success) {  // This step along the gradient descends for any rows of unit length.
    for (int j = 0; j < cuts; ++j) next[j] = max(dual[j] - point.residual[j] / cuts, 0.0f);
    dual_pass(team, params, p, bundle, next, w, inside, trial);
    if (!(dual_value(cuts, trial, next) < value)) return false;
  }
  point = trial;
  for (int j = 0; j < cuts; ++j) dual[j] = next[j];
  return true;
}

// One pass of the Newton method. Returns false at the solution, or where there is no way on.
template <class Team>
ADVCORE_FN bool improve_dual(const Team& team, const Params& params, const Problem& p,
                             const State::Bundle& bundle, Work& work, float w, float* inside,
                             float* dual, DualPoint& point) {
  // Residuals are distances; 1e-6 of the distortion is what float32 sums can resolve.
  const float tolerance = 4e-6f * (__builtin_sqrtf(point.distance2) + 1e-6f);
  if (!(largest_violation(bundle.count, point, dual) > tolerance)) return false;
  const ActiveCuts active = active_cuts(bundle.count, point, dual);
  const float* rows[kMaxCuts] = {};
  for (int i = 0; i < active.count; ++i) rows[i] = cut_row(params, p, active.cut[i]);
  float (*const hessian)[kMaxBasis] = work.model.gram;
  masked_gram(team, params.stride, inside, rows, active.count, hessian);
  bool movable = false;  // Whether a variable that these cuts could move is inside the box.
  for (int i = 0; i < active.count; ++i) movable = movable || !(hessian[i][i] <= 0);
  if (movable) {
    double step[kMaxCuts];
    newton_step(point, hessian, dual, active.cut, active.count, work.newton, step);
    return search_dual(team, params, p, bundle, w, inside, active, step, dual, point);
  }
  // The cuts miss the box, or multipliers left from an older bundle are too large.
  bool reduced = false;
  for (int i = 0; i < active.count; ++i) {
    const int j = active.cut[i];
    if (!(point.residual[j] > tolerance)) continue;
    dual[j] *= 0.25f;
    reduced = true;
  }
  if (reduced) dual_pass(team, params, p, bundle, dual, w, inside, point);
  return reduced;
}

// Writes the projection to `out` and its multipliers to the bundle. Where the cuts miss the box,
// the multipliers stop at a point that reaches as far along them as the box allows.
template <class Team>
ADVCORE_FN void project(const Team& team, const Params& params, const Problem& p,
                        State::Bundle& bundle, Work& work, float w, float* out) {
  const int cuts = bundle.count;
  float dual[kMaxCuts] = {};
  for (int j = 0; j < cuts; ++j) dual[j] = bundle.dual[j];
  float* const inside = out;  // The mask of the last pass, until the projection is written there.
  DualPoint point;
  dual_pass(team, params, p, bundle, dual, w, inside, point);
  for (int pass = 0; pass < kMaxPasses; ++pass)
    if (!improve_dual(team, params, p, bundle, work, w, inside, dual, point)) break;
  for (int j = 0; j < cuts; ++j) bundle.dual[j] = dual[j];
  const int length = params.stride;
  const float *const clean = p.x0, *const x = p.x, *const lo = p.lo, *const hi = p.hi;
  const float* const rows = p.ring;
  team.each(length, [=](int i) {
    const Lane x0 = load(clean, i);
    Lane y = x0 + w * (load(x, i) - x0);
    for (int j = 0; j < cuts; ++j) y += dual[j] * load(rows + (size_t)j * length, i);
    store(out, i, clip(y, load(lo, i), load(hi, i)));
  });
}

// Where the margin is not concave a cut may exclude the serious centre: it is moved until it does
// not.
template <class Team>
ADVCORE_FN void keep_centre(const Team& team, const Params& params, const Problem& p,
                            State::Bundle& bundle) {
  for (int j = 0; j < bundle.count; ++j) {
    const float* const row = cut_row(params, p, j);
    const float *const x = p.x, *const x0 = p.x0;
    float dot[1];
    team.template sums<1>(params.stride, dot, [=](int i, Lane* acc) {
      acc[0] += load(row, i) * (load(x, i) - load(x0, i));
    });
    bundle.offset[j] = max(bundle.offset[j], -dot[0]);
  }
}

// The place of the next cut: a free row, else the oldest cut without a multiplier, else the oldest.
ADVCORE_FN inline int cut_slot(const State::Bundle& bundle) {
  if (bundle.count < kMaxCuts) return bundle.count;
  int slot = 0;
  for (int j = 1; j < kMaxCuts; ++j) {
    const bool in_use = bundle.dual[j] > 0, slot_in_use = bundle.dual[slot] > 0;
    if (in_use != slot_in_use ? slot_in_use : bundle.order[j] < bundle.order[slot]) slot = j;
  }
  return slot;
}

}  // namespace
}  // namespace ADVCORE_NS

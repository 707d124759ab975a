// The trial of the polish in another norm N than l2:
//   min N(r) + mu/2 ||r - r_c||^2   subject to  a_i'r + h_i >= 0,  lo <= x0 + r <= hi,
// with r_c = x - x0 at the serious centre. It is solved through its dual as in bundle.h. With the
// multipliers as parts of mu, r(dual) is the proximal point of N / mu at u = r_c + A'dual:
//   l1    each |u| is lowered by 1 / mu, down to 0
//   linf  each |u| is lowered to t, the root of  sum of (|u| - t)+ over t < room = 1 / mu
// where room is how far the box lets a variable go. The gradient of the dual is A r + h, its
// Hessian A J A': J is 1 at the variables that follow u, and s s' / (their number) at those that
// are tied to t, with s their signs.
#pragma once

#include "problem.h"
#include "solver/box.h"
#include "solver/bundle.h"

namespace ADVCORE_NS {
namespace {

// Passes for the threshold t, at most.
constexpr int kMaxThresholdPasses = 40;
// Cuts that exclude each other have multipliers without end: a trial goes on up to so many times
// what a single cut would have.
constexpr float kLargestMultiplier = 1e3f;
// Points along a step of the multipliers, at most.
constexpr int kMaxStepSearches = 8;
// Cuts whose residuals one pass takes.
constexpr int kResiduals = 4;
// What is added to the diagonal of the Hessian, one after the other, until the step gains. Where
// all variables are on a bound or a kink of N the Hessian is 0, but multipliers may still have to
// grow. At 1 the step is that of the gradient, as the rows of A have the length 1.
constexpr float kFirstRidge = 1e-6f, kRidgeFactor = 100;

struct ProxPoint : DualPoint {
  float t = 0;     // linf: the threshold, which is the norm.
  float tied = 0;  // linf: the number of variables at t.
};

// The vectors of a trial. What they hold otherwise is not needed until the next evaluation.
struct ProxRows {
  float* r;      // in p.trial
  float* free;   // in p.gradient: 1 where r follows u, else 0
  float* signs;  // in p.trial_gradient: u, then the signs of the tied variables, 0 of the others
  float kappa;   // 1 / mu
  float limit;   // of a multiplier, as a part of mu
};

// How far the variable may go in the direction of u.
ADVCORE_INLINE Lane room(Lane u, Lane x0, Lane lo, Lane hi) {
  return select(u > 0.0f, hi - x0, x0 - lo);
}

// The threshold t for u. It is found by Newton's method from the left, as the sum is convex between
// the rooms, and by bisection where that leaves the bracket.
template <class Team>
ADVCORE_FN float threshold(const Team& team, const Params& params, const Problem& p, const float* u,
                           float kappa, float first) {
  const float *const clean = p.x0, *const lower = p.lo, *const upper = p.hi;
  const float top = team.maximum(params.stride, [=](int i) {
    const Lane v = load(u, i);
    return min(abs(v), room(v, load(clean, i), load(lower, i), load(upper, i)));
  });
  float low = 0, high = top, t = min(first, top);
  const float enough = 1e-7f * top;
  for (int pass = 0; pass < kMaxThresholdPasses && high - low > enough; ++pass) {
    float sums[2];
    team.template sums<2>(params.stride, sums, [=](int i, Lane* acc) {
      const Lane v = load(u, i), a = abs(v);
      const Mask above = (a > t) & (room(v, load(clean, i), load(lower, i), load(upper, i)) > t);
      acc[0] += select(above, a - t, Lane{});
      acc[1] += select(above, broadcast(1.0f), Lane{});
    });
    (sums[0] > kappa ? low : high) = t;
    const float middle = 0.5f * (low + high);
    const float next = sums[1] > 0 ? t + (sums[0] - kappa) / sums[1] : middle;
    if (sums[1] > 0 && abs(next - t) <= enough) return min(max(next, low), top);
    t = pass % 3 == 2 || !(next > low && next < high) ? middle : next;
  }
  return high;
}

template <class Team>
ADVCORE_FN void prox_residuals(const Team& team, const Params& params, const Problem& p,
                               const State::Bundle& bundle, const float* r, DualPoint& out) {
  for (int first = 0; first < bundle.count; first += kResiduals) {
    const float* a[kResiduals];
    for (int k = 0; k < kResiduals; ++k)
      a[k] = cut_row(params, p, first + k < bundle.count ? first + k : bundle.count - 1);
    float dots[kResiduals];
    team.template sums<kResiduals>(params.stride, dots, [=](int i, Lane* acc) {
      const Lane v = load(r, i);
      ADVCORE_UNROLL
      for (int k = 0; k < kResiduals; ++k) acc[k] += v * load(a[k], i);
    });
    for (int k = 0; k < kResiduals && first + k < bundle.count; ++k)
      out.residual[first + k] = dots[k] + bundle.offset[first + k];
  }
}

// r at the multipliers `dual`, and what the dual needs of it: `distance2` is twice its value but
// for the cuts. out.t is where the threshold is looked for first.
template <class Team>
ADVCORE_FN void prox_pass(const Team& team, const Params& params, const Problem& p,
                          const State::Bundle& bundle, const ProxRows& rows, const float* dual,
                          ProxPoint& out) {
  struct {
    float dual[kMaxCuts];
  } at;
  for (int j = 0; j < kMaxCuts; ++j) at.dual[j] = j < bundle.count ? dual[j] : 0;
  const int length = params.stride, cuts = bundle.count;
  const float *const clean = p.x0, *const x = p.x, *const lower = p.lo, *const upper = p.hi;
  const float* const ring = p.ring;
  float *const signs = rows.signs, *const free = rows.free, *const point = rows.r;
  team.each(length, [=](int i) {
    Lane u = load(x, i) - load(clean, i);
    for (int j = 0; j < cuts; ++j) u += at.dual[j] * load(ring + (size_t)j * length, i);
    store(signs, i, u);
  });
  const float kappa = rows.kappa;
  const bool sparse = params.norm == Norm::l1;
  float sums[3];
  if (sparse) {
    team.template sums<3>(length, sums, [=](int i, Lane* acc) {
      const Lane x0 = load(clean, i), u = load(signs, i), lowered = abs(u) - kappa;
      const Lane v = select(lowered > 0.0f, select(u > 0.0f, lowered, -lowered), Lane{});
      const Lane r = clip(v, load(lower, i) - x0, load(upper, i) - x0);
      const Lane d = r - (load(x, i) - x0);
      store(point, i, r);
      store(free, i, select((lowered > 0.0f) & (r == v), broadcast(1.0f), Lane{}));
      acc[0] += d * d;
      acc[1] += abs(r);
      acc[2] += Lane{};
    });
  } else {
    const float t = out.t = threshold(team, params, p, signs, kappa, out.t);
    team.template sums<3>(length, sums, [=](int i, Lane* acc) {
      const Lane x0 = load(clean, i), u = load(signs, i), a = abs(u);
      const Lane limit = room(u, x0, load(lower, i), load(upper, i));
      const Lane size = min(min(a, limit), broadcast(t)), r = select(u > 0.0f, size, -size);
      const Mask tied = (a > t) & (limit > t);
      const Lane one = broadcast(1.0f), d = r - (load(x, i) - x0);
      store(point, i, r);
      store(free, i, select((a <= t) & (a <= limit), one, Lane{}));
      store(signs, i, select(tied, select(u > 0.0f, one, -one), Lane{}));
      acc[0] += d * d;
      acc[2] += select(tied, one, Lane{});
    });
    sums[1] = t;
  }
  out.distance2 = sums[0] + 2 * kappa * sums[1];
  out.tied = sums[2];
  prox_residuals(team, params, p, bundle, point, out);
}

// The Hessian of the dual by the active cuts.
template <class Team>
ADVCORE_FN void prox_hessian(const Team& team, const Params& params, const Problem& p,
                             const ProxRows& rows, const ActiveCuts& active, float tied,
                             float (*hessian)[kMaxBasis]) {
  const float* cuts[kMaxCuts] = {};
  for (int i = 0; i < active.count; ++i) cuts[i] = cut_row(params, p, active.cut[i]);
  masked_gram(team, params.stride, rows.free, cuts, active.count, hessian);
  if (!(tied > 0)) return;
  const float* const signs = rows.signs;
  float along[kMaxCuts];
  for (int i = 0; i < active.count; ++i) {
    const float* const row = cuts[i];
    team.template sums<1>(params.stride, along + i,
                          [=](int j, Lane* acc) { acc[0] += load(row, j) * load(signs, j); });
  }
  for (int i = 0; i < active.count; ++i)
    for (int j = 0; j < active.count; ++j) hessian[i][j] += along[i] * along[j] / tied;
}

// Moves `dual` along the step to where the derivative along it is small; the value is convex.
// Returns false where that is no descent. pass(dual, point) fills a point.
template <class Pass>
ADVCORE_FN bool follow_step(int cuts, Pass pass, const ActiveCuts& active, float limit,
                            const double* step, float* dual, ProxPoint& point) {
  const auto slope = [&](const ProxPoint& at) {
    double sum = 0;
    for (int i = 0; i < active.count; ++i) sum += at.residual[active.cut[i]] * step[i];
    return sum;
  };
  const float value = dual_value(cuts, point, dual);
  const double first = slope(point);
  if (!(first < 0)) return false;
  double largest = 1;  // Change of a multiplier, as a part of the limit.
  for (int i = 0; i < active.count; ++i) {
    const double change = step[i] < 0 ? -step[i] : step[i];
    largest = change > largest * limit ? change / limit : largest;
  }
  const double whole = 1 / largest;
  double low = 0, high = whole, low_slope = first, length = whole;
  float next[kMaxCuts];
  ProxPoint trial;
  for (int search = 0; search < kMaxStepSearches; ++search) {
    for (int j = 0; j < cuts; ++j) next[j] = dual[j];
    for (int i = 0; i < active.count; ++i) {
      const int j = active.cut[i];
      next[j] = max(dual[j] + (float)(length * step[i]), 0.0f);
    }
    pass(next, trial);
    const double now = slope(trial);
    const bool descends = now <= 0 || dual_value(cuts, trial, next) <=
                                          value + 2e-7f * max(point.distance2, trial.distance2);
    if ((length == whole && now <= 0) || (descends && now >= 0.3 * first && now <= -0.3 * first)) {
      point = trial;
      for (int j = 0; j < cuts; ++j) dual[j] = next[j];
      return true;
    }
    if (now < 0) {
      low = length;
      low_slope = now;
    } else {
      high = length;
    }
    // The derivative counts as linear between its values.
    const double part = now < 0 ? 0.5 : low_slope / (low_slope - now);
    length = low + (high - low) * (part < 0.02 ? 0.02 : part > 0.9 ? 0.9 : part);
  }
  return false;
}

// One pass of the Newton method. Returns false at the solution, or where there is no way on.
template <class Team>
ADVCORE_FN bool improve_prox(const Team& team, const Params& params, const Problem& p,
                             const State::Bundle& bundle, Work& work, const ProxRows& rows,
                             float tolerance, float* dual, ProxPoint& point) {
  const int cuts = bundle.count;
  if (!(largest_violation(cuts, point, dual) > tolerance)) return false;
  for (int j = 0; j < cuts; ++j)
    if (dual[j] > rows.limit) return false;
  const ActiveCuts active = active_cuts(cuts, point, dual);
  float (*const hessian)[kMaxBasis] = work.model.gram;
  prox_hessian(team, params, p, rows, active, point.tied, hessian);
  const auto pass = [&](const float* at, ProxPoint& out) {
    out.t = point.t;
    prox_pass(team, params, p, bundle, rows, at, out);
  };
  float before = 0;
  for (float ridge = kFirstRidge; ridge < 10; ridge *= kRidgeFactor) {
    for (int i = 0; i < active.count; ++i) hessian[i][i] += ridge - before;
    before = ridge;
    double step[kMaxCuts];
    newton_step(point, hessian, dual, active.cut, active.count, work.newton, step);
    if (follow_step(cuts, pass, active, rows.limit, step, dual, point)) return true;
  }
  pass(dual, point);  // The vectors are those of a trial.
  return false;
}

// Writes the trial to `out` and its multipliers to the bundle. `out` is p.trial; p.gradient and
// p.trial_gradient are overwritten.
template <class Team>
ADVCORE_FN void minimise_norm(const Team& team, const Params& params, const Problem& p,
                              State::Bundle& bundle, Work& work, float mu, float* out) {
  const int cuts = bundle.count;
  const float length = max(euclidean(team, params, p, p.x), 1e-37f);
  const float natural = distortion(team, params, p, p.x) / (mu * length) + length;
  const ProxRows rows = {out, p.gradient, p.trial_gradient, 1 / mu, kLargestMultiplier * natural};
  const float tolerance = 1e-6f * length;
  float dual[kMaxCuts] = {};
  for (int j = 0; j < cuts; ++j) dual[j] = bundle.dual[j] * rows.kappa;
  ProxPoint point;
  point.t = params.norm == Norm::linf ? distortion(team, params, p, p.x) : 0;
  prox_pass(team, params, p, bundle, rows, dual, point);
  for (int pass = 0; pass < kMaxPasses; ++pass)
    if (!improve_prox(team, params, p, bundle, work, rows, tolerance, dual, point)) break;
  for (int j = 0; j < cuts; ++j) bundle.dual[j] = dual[j] * mu;
  const float *const clean = p.x0, *const lo = p.lo, *const hi = p.hi;
  team.each(params.stride, [=](int i) {
    const Lane x0 = load(clean, i);
    store(out, i, clip(x0 + load(out, i), load(lo, i), load(hi, i)));
  });
}

}  // namespace
}  // namespace ADVCORE_NS

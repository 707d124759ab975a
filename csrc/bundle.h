// Bundle of cuts of the exact margin, and the projection onto it:
//   min 1/2 ||x - q||^2   subject to  a_i'(x - x0) + h_i >= 0,  lo <= x <= hi,
//   q = x0 + w (centre - x0),
// through its dual in at most kMaxCuts variables: x(dual) = clip(q + A'dual), a projected
// semismooth Newton method, no sort. Cuts are normalised, ||a|| = 1, so residuals are distances.
// With one cut it is the first step of the c-search, with several the proximal bundle of the
// polish.
#pragma once

namespace ADVCORE_NS {
namespace {

ADVCORE_FN inline float* cut_row(const Params& params, const Problem& p, int i) {
  return p.ring + (size_t)i * params.stride;
}

// Cut i from the margin and its gradient at `at`. Returns ||gradient||; no cut is written where it
// is 0 or NaN.
template <class Team>
ADVCORE_FN float write_cut(const Team& team, const Params& params, const Problem& p, State& s,
                           int i, const float* gradient, const float* at, float margin) {
  float dots[2];
  const float* const x0 = p.x0;
  team.template sums<2>(params.stride, dots, [=](int i, Lane* acc) {
    const Lane g = load(gradient, i);
    acc[0] += g * g;
    acc[1] += g * (load(at, i) - load(x0, i));
  });
  const float norm = __builtin_sqrtf(dots[0]);
  if (!(norm > 1e-18f && norm < 1e18f))  // beyond, its square is not a float
    return norm - norm;                  // 0, or NaN where it is not finite
  const float inverse = 1 / norm;
  float* const row = cut_row(params, p, i);
  team.each(params.stride, [=](int i) { store(row, i, load(gradient, i) * inverse); });
  s.offset[i] = (margin - dots[1]) * inverse;
  s.dual[i] = 0;
  return norm;
}

struct DualPoint {
  float residual[kMaxCuts];
  float distance2;  // ||x(dual) - q||^2
};

// Residuals and distance at the multipliers `dual`, and where x(dual) is inside the box: 1 and 0.
template <int P, class Team>
ADVCORE_FN void dual_pass(const Team& team, const Params& params, const Problem& p, const State& s,
                          const float* dual, float w, float* inside, DualPoint& out) {
  const float* a[P];
  float lambda[P];
  const int last = s.cuts > 0 ? s.cuts - 1 : 0;
  for (int j = 0; j < P; ++j) {  // past the last cut: a copy of it with multiplier zero
    a[j] = cut_row(params, p, j < last ? j : last);
    lambda[j] = j < s.cuts ? dual[j] : 0;
  }
  float dots[P + 1];
  const float *const lower = p.lo, *const upper = p.hi, *const clean = p.x0, *const center = p.x;
  team.template sums<P + 1>(params.stride, dots, [=](int i, Lane* acc) {
    const Lane lo = load(lower, i), hi = load(upper, i), x0 = load(clean, i);
    const Lane q = x0 + w * (load(center, i) - x0);
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
  for (int j = 0; j < P; ++j) out.residual[j] = dots[j] + s.offset[j < last ? j : last];
  out.distance2 = dots[P];
}

template <class Team>
ADVCORE_FN void dual_pass(const Team& team, const Params& params, const Problem& p, const State& s,
                          const float* dual, float w, float* inside, DualPoint& out) {
  if (s.cuts == 1) return dual_pass<1>(team, params, p, s, dual, w, inside, out);
  if (s.cuts == 2) return dual_pass<2>(team, params, p, s, dual, w, inside, out);
  if (s.cuts <= 4) return dual_pass<4>(team, params, p, s, dual, w, inside, out);
  if (s.cuts <= 6) return dual_pass<6>(team, params, p, s, dual, w, inside, out);
  if (s.cuts <= 10) return dual_pass<10>(team, params, p, s, dual, w, inside, out);
  return dual_pass<kMaxCuts>(team, params, p, s, dual, w, inside, out);
}

// Newton's step of the active multipliers: toward the minimum of the quadratic model, to where the
// first multiplier becomes zero; from there on without that one. Every part lowers the model, so
// the whole step is one of descent (it was not where all that would be negative were set to zero at
// once: 28% of the passes were lost in line searches).
ADVCORE_FN inline void newton_step(const DualPoint& at, const float (*hessian)[kMaxBasis],
                                   const float* dual, const int* active, int count,
                                   double (*H)[kMaxCuts], double* step) {
  double b[kMaxCuts], solved[kMaxCuts];
  int kept[kMaxCuts], left = count;
  for (int i = 0; i < count; ++i) kept[i] = i, step[i] = 0;
  while (left > 0) {
    for (int k = 0; k < left; ++k) {
      b[k] = -at.residual[active[kept[k]]];
      for (int i = 0; i < count; ++i) b[k] -= (double)hessian[kept[k]][i] * step[i];
      for (int l = 0; l < left; ++l) H[k][l] = hessian[kept[k]][kept[l]];
    }
    solve_positive(left, H, b, solved);
    int first = -1;
    double length = 1;
    for (int k = 0; k < left; ++k) {
      const double now = dual[active[kept[k]]] + step[kept[k]], value = now > 0 ? now : 0;
      if (value + length * solved[k] >= 0) continue;
      length = value / -solved[k];
      first = k;
    }
    for (int k = 0; k < left; ++k) step[kept[k]] += length * solved[k];
    if (first < 0) return;
    step[kept[first]] = -dual[active[kept[first]]];
    kept[first] = kept[--left];
  }
}

// Writes the projection to `out`, its multipliers to s.dual. Where the cuts miss the box, the
// multipliers stop at a point that reaches as far along them as the box allows.
template <class Team>
ADVCORE_FN void project(const Team& team, const Params& params, const Problem& p, State& s,
                        Work& work, float w, float* out) {
  constexpr int kPasses = 60;
  const int P = s.cuts;
  const auto value = [&](const DualPoint& d, const float* dual) {
    float v = -0.5f * d.distance2;
    for (int j = 0; j < P; ++j) v += dual[j] * d.residual[j];
    return v;
  };
  const auto violation = [&](const DualPoint& d, const float* dual) {
    float worst = 0;
    for (int j = 0; j < P; ++j)
      worst = max(worst, dual[j] > 0 ? abs(d.residual[j]) : -d.residual[j]);
    return worst;
  };
  float dual[kMaxCuts] = {};
  for (int j = 0; j < P; ++j) dual[j] = s.dual[j];
  float* const inside = out;  // of the last pass, until the projection is written there
  DualPoint at;
  dual_pass(team, params, p, s, dual, w, inside, at);
  for (int pass = 0; pass < kPasses; ++pass) {
    // Residuals are distances; 1e-6 of the distortion is what float32 sums can resolve.
    const float enough = 4e-6f * (__builtin_sqrtf(at.distance2) + 1e-6f);
    const float worst = violation(at, dual);
    if (!(worst > enough)) break;
    int active[kMaxCuts], count = 0;
    for (int j = 0; j < P; ++j)
      if (dual[j] > 0 || at.residual[j] < 0) active[count++] = j;
    bool blocked = true;  // nothing that these cuts could move is inside the box
    const float* rows[kMaxCuts] = {};
    for (int i = 0; i < count; ++i) rows[i] = cut_row(params, p, active[i]);
    float (*const hessian)[kMaxBasis] = work.model.gram;
    masked_gram(team, params.stride, inside, rows, count, hessian);
    for (int i = 0; i < count; ++i) blocked = blocked && hessian[i][i] <= 0;
    if (blocked) {  // the cuts miss the box, or multipliers kept from an older bundle are too large
      bool back = false;
      for (int i = 0; i < count; ++i) {
        const int j = active[i];
        if (!(at.residual[j] > enough)) continue;
        dual[j] *= 0.25f;
        back = true;
      }
      if (!back) break;
      dual_pass(team, params, p, s, dual, w, inside, at);
      continue;
    }
    double step[kMaxCuts];
    newton_step(at, hessian, dual, active, count, work.newton, step);
    const float f = value(at, dual);
    float length = 1, next[kMaxCuts];
    bool moved = false;
    for (int halving = 0; halving < 8 && !moved; ++halving, length *= 0.4f) {
      double descent = 0;
      for (int j = 0; j < P; ++j) next[j] = dual[j];
      for (int i = 0; i < count; ++i) {
        const int j = active[i];
        next[j] = max(dual[j] + length * (float)step[i], 0.0f);
        descent += at.residual[j] * (next[j] - dual[j]);
      }
      DualPoint trial;
      dual_pass(team, params, p, s, next, w, inside, trial);
      // The values of near points differ by less than their rounding, the violations do not.
      moved = value(trial, next) <= f + 1e-4f * (float)descent + 2e-7f * at.distance2 ||
              violation(trial, next) <= 0.5f * worst;
      if (moved) at = trial;
    }
    if (!moved) {  // the gradient step that descends for any rows of unit length
      for (int j = 0; j < P; ++j) next[j] = max(dual[j] - at.residual[j] / P, 0.0f);
      DualPoint trial;
      dual_pass(team, params, p, s, next, w, inside, trial);
      if (!(value(trial, next) < f)) break;
      at = trial;
    }
    for (int j = 0; j < P; ++j) dual[j] = next[j];
  }
  for (int j = 0; j < P; ++j) s.dual[j] = dual[j];
  const int length = params.stride;
  const float *const clean = p.x0, *const x = p.x, *const lo = p.lo, *const hi = p.hi;
  const float* const cuts = p.ring;
  team.each(length, [=](int i) {
    const Lane x0 = load(clean, i);
    Lane y = x0 + w * (load(x, i) - x0);
    for (int j = 0; j < P; ++j) y += dual[j] * load(cuts + (size_t)j * length, i);
    store(out, i, clip(y, load(lo, i), load(hi, i)));
  });
}

// Where the margin is not concave a cut may exclude the centre: it is moved until it does not.
template <class Team>
ADVCORE_FN void keep_center(const Team& team, const Params& params, const Problem& p, State& s) {
  for (int j = 0; j < s.cuts; ++j) {
    const float* const row = cut_row(params, p, j);
    const float *const x = p.x, *const x0 = p.x0;
    float dot[1];
    team.template sums<1>(params.stride, dot, [=](int i, Lane* acc) {
      acc[0] += load(row, i) * (load(x, i) - load(x0, i));
    });
    s.offset[j] = max(s.offset[j], -dot[0]);
  }
}

// Where the next cut goes: a free row, else the oldest cut that does not hold, else the oldest.
ADVCORE_FN inline int cut_slot(State& s) {
  if (s.cuts < kMaxCuts) return s.cuts;
  int slot = 0;
  for (int j = 1; j < kMaxCuts; ++j) {
    const bool holds = s.dual[j] > 0, held = s.dual[slot] > 0;
    if (holds != held ? held : s.born[j] < s.born[slot]) slot = j;
  }
  return slot;
}

}  // namespace
}  // namespace ADVCORE_NS

// Choice of c. Fused: every round, from the model, at no evaluation. Bisection: the paper's way, a
// full solve for each c.
#pragma once

namespace ADVCORE_NS {
namespace {

// The largest c within a factor of the last one whose predicted margin reaches the goal: kShifts
// trial values on a logarithmic grid solved together, a vector at a time, then linear interpolation
// in log c. Where the prediction is not monotone the largest such c counts; where none reaches it,
// the smallest.
template <class Team>
ADVCORE_FN float choose_c(const Team& team, const Params& params, const State& s, Work& work) {
  const float spacing = 2 * __builtin_logf(params.c_factor) / (kShifts - 1);
  const double factor = __builtin_expf(spacing);
  double c = s.c / params.c_factor, excess[kShifts];
  for (int j = 0; j < kShifts; ++j, c *= factor) work.step.c[j] = c;
  team.solve([&work](int i) {
    const Model& model = work.model;
    Step& step = work.step;
    const auto K = shifts(step.K), q = shifts(step.q);
    const Shifts c = shifts(step.c, i);
    shifts(step.margin, i) = predicted_margin(model, solve_model(model, c, K, q), q);
  });
  for (int j = 0; j < kShifts; ++j) excess[j] = work.step.margin[j] - (double)s.goal;
  int j = kShifts - 1;
  while (j > 0 && !(excess[j] >= 0)) --j;
  float chosen = (float)work.step.c[j];
  if (j + 1 < kShifts && excess[j] >= 0 && excess[j] > excess[j + 1])
    chosen *= __builtin_expf(spacing * (float)(excess[j] / (excess[j] - excess[j + 1])));
  return min(max(chosen, 1e-6f * s.c0), 1e6f * s.c0);
}

// One solve of the bisection is over. Returns false when the bracket is closed.
ADVCORE_FN inline bool bisect_c(State& s, bool adversarial) {
  constexpr int kSolves = 40;
  if (adversarial) {
    s.c_low = s.c;
    s.penalty_norm = __builtin_sqrtf(s.norm2);
  } else {
    s.c_high = s.c;
  }
  if (++s.solves >= kSolves) return false;
  if (s.c_low > 0 && s.c_high > 0) {
    if (s.c_high < 1.001f * s.c_low) return false;
    s.c = __builtin_sqrtf(s.c_low * s.c_high);
  } else {
    s.c *= adversarial ? 4.0f : 0.25f;
  }
  s.shift = 0;
  return s.c > 1e-30f && s.c < 1e30f;
}

}  // namespace
}  // namespace ADVCORE_NS

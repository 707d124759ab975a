// The choice of c, the weight of ||r||^2: its first value from the linearised problem; then, where
// it is fused with the search, a new one every round from the model, at no evaluation; or, as
// Szegedy et al. 2013 wrote it, a full solve for each c and bisection.
#pragma once

#include "problem.h"
#include "solver/history.h"

namespace ADVCORE_NS {
namespace {

// c moves by at most this factor a round. A factor of 8 lost 0.5% of the images and raised the mean
// distortion on networks with sigmoids.
constexpr float kMaxCChange = 2;
// Solves of a bisection, at most.
constexpr int kMaxSolves = 40;
// The bisection ends when its bracket is narrower than this ratio.
constexpr float kClosedBracket = 1.001f;
// c moves by this factor while the bracket of the bisection is open at one end.
constexpr float kOpenBracketFactor = 4;

// The first c from a point: that of a linear margin which is `margin` there and zero at the
// distance of the point from x0, where norm2 = ||r||^2: c* = |m| / (4 ||r||^2).
ADVCORE_FN inline float linear_c(float margin, float norm2) { return margin / (4 * norm2); }

// The first c from the projection onto the linearised margin: on a two-class tie c* = 1 / (4
// lambda) with lambda the multiplier of that constraint. It is no smaller than linear_c.
ADVCORE_FN inline float first_c(float lambda, float margin, float norm2) {
  return max(1 / (4 * max(lambda, 1e-30f)), linear_c(margin, norm2));
}

// The largest c within kMaxCChange of the last one whose predicted margin reaches the target
// margin. kTrialCs values on a logarithmic grid are solved together, a vector at a time, and then
// interpolated linearly in log c. Where the prediction is not monotone the largest such c counts;
// where none reaches the target, the smallest value of the grid.
template <class Team>
ADVCORE_FN float choose_c(const Team& team, const State::Search& search, Work& work) {
  const float spacing = 2 * __builtin_logf(kMaxCChange) / (kTrialCs - 1);
  const double factor = __builtin_expf(spacing);
  double c = search.c / kMaxCChange, excess[kTrialCs];
  for (int j = 0; j < kTrialCs; ++j, c *= factor) work.trials.c[j] = c;
  team.solve([&work](int i) {
    const Model& model = work.model;
    TrialSystems& trials = work.trials;
    const auto K = trial_cs(trials.K), q = trial_cs(trials.q);
    const TrialC c = trial_cs(trials.c, i);
    trial_cs(trials.margin, i) = predicted_margin(model, solve_model(model, c, K, q), q);
  });
  for (int j = 0; j < kTrialCs; ++j)
    excess[j] = work.trials.margin[j] - (double)search.target_margin;
  int j = kTrialCs - 1;
  while (j > 0 && !(excess[j] >= 0)) --j;
  float chosen = (float)work.trials.c[j];
  if (j + 1 < kTrialCs && excess[j] >= 0 && excess[j] > excess[j + 1])
    chosen *= __builtin_expf(spacing * (float)(excess[j] / (excess[j] - excess[j + 1])));
  return min(max(chosen, 1e-6f * search.first_c), 1e6f * search.first_c);
}

// Ends one solve of the bisection and begins the next. Returns false when the bracket is closed.
ADVCORE_FN inline bool bisect_c(State& s, bool adversarial) {
  State::Bracket& bracket = s.bracket;
  State::Search& search = s.search;
  if (adversarial) {
    bracket.low = search.c;
    search.penalty_norm = __builtin_sqrtf(s.point.norm2);
  } else {
    bracket.high = search.c;
  }
  if (++bracket.solves >= kMaxSolves) return false;
  if (bracket.low > 0 && bracket.high > 0) {
    if (bracket.high < kClosedBracket * bracket.low) return false;
    search.c = __builtin_sqrtf(bracket.low * bracket.high);
  } else {
    search.c *= adversarial ? kOpenBracketFactor : 1 / kOpenBracketFactor;
  }
  search.damping = 0;
  search.rounds = 0;
  return search.c > 1e-30f && search.c < 1e30f;
}

}  // namespace
}  // namespace ADVCORE_NS

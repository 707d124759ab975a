// The margin loss: logits to margin, smoothed log-odds and the cotangent of the logits, in one go.
// Every loss of the solver is here, and in kernels/margin_loss.py for a native network on a GPU:
//   targeted    m = z_t - max_{j != t} z_j      m_T = z_t - T log sum_{j != t} exp(z_j / T)
//   untargeted  m = max_{j != y} z_j - z_y      m_T = T log sum_{j != y} exp(z_j / T) - z_y
// Where the model squashes its logits by a function f that nears its limits exponentially, the
// outputs f(w) of the class that is to win and f(l) of the other one differ by the confidence where
// l is the soft minimum of w and a cap. So m less what that takes from w is asked for; and likewise
// at the lower limit, where l counts as the soft maximum of l and a floor. The loss of the penalty
// problem is l = T log(1 + exp(-m_T / T)): with T = 1 it is the cross-entropy of Szegedy et al.,
// and T -> 0 gives the hinge of the margin. dlogits = d m_T / dz is O(1) whatever the confidence of
// the network, so nothing saturates in float32, and dl = -sigmoid(-m_T / T) dm_T: one backward pass
// gives the gradient of loss, log-odds and margin.
#pragma once

#include "problem.h"

namespace ADVCORE_NS {
namespace {

// Logits of more than this times the two that count, or the clean margin, say nothing about the
// rounding of these: models mask classes by adding -1e4 to -1e9, and 16 eps of that would be asked
// of the margin.
constexpr float kMasked = 100;
// The float32 machine epsilon.
constexpr float kEpsilon = 1.1920929e-7f;

// The largest logit and its class; of equal ones the first.
template <class Team>
ADVCORE_INLINE float largest_logit(const Team& team, int classes, const float* z, int& index) {
  const float value = team.maximum(advcore::padded(classes), [=](int i) { return load(z, i); });
  index = team.first(classes - 1, [=](int i) { return z[i] == value; });
  return value;
}

// Replaces what lies below kPadLogit by that, as models mask classes by -infinity. Returns whether
// all logits are then finite.
template <class Team>
ADVCORE_INLINE bool clamp_masked(const Team& team, int padded, float* z) {
  float difference[1];
  team.template sums<1>(padded, difference, [=](int i, Lane* acc) {
    Lane v = load(z, i);
    v = select(v < Lane{} + kPadLogit, Lane{} + kPadLogit, v);
    store(z, i, v);
    acc[0] += v - v;  // 0, or NaN where a logit is not finite.
  });
  return difference[0] == 0;
}

ADVCORE_INLINE float softplus(float u) {
  return max(u, 0.0f) + __builtin_log1pf(__builtin_expf(-abs(u)));
}

// The derivative of softplus.
ADVCORE_INLINE float sigmoid_of_excess(float u) {
  return 1 / (1 + __builtin_expf(-min(max(u, -80.f), 80.f)));
}

// m_T and d m_T / dz, from the margin and the logits of the rivals (that of the class asked for is
// masked in z).
template <class Team>
ADVCORE_INLINE void smooth_margin(const Team& team, int padded, State& s, const float* z,
                                  float z_rival, float sign, float* dlogits) {
  Evaluation& e = s.eval;
  const float T = s.request.T;
  if (T > 0) {
    float total[1];
    const float scale = 1 / T;
    team.template sums<1>(padded, total, [=](int i, Lane* acc) {
      const Lane weight = exp((load(z, i) - z_rival) * scale);
      store(dlogits, i, weight);
      acc[0] += weight;
    });
    e.log_odds -= sign * T * __builtin_logf(total[0]);
    const float weight = -sign / total[0];
    team.each(padded, [=](int i) { store(dlogits, i, load(dlogits, i) * weight); });
  } else {
    team.each(padded, [=](int i) { store(dlogits, i, Lane{}); });
    dlogits[e.runner_up] = -sign;
  }
  dlogits[s.request.class_index] = sign;
}

// Reads the request and fills s.eval.
//   z        (classes) logits, padded with kPadLogit; changed during the call and restored, but for
//            what clamp_masked changes
//   dlogits  (classes) padded; written where the request wants a gradient
template <class Team>
ADVCORE_FN void margin_loss(const Team& team, const Params& params, State& s, float* z,
                            float* dlogits) {
  const int classes = params.classes, padded = advcore::padded(classes);
  State::Request& request = s.request;
  Evaluation& e = s.eval;
  e.finite = clamp_masked(team, padded, z);
  if (!e.finite) return;
  const int index = request.class_index;
  const float z_index = z[index];
  z[index] = kPadLogit;
  int runner_up = 0;
  float z_rival = largest_logit(team, classes, z, runner_up);
  const float size = max(abs(z_index), abs(z_rival));
  const float masked = min(kMasked * max(size, s.clean_margin), -0.5f * kPadLogit);
  const float largest = max(size, team.maximum(padded, [=](int i) {
    const Lane v = abs(load(z, i));
    return select(v < Lane{} + masked, v, Lane{});
  }));
  e.prediction = z_index > z_rival || (z_index == z_rival && index < runner_up) ? index : runner_up;
  float z_excluded[kMaxSchedules];
  for (int i = 0; i < request.exclusions; ++i) z_excluded[i] = z[request.excluded_classes[i]];
  if (request.exclusions > 0) {
    for (int i = 0; i < request.exclusions; ++i) z[request.excluded_classes[i]] = kPadLogit;
    z_rival = largest_logit(team, classes, z, runner_up);
  }
  if (request.rival_class >= 0) {
    runner_up = request.rival_class;
    z_rival = z[runner_up];
  }

  const float sign = request.targeted ? 1.0f : -1.0f;
  e.rounding = 16 * kEpsilon * largest;
  e.required_margin = max(max(params.confidence, e.rounding), 1e-30f);  // A tie is not adversarial.
  e.runner_up = runner_up;
  float above_limit = 0, below_limit = 0, above = 0, below = 0;
  if (params.squash_rate > 0) {
    const float winner = request.targeted ? z_index : z_rival;
    const float loser = request.targeted ? z_rival : z_index;
    above_limit = params.squash_rate * (winner - params.logit_cap);
    below_limit = params.squash_rate * (params.logit_floor - loser);
    above = softplus(above_limit) / params.squash_rate;
    below = softplus(below_limit) / params.squash_rate;
  }
  e.margin = sign * (z_index - z_rival) - above - below - e.required_margin;
  if (request.temperature == Temperature::from_margin) {
    const float fraction = params.schedule[s.search.schedule].temperature[s.search.stage];
    request.T = max(fraction * abs(e.margin), 64 * kEpsilon * largest);
  }
  e.log_odds = e.margin;
  if (request.want_gradient || request.T > 0)
    smooth_margin(team, padded, s, z, z_rival, sign, dlogits);
  if (request.want_gradient && params.squash_rate > 0) {
    dlogits[request.targeted ? index : runner_up] -= sigmoid_of_excess(above_limit);
    dlogits[request.targeted ? runner_up : index] += sigmoid_of_excess(below_limit);
  }
  for (int i = 0; i < request.exclusions; ++i) z[request.excluded_classes[i]] = z_excluded[i];
  z[index] = z_index;  // Last, as a class that is held may be among those.
}

}  // namespace
}  // namespace ADVCORE_NS

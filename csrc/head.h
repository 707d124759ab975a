// Logits -> margin, smoothed log-odds and the seed of the backward pass, in one go. Every loss of
// the solver is here (the kernels of a native network on a GPU have the same: kernels/head.py):
//   targeted    m = z_t - max_{j != t} z_j      m_T = z_t - T log sum_{j != t} exp(z_j / T)
//   untargeted  m = max_{j != y} z_j - z_y      m_T = T log sum_{j != y} exp(z_j / T) - z_y
// The loss of the penalty problem is l = T log(1 + exp(-m_T / T)): with T = 1 it is the
// cross-entropy of Szegedy et al., and T -> 0 gives the hinge of the margin. The seed d m_T / dz is
// O(1) whatever the confidence of the network, so nothing saturates in float32, and
// dl = -sigmoid(-m_T / T) dm_T: one backward pass gives the gradient of loss, log-odds and margin.
#pragma once

namespace ADVCORE_NS {
namespace {

// Logits of more than this times the two that count, or the clean margin, say nothing about the
// rounding of these: models mask classes by adding -1e4 to -1e9, and 16 eps of that would be asked
// of the margin.
constexpr float kMasked = 100;

// z: (classes) logits, padded with kPadLogit, changed during the call and restored; what lies below
// kPadLogit becomes that.
// seed: (classes) padded, written where the problem wants a gradient.
template <class Team>
ADVCORE_FN void head(const Team& team, const Params& params, State& s, float* z, float* seed) {
  const int classes = params.classes, padded = advcore::padded(classes);
  const int label = s.label;
  Evaluation& e = s.eval;
  float spread[1];
  team.template sums<1>(padded, spread, [=](int i, Lane* acc) {
    Lane v = load(z, i);
    v = select(v < Lane{} + kPadLogit, Lane{} + kPadLogit, v);  // masked by -infinity
    store(z, i, v);
    acc[0] += v - v;  // 0, or NaN where a logit is not finite
  });
  e.finite = spread[0] == 0;
  if (!e.finite) return;

  const float z_label = z[label];
  z[label] = kPadLogit;
  const auto largest_other = [=](int& at) {
    const float value = team.maximum(padded, [=](int i) { return load(z, i); });
    at = team.first(classes - 1, [=](int i) { return z[i] == value; });
    return value;
  };
  int runner_up = 0;
  float other = largest_other(runner_up);
  const float size = max(abs(z_label), abs(other));
  const float masked = min(kMasked * max(size, s.clean_margin), -0.5f * kPadLogit);
  const float largest = max(size, team.maximum(padded, [=](int i) {
    const Lane v = abs(load(z, i));
    return select(v < Lane{} + masked, v, Lane{});
  }));
  e.prediction = z_label > other || (z_label == other && label < runner_up) ? label : runner_up;
  float z_excluded[kMaxSchedules];
  for (int i = 0; i < s.exclusions; ++i) z_excluded[i] = z[s.excluded[i]];
  if (s.exclusions > 0) {
    for (int i = 0; i < s.exclusions; ++i) z[s.excluded[i]] = kPadLogit;
    other = largest_other(runner_up);
  }
  if (s.against >= 0) {
    runner_up = s.against;
    other = z[runner_up];
  }

  const float sign = s.targeted ? 1.0f : -1.0f;
  e.rounding = 16 * 1.1920929e-7f * largest;
  e.kappa = max(max(params.confidence, e.rounding), 1e-30f);  // a tie is not adversarial
  e.runner_up = runner_up;
  e.margin = sign * (z_label - other) - e.kappa;
  if (s.T < 0) {
    const float fraction = params.schedule[s.schedule].temperature[s.stage];
    s.T = max(fraction * abs(e.margin), 64 * 1.1920929e-7f * largest);
  }
  e.log_odds = e.margin;
  if (s.want_gradient || s.T > 0) {
    if (s.T > 0) {
      float total[1];
      const float scale = 1 / s.T;
      team.template sums<1>(padded, total, [=](int i, Lane* acc) {
        const Lane p = exp((load(z, i) - other) * scale);
        store(seed, i, p);
        acc[0] += p;
      });
      e.log_odds -= sign * s.T * __builtin_logf(total[0]);
      const float weight = -sign / total[0];
      team.each(padded, [=](int i) { store(seed, i, load(seed, i) * weight); });
    } else {
      team.each(padded, [=](int i) { store(seed, i, Lane{}); });
      seed[runner_up] = -sign;
    }
    seed[label] = sign;
  }
  z[label] = z_label;
  for (int i = 0; i < s.exclusions; ++i) z[s.excluded[i]] = z_excluded[i];
}

}  // namespace
}  // namespace ADVCORE_NS

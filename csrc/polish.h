// The end of an attempt: handover of the smoothed solution to the exact network, polish on its
// decision boundary, and the starts given by the caller.
#pragma once

namespace ADVCORE_NS {
namespace {

// Untargeted: from here on the class reached is held, against the class to leave alone; a bundle
// of cuts of several classes would ask for all of them at once.
template <class Team>
ADVCORE_FN void Machine<Team>::hold_class(int reached) {
  if (params.targeted || s.against >= 0) return;
  s.against = s.label;
  s.label = reached;
  s.targeted = true;
}

template <class Team>
ADVCORE_FN void Machine<Team>::release_class() {
  if (s.against < 0) return;
  // The next attempt looks for another class: the one reached first is not always the nearest.
  if (s.searches > 0 && s.exclusions < kMaxSchedules) s.excluded[s.exclusions++] = s.label;
  s.label = s.against;
  s.against = -1;
  s.targeted = false;
}

// The polish starts at x, on either side of the boundary. No bisection toward x0 before it: its
// first projection covers that distance too (6 forward passes more on each of four networks gave
// the same mean distortion).
template <class Team>
ADVCORE_FN void Machine<Team>::ask_center() {
  s.cuts = s.cut_rounds = s.stale = 0;
  s.prox = s.curvature = 0;
  copy(team, params, p.x, p.trial);
  ask_exact(Phase::polish_start, true);
}

// From outside: x0 is projected onto all cuts so far until the margin is reached (Kelley 1960).
template <class Team>
ADVCORE_FN void Machine<Team>::polish_start() {
  if (!s.eval.finite) {
    note_failure(p.trial);
    return s.cut_rounds > 0 ? far_side() : end_attempt(Status::stalled);
  }
  hold_class(s.eval.runner_up);
  const bool cut = add_cut(p.trial_gradient, p.trial);
  if (s.eval.margin < 0) {
    if (!cut || ++s.cut_rounds > kApproach) return far_side();
    project(team, params, p, s, work, 0, p.trial);
    return ask_exact(Phase::polish_start, true);
  }
  if (!cut) return end_attempt(Status::stalled);
  s.center_norm = s.center_before = distortion(team, params, p, p.trial);
  s.margin_low = s.eval.margin;
  for (int j = 0; j < s.cuts; ++j) s.born[j] -= s.cut_rounds;
  s.cut_rounds = 0;
  swap(p.x, p.trial);
  propose_cut();
}

// Where that fails: away from x0 until the exact network calls it adversarial.
template <class Team>
ADVCORE_FN void Machine<Team>::far_side() {
  if (s.tries > 0) return end_attempt(Status::not_found);
  copy(team, params, p.x, p.trial);
  ask_exact(Phase::push, false);
}

template <class Team>
ADVCORE_FN void Machine<Team>::push() {
  ++s.tries;
  swap(p.x, p.trial);
  if (s.eval.finite && s.eval.margin >= 0) return ask_center();
  if (s.tries > 14) return end_attempt(Status::not_found);
  between(team, params, p, p.x0, p.x, 1.08f, p.trial);
  ask_exact(Phase::push, false);
}

template <class Team>
ADVCORE_FN bool Machine<Team>::add_cut(const float* gradient, const float* at) {
  // In reserve, so that rounding does not turn a point on the cut into a miss.
  const int slot = cut_slot(s);
  const float margin = s.eval.margin - min(0.25f * s.eval.kappa, 0.5f * s.eval.rounding);
  if (!(write_cut(team, params, p, s, slot, gradient, at, margin) > 0)) return false;
  s.born[slot] = s.cut_rounds;
  s.cut_class[slot] = s.eval.runner_up;
  if (slot == s.cuts) ++s.cuts;
  return true;
}

// The curvature of the Lagrangian 1/2 ||x - x0||^2 - lambda m(x) along the step d, from how far
// the margin at the trial is below the newest cut of the same runner-up: 2 lambda miss / ||d||^2.
// It is the weight of the prox term whose step is Newton's. Another runner-up is a kink, which its
// own cut describes: taken for curvature, it would stop the polish too early.
template <class Team>
ADVCORE_FN void Machine<Team>::note_curvature() {
  int same = -1;
  for (int j = 0; j < s.cuts; ++j)
    if (s.cut_class[j] == s.eval.runner_up && (same < 0 || s.born[j] > s.born[same])) same = j;
  if (same < 0) return;
  const float* const cut = cut_row(params, p, same);
  const float *const at = p.trial, *const gradient = p.trial_gradient;
  const float *const x = p.x, *const x0 = p.x0;
  float dots[3];
  team.template sums<3>(params.stride, dots, [=](int i, Lane* acc) {
    const Lane trial = load(at, i), d = trial - load(x, i), g = load(gradient, i);
    acc[0] += d * d;
    acc[1] += g * g;
    acc[2] += load(cut, i) * (trial - load(x0, i));
  });
  float multiplier = 0;
  for (int j = 0; j < s.cuts; ++j) multiplier += s.dual[j];
  const float margin = s.eval.margin / __builtin_sqrtf(max(dots[1], 1e-37f));
  const float miss = max(dots[2] + s.offset[same] - margin, 0.0f);
  const float seen = 2 * multiplier * miss / max(dots[0], 1e-37f);
  s.curvature = max(0.5f * s.curvature, min(seen, 1e4f));
}

template <class Team>
ADVCORE_FN void Machine<Team>::propose_cut() {
  if (s.cut_rounds >= params.polish_budget) return end_attempt(Status::stalled);
  if (s.stale >= kStale) return end_attempt(Status::stalled);
  keep_center(team, params, p, s);
  for (;;) {
    project(team, params, p, s, work, s.prox / (1 + s.prox), p.trial);
    s.trial_norm = distortion(team, params, p, p.trial);
    if (s.center_norm - s.trial_norm >= params.polish_tolerance * s.center_norm) break;
    if (s.prox <= max(1e-3f, 2 * s.curvature)) return end_attempt(Status::converged);
    s.prox = max(0.1f * s.prox, s.curvature);  // it held the trial back: again in this round
  }
  ++s.cut_rounds;
  ++s.iterations;
  ask_exact(Phase::polish, true);
}

template <class Team>
ADVCORE_FN void Machine<Team>::polish() {
  if (!s.eval.finite) {
    note_failure(p.trial);
    return end_attempt(Status::stalled);
  }
  note_curvature();
  add_cut(p.trial_gradient, p.trial);
  if (s.eval.margin >= 0) {  // serious step
    swap(p.x, p.trial);
    s.center_norm = s.trial_norm;
    s.margin_low = s.eval.margin;
    s.prox = max(0.1f * s.prox, s.curvature);
    return end_cut_round();
  }
  // Null step: between centre and trial ||r|| is below the centre's, look there for the boundary.
  swap(p.gradient, p.trial);  // the trial that failed
  s.t_low = 0;
  s.t_high = 1;
  s.margin_high = s.eval.margin;
  s.tries = 0;
  probe(0.02f);
}

template <class Team>
ADVCORE_FN void Machine<Team>::probe(float least) {
  const float fall = max(s.margin_low - s.margin_high, 1e-37f);
  const float part = min(max(0.95f * s.margin_low / fall, least), 0.9f);
  s.t = s.t_low + (s.t_high - s.t_low) * part;
  between(team, params, p, p.x, p.gradient, s.t, p.trial);
  ask_exact(Phase::polish_probe, false);
}

template <class Team>
ADVCORE_FN void Machine<Team>::polish_probe() {
  if (s.eval.finite && s.eval.margin >= 0) {
    s.t_low = s.t;
    s.margin_low = s.eval.margin;
  } else {
    s.t_high = s.t;
    s.margin_high = s.eval.finite ? s.eval.margin : s.margin_high;
  }
  if (++s.tries < 2 && s.t_low == 0) return probe(0.05f);
  if (s.t_low > 0) {
    between(team, params, p, p.x, p.gradient, s.t_low, p.trial);
    swap(p.x, p.trial);
    s.center_norm = distortion(team, params, p, p.x);
  }
  s.prox = max(s.prox, s.curvature);
  if (s.t_low < 0.25f) s.prox = max(2 * s.prox, 1.0f);
  end_cut_round();
}

// Stale: no gain of the tolerance over several rounds together.
template <class Team>
ADVCORE_FN void Machine<Team>::end_cut_round() {
  if (s.center_norm < (1 - params.polish_tolerance) * s.center_before) {
    s.center_before = s.center_norm;
    s.stale = 0;
  } else {
    ++s.stale;
  }
  propose_cut();
}

// It may be far away: 12 bisections bring it to the boundary on the way to x0.
template <class Team>
ADVCORE_FN void Machine<Team>::given_start() {
  if (!s.eval.finite || s.eval.margin < 0) return end_attempt(Status::not_found);
  hold_class(s.eval.runner_up);
  swap(p.x, p.trial);
  s.t_low = 0;
  s.t_high = 1;
  s.tries = 12;
  ask_between();
}

template <class Team>
ADVCORE_FN void Machine<Team>::ask_between() {
  s.t = 0.5f * (s.t_low + s.t_high);
  between(team, params, p, p.x0, p.x, s.t, p.trial);
  ask_exact(Phase::bisect, false);
}

template <class Team>
ADVCORE_FN void Machine<Team>::bisect() {
  (s.eval.finite && s.eval.margin >= 0 ? s.t_high : s.t_low) = s.t;
  if (--s.tries > 0) return ask_between();
  if (s.t_high < 1) {
    between(team, params, p, p.x0, p.x, s.t_high, p.trial);
    swap(p.x, p.trial);
  }
  if (exact_loss()) return end_attempt(Status::stalled);  // the paper's loss has no polish
  ask_center();
}

}  // namespace
}  // namespace ADVCORE_NS

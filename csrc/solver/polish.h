// The polish: to the decision boundary of the exact network, and along it to a nearer point, by a
// proximal bundle method. Its iterate is the serious centre, in p.x.
#pragma once

#include "problem.h"
#include "solver/box.h"
#include "solver/bundle.h"
#include "solver/machine.h"
#include "solver/prox.h"

namespace ADVCORE_NS {
namespace {

// Projections from outside, at most, before a push takes over.
constexpr int kMaxApproaches = 20;
// Pushes, at most, and the factor by which each lengthens r: 2.9 times in all.
constexpr int kMaxPushes = 14;
constexpr float kPushFactor = 1.08f;
// The polish stops after so many iterations without progress.
constexpr int kMaxRoundsWithoutProgress = 3;
// In another norm than l2: the part of the margin at x0 that the sums of a trial do not resolve.
// What a trial misses by less is no curvature.
constexpr float kUnresolved = 4e-6f;
// In another norm than l2: the least weight of the proximal term, in units of ||r|| / ||r||_2^2.
// With less the multipliers would have to be known better than float32 tells.
constexpr float kLeastProx = 0.003f;
// Line probes of an iteration, at most.
constexpr int kMaxProbes = 2;

// The polish starts at p.x, on either side of the boundary. There is no bisection toward x0 before
// it: the first projection covers that distance too (6 forward passes more on each of four networks
// gave the same mean distortion).
template <class Team>
ADVCORE_FN void Machine<Team>::ask_centre() {
  s.bundle.count = s.bundle.writes = 0;
  const int pushes = s.polish.pushes;
  s.polish = {};
  s.polish.pushes = pushes;
  if (params.norm != Norm::l2) s.polish.prox = 1;
  copy(team, params, p.x, p.trial);
  ask_exact(Phase::polish_start, true);
}

// From outside x0 is projected onto all cuts so far, until the margin is reached: Kelley's method
// (1960). In another norm the proximal term holds each point near the last one.
template <class Team>
ADVCORE_FN void Machine<Team>::polish_start() {
  if (!s.eval.finite) {
    note_failure(p.trial);
    return s.polish.approaches > 0 ? far_side() : end_restart(Status::stalled);
  }
  hold_class(s.eval.runner_up);
  const bool proximal = params.norm != Norm::l2;
  if (proximal && s.polish.approaches > 0) {
    note_curvature();
    s.polish.prox = max(0.5f * s.polish.prox, s.polish.curvature);
  }
  const bool written = add_cut(p.trial_gradient, p.trial);
  if (s.eval.margin < 0) {
    if (proximal) swap(p.x, p.trial);
    if (!written || ++s.polish.approaches > kMaxApproaches) return far_side();
    proximal ? propose_trial() : project(team, params, p, s.bundle, work, 0, p.trial);
    return ask_exact(Phase::polish_start, true);
  }
  if (!written) return end_restart(Status::stalled);
  s.polish.centre_norm = s.polish.progress_norm = distortion(team, params, p, p.trial);
  s.polish.centre_margin = s.eval.margin;
  swap(p.x, p.trial);
  propose_iteration();
}

// Where the approach fails: away from x0 until the exact network calls the point adversarial.
template <class Team>
ADVCORE_FN void Machine<Team>::far_side() {
  if (s.polish.pushes > 0) return end_restart(Status::not_found);
  copy(team, params, p.x, p.trial);
  ask_exact(Phase::push, false);
}

template <class Team>
ADVCORE_FN void Machine<Team>::push() {
  ++s.polish.pushes;
  swap(p.x, p.trial);
  if (s.eval.finite && s.eval.margin >= 0) return ask_centre();
  if (s.polish.pushes > kMaxPushes) return end_restart(Status::not_found);
  between(team, params, p, p.x0, p.x, kPushFactor, p.trial);
  ask_exact(Phase::push, false);
}

// The cut keeps a reserve, so that rounding does not turn a point on it into a miss.
template <class Team>
ADVCORE_FN bool Machine<Team>::add_cut(const float* gradient, const float* point) {
  State::Bundle& bundle = s.bundle;
  const int slot = cut_slot(bundle);
  // A trial in another norm lies on a corner of its cuts: there it takes more.
  const float reserve = params.norm == Norm::l2
                            ? min(0.25f * s.eval.required_margin, 0.5f * s.eval.rounding)
                            : max(0.25f * s.eval.required_margin, kUnresolved * s.clean_margin);
  const float margin = s.eval.margin - reserve;
  if (!(write_cut(team, params, p, bundle, slot, gradient, point, margin) > 0)) return false;
  bundle.order[slot] = bundle.writes++;
  bundle.runner_up[slot] = s.eval.runner_up;
  if (slot == bundle.count) ++bundle.count;
  return true;
}

// The curvature of the Lagrangian 1/2 ||x - x0||^2 - lambda m(x) along the step d, from how far the
// margin at the trial is below the newest cut of the same runner-up: 2 lambda miss / ||d||^2. It is
// the weight of the proximal term whose step is Newton's. Another runner-up is a kink, which its
// own cut describes: taken for curvature, it would stop the polish too early.
template <class Team>
ADVCORE_FN void Machine<Team>::note_curvature() {
  const State::Bundle& bundle = s.bundle;
  int newest = -1;
  for (int j = 0; j < bundle.count; ++j)
    if (bundle.runner_up[j] == s.eval.runner_up &&
        (newest < 0 || bundle.order[j] > bundle.order[newest]))
      newest = j;
  if (newest < 0) return;
  const float* const cut = cut_row(params, p, newest);
  const float *const trial = p.trial, *const gradient = p.trial_gradient;
  const float *const x = p.x, *const x0 = p.x0;
  float dots[3];
  team.template sums<3>(params.stride, dots, [=](int i, Lane* acc) {
    const Lane t = load(trial, i), d = t - load(x, i), g = load(gradient, i);
    acc[0] += d * d;
    acc[1] += g * g;
    acc[2] += load(cut, i) * (t - load(x0, i));
  });
  float multiplier = 0;
  for (int j = 0; j < bundle.count; ++j) multiplier += bundle.dual[j];
  const float unresolved = params.norm == Norm::l2 ? 0 : kUnresolved * s.clean_margin;
  const float margin = (s.eval.margin + unresolved) / __builtin_sqrtf(max(dots[1], 1e-37f));
  const float miss = max(dots[2] + bundle.offset[newest] - margin, 0.0f);
  const float curvature = 2 * multiplier * miss / (prox_unit() * max(dots[0], 1e-37f));
  s.polish.curvature = max(0.5f * s.polish.curvature, min(curvature, 1e4f));
}

// The unit of the weight of the proximal term: 1 in l2, where the objective is 1/2 ||r||^2; else
// ||r|| / ||r||_2^2 at the serious centre.
template <class Team>
ADVCORE_FN float Machine<Team>::prox_unit() const {
  if (params.norm == Norm::l2) return 1;
  const float length = euclidean(team, params, p, p.x);
  return distortion(team, params, p, p.x) / max(length * length, 1e-37f);
}

template <class Team>
ADVCORE_FN void Machine<Team>::propose_trial() {
  const float prox = s.polish.prox;
  if (params.norm == Norm::l2)
    return project(team, params, p, s.bundle, work, prox / (1 + prox), p.trial);
  minimise_norm(team, params, p, s.bundle, work, prox * prox_unit(), p.trial);
}

// A later search may go on where this polish ends, with its cuts.
template <class Team>
ADVCORE_FN void Machine<Team>::end_polish(Status status) {
  s.polish.may_go_on = s.polish.centre_norm == s.best.norm;
  s.polish.class_index = s.request.class_index;
  end_restart(status);
}

// The next trial: the projection of x0 onto the bundle, held near the centre by the proximal term.
// A weight that holds the trial back too much is lowered in the same iteration.
template <class Team>
ADVCORE_FN void Machine<Team>::propose_iteration() {
  State::Polish& polish = s.polish;
  if (polish.iterations >= schedule().polish_budget) return end_polish(Status::stalled);
  if (polish.rounds_without_progress >= kMaxRoundsWithoutProgress)
    return end_polish(Status::stalled);
  keep_centre(team, params, p, s.bundle);
  const float least = params.norm == Norm::l2 ? 0 : kLeastProx;
  for (;;) {
    propose_trial();
    polish.trial_norm = distortion(team, params, p, p.trial);
    if (polish.centre_norm - polish.trial_norm >= schedule().polish_tolerance * polish.centre_norm)
      break;
    if (polish.prox <= max(max(1e-3f, least), 2 * polish.curvature))
      return end_polish(Status::converged);
    polish.prox = max(max(0.1f * polish.prox, polish.curvature), least);
  }
  ++polish.iterations;
  ++s.counts.iterations;
  ask_exact(Phase::polish, true);
}

template <class Team>
ADVCORE_FN void Machine<Team>::polish() {
  State::Polish& polish = s.polish;
  if (!s.eval.finite) {
    note_failure(p.trial);
    return end_restart(Status::stalled);
  }
  note_curvature();
  add_cut(p.trial_gradient, p.trial);
  if (s.eval.margin >= 0) {  // A serious step: the trial is the centre.
    swap(p.x, p.trial);
    polish.centre_norm = polish.trial_norm;
    polish.centre_margin = s.eval.margin;
    polish.prox = max(0.1f * polish.prox, polish.curvature);
    return end_iteration();
  }
  // A null step. Between centre and trial ||r|| is below the centre's: look there for the boundary.
  swap(p.gradient, p.trial);  // The trial that failed.
  s.line = {};
  s.line.low_margin = polish.centre_margin;
  s.line.high_margin = s.eval.margin;
  probe(0.02f);
}

// Asks for the point where the margin, linear between low and high, is 5% of that at low.
template <class Team>
ADVCORE_FN void Machine<Team>::probe(float least) {
  State::Line& line = s.line;
  const float fall = max(line.low_margin - line.high_margin, 1e-37f);
  const float part = min(max(0.95f * line.low_margin / fall, least), 0.9f);
  line.t = line.low + (line.high - line.low) * part;
  between(team, params, p, p.x, p.gradient, line.t, p.trial);
  ask_exact(Phase::polish_probe, false);
}

template <class Team>
ADVCORE_FN void Machine<Team>::polish_probe() {
  State::Line& line = s.line;
  State::Polish& polish = s.polish;
  if (s.eval.finite && s.eval.margin >= 0) {
    line.low = line.t;
    line.low_margin = s.eval.margin;
  } else {
    line.high = line.t;
    line.high_margin = s.eval.finite ? s.eval.margin : line.high_margin;
  }
  if (++line.probes < kMaxProbes && line.low == 0) return probe(0.05f);
  if (line.low > 0) {
    between(team, params, p, p.x, p.gradient, line.low, p.trial);
    swap(p.x, p.trial);
    polish.centre_norm = distortion(team, params, p, p.x);
    polish.centre_margin = line.low_margin;
  }
  polish.prox = max(polish.prox, polish.curvature);
  if (line.low < 0.25f) polish.prox = max(2 * polish.prox, 1.0f);
  end_iteration();
}

// Progress is a gain of the tolerance over several iterations together.
template <class Team>
ADVCORE_FN void Machine<Team>::end_iteration() {
  State::Polish& polish = s.polish;
  if (polish.centre_norm < (1 - schedule().polish_tolerance) * polish.progress_norm) {
    polish.progress_norm = polish.centre_norm;
    polish.rounds_without_progress = 0;
  } else {
    ++polish.rounds_without_progress;
  }
  propose_iteration();
}

}  // namespace
}  // namespace ADVCORE_NS

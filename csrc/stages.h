// The stages of the state machine: a search begins on each network of the smoothing schedule, goes
// on to the next one, or competes there with a second search; and its end.
#pragma once

namespace ADVCORE_NS {
namespace {

template <class Team>
ADVCORE_FN void Machine<Team>::start() {
  if (!s.eval.finite) {
    note_failure(p.trial);
    return finish(Status::non_finite);
  }
  if (s.eval.margin >= 0) return finish(Status::already_adversarial);
  s.clean_margin = abs(s.eval.margin);
  if (!s.want_gradient) return next_attempt(Status::not_found);
  s.searches = 1;
  stage_origin();  // smooth networks: this was the first stage's
}

template <class Team>
ADVCORE_FN void Machine<Team>::begin_stage(int stage) {
  s.stage = s.began = stage;
  s.since = s.rounds = s.solves = 0;
  s.pace_margin = -kNone;
  s.stage_best = kNone;
  s.shift = s.c_low = s.c_high = 0;
  s.moved = false;
  copy(team, params, p.x0, p.trial);
  ask(Phase::stage_origin, true, schedule().smoothing[stage], exact_loss() ? 1.0f : -1.0f);
}

template <class Team>
ADVCORE_FN void Machine<Team>::stage_origin() {
  if (!s.eval.finite) {
    note_failure(p.trial);
    return end_attempt(Status::not_found);
  }
  accept(0);
  s.margin0 = s.margin;
  s.goal = goal();
  clear_ring(s);
  if (s.margin >= 0 && s.second) return back_to_first();
  if (s.margin >= 0) {  // the smoothed network is fooled by the clean image: nothing to search
    s.stage_best = 0;
    s.stage_class = s.eval.runner_up;
    copy(team, params, p.x, p.stage_point);
    s.c = 0;
    return end_stage(Status::stalled);
  }
  schedule().origin >= 0 ? far_start() : start_search();
}

// On to the next network at the accepted point, in the middle of the search: c and the pairs are a
// good start for that network, and converging on this one would be in vain (docs/decisions.md).
template <class Team>
ADVCORE_FN void Machine<Team>::next_network() {
  ++s.stage;
  s.since = s.rounds = 0;
  s.pace_margin = -kNone;
  s.stage_best = kNone;
  s.shift = 0;
  s.c0 = s.c;
  s.accept_any = true;
  copy(team, params, p.x, p.trial);
  ask(Phase::stage, true, schedule().smoothing[s.stage],
      max(schedule().temperature[s.stage] * s.clean_margin, 4 * s.eval.rounding));
  s.goal = goal();
}

// A stage is over. Which basin: the way from wider smoothing and the straight one from x0 often end
// in different ones (||r1 - r2|| / ||r|| of 0.5 to 1 where the results differ by more than 1%), and
// the nearer one on a network still so smooth that a search is cheap stays the nearer one: on two
// networks with max-pooling the logarithms of both ratios correlate by 0.81 and 0.93 at k = 0.32.
template <class Team>
ADVCORE_FN void Machine<Team>::leave_network() {
  // A first search that itself began on this network would be repeated.
  if (s.stage != schedule().contest || (!s.second && s.began == s.stage)) return next_network();
  if (s.second) {
    if (!(s.stage_best < s.first_best)) return back_to_first();
    s.second = false;
    return next_network();
  }
  s.first_best = s.stage_best;
  s.first_c = s.c;
  s.first_margin0 = s.margin0;
  copy(team, params, p.x, p.first);
  s.second = true;
  begin_stage(s.stage);
}

template <class Team>
ADVCORE_FN void Machine<Team>::back_to_first() {
  s.second = false;
  s.c = s.first_c;
  s.margin0 = s.first_margin0;
  copy(team, params, p.first, p.x);
  clear_ring(s);  // its pairs are gone, and so is its gradient
  float* const gradient = p.gradient;
  team.each(params.stride, [=](int i) { store(gradient, i, Lane{}); });
  next_network();
}

// Whether the polish would end at or above the best image: the search arrived there again, or
// farther from x0.
template <class Team>
ADVCORE_FN bool Machine<Team>::nothing_new() const {
  const float *const point = p.x, *const clean = p.x0, *const best = p.best;
  float dots[2];
  team.template sums<2>(params.stride, dots, [=](int i, Lane* acc) {
    const Lane x = load(point, i), r = x - load(clean, i), d = x - load(best, i);
    acc[0] += r * r;
    acc[1] += d * d;
  });
  const float best2 = s.best_norm * s.best_norm;
  return dots[0] > kHopeless * kHopeless * best2 || dots[1] < kSame * kSame * best2;
}

template <class Team>
ADVCORE_FN void Machine<Team>::end_stage(Status status) {
  if (s.stage + 1 < schedule().stages) return s.c > 0 ? leave_network() : begin_stage(s.stage + 1);
  if (s.stage_best == kNone)
    copy(team, params, p.x, p.stage_point);
  else
    s.settled = true;
  const bool adversarial = s.k == 0 && s.stage_best < kNone;
  if (exact_loss()) return end_attempt(adversarial ? status : Status::not_found);
  copy(team, params, p.stage_point, p.x);
  if (rival() < kNone && s.best_norm == s.attempt_best && nothing_new()) {
    if (s.stage_best < kNone) hold_class(s.stage_class);
    return end_attempt(Status::stalled);
  }
  s.tries = 0;
  if (adversarial) hold_class(s.stage_class);
  params.walk_budget > 0 ? ask_walk() : ask_center();
}

}  // namespace
}  // namespace ADVCORE_NS

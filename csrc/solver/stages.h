// From network to network: a search begins on each network of the smoothing schedule, goes on to
// the next one, and ends by the rules listed here.
#pragma once

#include "problem.h"
#include "solver/box.h"
#include "solver/c_search.h"
#include "solver/history.h"
#include "solver/machine.h"

namespace ADVCORE_NS {
namespace {

// A search for another class is dropped when its steps have become short and it is this many times
// as far from x0 as the best image.
constexpr float kFarClass = 1.5f;
// A search that ends this many times as far from x0 as the best image is not polished.
constexpr float kHopeless = 1.05f;
// A search that ends this near to the best image, as a part of its distortion, is not polished: it
// has arrived there again.
constexpr float kSamePoint = 0.05f;
// A search has lost when it is this many times as far from x0 as the best one was on the same
// network, while its steps are shorter than kShortStep.
constexpr float kLost = 1.05f;
// Part of ||r|| below which a step says that a stage is near its end.
constexpr float kShortStep = 0.2f;
// A stage that has found nothing is asked after every so many rounds whether it makes progress.
constexpr int kMinProgressRounds = 15;
// The progress it needs: the part of the margin by which those rounds must raise it. What cannot be
// reached then costs 540 to 1,500 evaluations, not 1,800 to 2,900.
constexpr float kMinRelativeProgress = 0.02f;
// Where the exact network is asked for an image: up to so many multiples of the r of a smoothed
// network.
constexpr int kMaxLooks = 3;
// A look must promise an image this much nearer than the best one.
constexpr float kWorthALook = 0.95f;
// While there is no image, the exact network is asked after every so many rounds.
constexpr int kEarlyLookRounds = 3;
// While the search has found nothing on any network, a stage may take so many times its budget.
constexpr int kBudgetsWithoutSuccess = 3;

template <class Team>
ADVCORE_FN void Machine<Team>::start() {
  if (!s.eval.finite) {
    note_failure(p.trial);
    return finish(Status::non_finite);
  }
  if (s.eval.margin >= 0) return finish(Status::already_adversarial);
  s.clean_margin = abs(s.eval.margin);
  if (!s.request.want_gradient) return next_restart(Status::not_found);
  s.restarts.searches = 1;
  // The first network is the exact one: this was its evaluation.
  params.norm == Norm::l2 ? stage_origin() : walk();
}

template <class Team>
ADVCORE_FN void Machine<Team>::begin_stage(int stage) {
  State::Search& search = s.search;
  search.stage = search.first_stage = stage;
  search.rounds = search.rounds_since_improvement = 0;
  search.margin_checkpoint = -kNone;
  search.stage_best = kNone;
  search.damping = 0;
  search.started_away_from_x0 = false;
  if (stage == 0) s.stages = {};
  s.bracket = {};
  copy(team, params, p.x0, p.trial);
  const bool paper_loss = exact_loss();
  ask(Phase::stage_origin, true, schedule().smoothing[stage],
      paper_loss ? Temperature::given : Temperature::from_margin, paper_loss ? 1.0f : 0.0f);
}

template <class Team>
ADVCORE_FN void Machine<Team>::stage_origin() {
  if (!s.eval.finite) {
    note_failure(p.trial);
    return end_restart(Status::not_found);
  }
  accept(0);
  s.search.origin_margin = s.point.margin;
  s.search.target_margin = next_target_margin();
  clear_ring(s.pairs);
  if (s.point.margin >= 0) {  // The clean image fools the smoothed network: nothing to search.
    s.restarts.sloped_at_x0 = true;
    s.search.stage_best = 0;
    s.search.stage_class = s.eval.runner_up;
    copy(team, params, p.x, p.stage_point);
    s.search.c = 0;
    return end_stage(Status::stalled);
  }
  schedule().origin >= 0 ? far_start() : start_search();
}

// The margin to aim at: a little inside, in proportion to T. With the paper's loss the minimiser
// itself is the result, so it is to be nearer to the boundary.
template <class Team>
ADVCORE_FN float Machine<Team>::next_target_margin() const {
  const float part = exact_loss() ? 0.005f : 0.1f;
  return part * schedule().temperature[s.search.stage] *
         min(s.clean_margin, abs(s.search.origin_margin));
}

// The continuation: the next network takes over at the accepted point, in the middle of the search.
// c and the pairs are a good start for that network, and converging on this one would be in vain
// (docs/decisions.md).
template <class Team>
ADVCORE_FN void Machine<Team>::next_network() {
  State::Search& search = s.search;
  ++search.stage;
  search.rounds = search.rounds_since_improvement = 0;
  search.margin_checkpoint = -kNone;
  search.stage_best = kNone;
  search.damping = 0;
  search.first_c = search.c;
  search.fresh_model = true;
  copy(team, params, p.x, p.trial);
  ask(Phase::stage, true, schedule().smoothing[search.stage], Temperature::given,
      max(schedule().temperature[search.stage] * s.clean_margin, 4 * s.eval.rounding));
  search.target_margin = next_target_margin();
}

// Whether the search that found the best image was nearer on this network, by the factor. It says
// nothing about a search for another class: the best of three such searches was 0.5 to 2% farther
// where the others were dropped by this rule, on four networks. Starting
// from wider smoothing and starting at x0 often lead to different local minima: ||r1 - r2|| / ||r||
// is 0.5 to 1 where the results differ by more than 1%. Which of the two will be nearer at the end
// can be seen early, on a network still so smooth that a search is cheap: on two networks with
// max-pooling the logarithms of both ratios correlate by 0.81 and 0.93 at k = 0.32.
template <class Team>
ADVCORE_FN bool Machine<Team>::best_was_nearer(float norm, float factor) const {
  const State::Stages& best = s.best_stages;
  const State::Request& request = s.request;
  if (!(request.targeted && request.class_index == s.best.prediction) && !params.targeted)
    return false;
  for (int i = 0; i < best.count && rival_norm() < kNone; ++i)
    if (best.k[i] == s.request.k && norm > factor * best.norm[i]) return true;
  return false;
}

// Whether the polish from here would end at or above the best image: the search has arrived there
// again, or farther from x0.
template <class Team>
ADVCORE_FN bool Machine<Team>::near_known_image() const {
  const float *const point = p.x, *const clean = p.x0, *const best = p.best;
  float dots[2];
  team.template sums<2>(params.stride, dots, [=](int i, Lane* acc) {
    const Lane x = load(point, i), r = x - load(clean, i), d = x - load(best, i);
    acc[0] += r * r;
    acc[1] += d * d;
  });
  const float best2 = s.best.norm * s.best.norm;
  return dots[0] > kHopeless * kHopeless * best2 || dots[1] < kSamePoint * kSamePoint * best2;
}

// Whether the last step was short and c has come to rest.
template <class Team>
ADVCORE_FN bool Machine<Team>::at_rest(const Round& round) const {
  return round.accepted && round.predicted && round.length < params.tolerance * round.norm &&
         abs(__builtin_logf(s.search.c / s.search.last_c)) < params.tolerance;
}

// Whether a stage that has found nothing has raised the margin too little; asked every
// kMinProgressRounds.
template <class Team>
ADVCORE_FN bool Machine<Team>::without_progress() {
  if (s.search.stage_best < kNone || s.search.rounds % kMinProgressRounds != 0) return false;
  const float gain = s.point.margin - s.search.margin_checkpoint;
  s.search.margin_checkpoint = s.point.margin;
  return gain < kMinRelativeProgress * abs(s.point.margin);
}

// The rules by which a stage of the fused search ends, in the order in which they are asked.
template <class Team>
ADVCORE_FN StageEnd Machine<Team>::stage_end(const Round& round) {
  const State::Search& search = s.search;
  const bool success = search.stage_best < kNone;
  // Near the boundary with short steps the distortion on this network is known well enough.
  const bool at_boundary = success && s.point.sigma < 0.9f && round.accepted && round.predicted;
  const bool short_steps =
      at_boundary && round.length < schedule().continuation_tolerance * round.norm;
  const bool lost =
      at_boundary && round.length < kShortStep * round.norm && best_was_nearer(round.norm, kLost);
  // The minimiser of the paper's loss is itself the result, so it must be adversarial.
  const bool adversarial = exact_loss() ? s.point.margin >= 0 : success;
  const bool free_budget = !success && !s.restarts.found_by_search;
  const int budget = schedule().budget[search.stage] * (free_budget ? kBudgetsWithoutSuccess : 1);

  if (short_steps && s.request.exclusions > 0 && round.norm > kFarClass * rival_norm())
    return StageEnd::far_class;
  if (lost) return StageEnd::lost;
  if (short_steps && !on_last_stage()) return StageEnd::continuation;
  if (short_steps && schedule().descent.steps > 0)
    return StageEnd::stalled;  // Gradient descent takes over.
  if (adversarial && at_rest(round)) return StageEnd::converged;
  if (success && search.rounds_since_improvement >= schedule().patience && adversarial)
    return StageEnd::stalled;
  if (!exact_loss() && without_progress()) return StageEnd::stalled;
  if (search.rounds >= budget) return StageEnd::stalled;
  return StageEnd::none;
}

ADVCORE_INLINE float look_scale(int look) { return look == 0 ? 1.0f : look == 1 ? 1.1f : 1.25f; }

// To the next network. The exact network is first asked about the best point of this one, and about
// points a little farther out: every image gets an adversarial one early.
template <class Team>
ADVCORE_FN void Machine<Team>::go_on() {
  State::Stages& stages = s.stages;
  if (best_was_nearer(s.search.stage_best, 1)) return drop_search();
  stages.k[stages.count] = s.request.k;
  stages.norm[stages.count++] = s.search.stage_best;
  s.search.looks = 0;
  s.search.look_k = 0;
  if (exact_loss() || s.request.k == 0) return next_network();
  next_look();
}

// Asks about the next point, unless an image there would be no gain.
template <class Team>
ADVCORE_FN void Machine<Team>::next_look() {
  const float scale = look_scale(s.search.looks);
  if (s.search.looks == kMaxLooks || !(scale * s.search.stage_best < kWorthALook * s.best.norm))
    return next_network();
  ++s.search.looks;
  between(team, params, p, p.x0, p.stage_point, scale, p.trial);
  ask_exact(Phase::look, false);
}

// In the middle of a stage.
template <class Team>
ADVCORE_FN bool Machine<Team>::look_early() {
  State::Search& search = s.search;
  if (s.best.norm < kNone || search.stage_best == kNone || exact_loss() || s.request.k == 0 ||
      search.rounds % kEarlyLookRounds != 0)
    return false;
  search.look_k = s.request.k;
  search.look_T = s.request.T;
  between(team, params, p, p.x0, p.stage_point, look_scale(kMaxLooks - 1), p.trial);
  ask_exact(Phase::look, false);
  return true;
}

template <class Team>
ADVCORE_FN void Machine<Team>::look() {
  if (s.search.look_k == 0) return s.eval.margin >= 0 ? next_network() : next_look();
  s.request.k = s.search.look_k;
  s.request.T = s.search.look_T;
  propose();
}

template <class Team>
ADVCORE_FN void Machine<Team>::drop_search() {
  if (s.search.stage_best < kNone) hold_class(s.search.stage_class);
  end_restart(Status::stalled);
}

template <class Team>
ADVCORE_FN void Machine<Team>::leave_stage(StageEnd end) {
  if (end == StageEnd::far_class || end == StageEnd::lost) return drop_search();
  if (end == StageEnd::continuation) return go_on();
  end_stage(end == StageEnd::converged ? Status::converged : Status::stalled);
}

template <class Team>
ADVCORE_FN void Machine<Team>::end_stage(Status status) {
  if (!on_last_stage()) return s.search.c > 0 ? go_on() : begin_stage(s.search.stage + 1);
  if (s.search.stage_best == kNone)
    copy(team, params, p.x, p.stage_point);
  else
    s.restarts.converged_on_last_network = true;
  const bool adversarial = s.request.k == 0 && s.search.stage_best < kNone;
  if (exact_loss()) return end_restart(adversarial ? status : Status::not_found);
  copy(team, params, p.stage_point, p.x);
  if (rival_norm() < kNone && s.best.norm == s.restarts.best_before && near_known_image()) {
    if (s.search.stage_best < kNone) hold_class(s.search.stage_class);
    return end_restart(Status::stalled);
  }
  s.polish.pushes = 0;
  if (adversarial) hold_class(s.search.stage_class);
  schedule().descent.steps > 0 ? ask_descent() : ask_centre();
}

}  // namespace
}  // namespace ADVCORE_NS

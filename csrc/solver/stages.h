// From network to network: a search begins on each network of the smoothing schedule, goes on to
// the next one or competes there with a second search, and ends by the rules listed here.
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
constexpr float kHopeless = 1.01f;
// A search that ends this near to the best image, as a part of its distortion, is not polished: it
// has arrived there again.
constexpr float kSamePoint = 0.05f;
// The challenger of a contest has lost when it is this many times as far from x0 as the incumbent
// while its steps are shorter than kShortStep.
constexpr float kLostContest = 1.05f;
// Part of ||r|| below which a step of the challenger says that it is near its end.
constexpr float kShortStep = 0.2f;
// A stage that has found nothing is asked after every so many rounds whether it makes progress.
constexpr int kMinProgressRounds = 15;
// The progress it needs: the part of the margin by which those rounds must raise it. What cannot be
// reached then costs 540 to 1,500 evaluations, not 1,800 to 2,900.
constexpr float kMinRelativeProgress = 0.02f;
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
  if (s.point.margin >= 0 && s.contest.challenging) return back_to_incumbent();
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

// Starting from wider smoothing and starting at x0 often lead to different local minima: ||r1 -
// r2|| / ||r|| is 0.5 to 1 where the results differ by more than 1%. Which of the two will be
// nearer at the end can be seen early, on a network still so smooth that a search is cheap: on two
// networks with max-pooling the logarithms of both ratios correlate by 0.81 and 0.93 at k = 0.32.
template <class Team>
ADVCORE_FN void Machine<Team>::continue_or_compete() {
  State::Contest& contest = s.contest;
  // A first search that itself began on this network would be repeated.
  const bool repeated = !contest.challenging && s.search.first_stage == s.search.stage;
  if (s.search.stage != schedule().contest || repeated) return next_network();
  if (contest.challenging) {
    if (!(s.search.stage_best < contest.incumbent_norm)) return back_to_incumbent();
    contest.challenging = false;
    return next_network();
  }
  contest.challenging = true;
  contest.incumbent_norm = s.search.stage_best;
  contest.incumbent_c = s.search.c;
  contest.incumbent_origin_margin = s.search.origin_margin;
  copy(team, params, p.x, p.incumbent);
  begin_stage(s.search.stage);
}

// The challenger's pairs are dropped, and so is its gradient: neither belongs to the incumbent.
template <class Team>
ADVCORE_FN void Machine<Team>::back_to_incumbent() {
  s.contest.challenging = false;
  s.search.c = s.contest.incumbent_c;
  s.search.origin_margin = s.contest.incumbent_origin_margin;
  copy(team, params, p.incumbent, p.x);
  clear_ring(s.pairs);
  float* const gradient = p.gradient;
  team.each(params.stride, [=](int i) { store(gradient, i, Lane{}); });
  next_network();
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
  const bool challenging = s.contest.challenging;
  // Near the boundary with short steps the distortion on this network is known well enough.
  const bool at_boundary = success && s.point.sigma < 0.9f && round.accepted && round.predicted;
  const bool short_steps = at_boundary && round.length < params.continuation_tolerance * round.norm;
  const bool lost = at_boundary && round.length < kShortStep * round.norm &&
                    round.norm > kLostContest * s.contest.incumbent_norm;
  // The minimiser of the paper's loss is itself the result, so it must be adversarial.
  const bool adversarial = exact_loss() ? s.point.margin >= 0 : success;
  const bool free_budget = !success && !s.restarts.found_by_search && !challenging;
  const int budget = schedule().budget[search.stage] * (free_budget ? kBudgetsWithoutSuccess : 1);

  if (short_steps && !challenging && s.request.exclusions > 0 &&
      round.norm > kFarClass * rival_norm())
    return StageEnd::far_class;
  if (challenging && lost) return StageEnd::lost_contest;
  if (short_steps && !on_last_stage()) return StageEnd::continuation;
  if (short_steps && params.descent_budget > 0)
    return StageEnd::stalled;  // Gradient descent takes over.
  if (adversarial && at_rest(round)) return StageEnd::converged;
  if (success && search.rounds_since_improvement >= params.patience && adversarial)
    return StageEnd::stalled;
  if (!exact_loss() && without_progress()) return StageEnd::stalled;
  if (search.rounds >= budget) return StageEnd::stalled;
  return StageEnd::none;
}

template <class Team>
ADVCORE_FN void Machine<Team>::leave_stage(StageEnd end) {
  if (end == StageEnd::far_class) {
    hold_class(s.search.stage_class);
    return end_restart(Status::stalled);
  }
  if (end == StageEnd::lost_contest) return back_to_incumbent();
  if (end == StageEnd::continuation) return continue_or_compete();
  end_stage(end == StageEnd::converged ? Status::converged : Status::stalled);
}

template <class Team>
ADVCORE_FN void Machine<Team>::end_stage(Status status) {
  if (!on_last_stage())
    return s.search.c > 0 ? continue_or_compete() : begin_stage(s.search.stage + 1);
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
  params.descent_budget > 0 ? ask_descent() : ask_centre();
}

}  // namespace
}  // namespace ADVCORE_NS

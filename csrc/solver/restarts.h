// The restarts of an image: its given starts and its searches one after the other, the class that
// each of them is after, and the best image of all.
#pragma once

#include "problem.h"
#include "solver/box.h"
#include "solver/machine.h"
#include "solver/ranking.h"

namespace ADVCORE_NS {
namespace {

// Where the descent is the search, an image this many times as far as the margin, linearised at x0,
// has said is far. Those of 11 pairs of picture and target are at most 1.9 times as far.
constexpr float kFar = 4;
// Fallbacks for an image that was found far away only.
constexpr int kFarFallbacks = 1;

template <class Team>
ADVCORE_FN void Machine<Team>::record_best() {
  const float margin = s.eval.margin + s.eval.required_margin;
  if (s.eval.margin < 0) {
    if (s.best.norm == kNone) s.best.margin = max(s.best.margin, margin);
    if (s.phase == Phase::start) s.best.prediction = s.eval.prediction;
    return;
  }
  if (s.restarts.searches > 0) s.restarts.found_by_search = true;
  const float norm = distortion(team, params, p, p.trial);
  if (!(norm < s.best.norm)) return;
  copy(team, params, p.trial, p.best);
  s.best.norm = norm;
  s.best.margin = margin;
  s.best.prediction = s.eval.prediction;
}

// Untargeted: from here on the class reached, or the one searched for, is held as the target, with
// the class to leave as its only rival. A bundle of cuts of several classes would ask for all of
// them at once.
template <class Team>
ADVCORE_FN void Machine<Team>::hold_class(int reached) {
  if (params.targeted || s.request.rival_class >= 0) return;
  if (!s.request.targeted) s.request.class_index = reached;
  s.request.rival_class = s.restarts.label;
  s.request.targeted = true;
}

// The next restart looks for another class: the one reached first is not always the nearest.
template <class Team>
ADVCORE_FN void Machine<Team>::release_class() {
  State::Request& request = s.request;
  if (params.targeted || !request.targeted) return;
  bool known = s.restarts.searches == 0;
  for (int i = 0; i < request.exclusions; ++i)
    known = known || request.excluded_classes[i] == request.class_index;
  if (!known && request.exclusions < kMaxSchedules)
    request.excluded_classes[request.exclusions++] = request.class_index;
  request.class_index = s.restarts.label;
  request.rival_class = -1;
  request.targeted = false;
}

// Whether the best image is far. Then it has not converged, whatever the polish says.
template <class Team>
ADVCORE_FN bool Machine<Team>::far_from_descent() const {
  const float radius = s.descent.linear_radius;
  return radius > 0 && s.best.norm > kFar * radius;
}

// The status of the image is that of the restart that found its best point.
template <class Team>
ADVCORE_FN void Machine<Team>::end_restart(Status status) {
  if (s.best.norm < s.restarts.best_before) {
    s.restarts.best_before = s.best.norm;
    if (schedule().stages > 0) s.best_stages = s.stages;
    if (s.search.c > 0) s.best.c = s.search.c;
    s.restarts.far = far_from_descent();
    s.status = status == Status::not_found || s.restarts.far ? Status::stalled : status;
    s.restarts.best_by_search = s.restarts.searches > 0;
  } else if (status == Status::converged && schedule().stages == 0 && !s.restarts.far) {
    s.status = status;  // Nothing nearer along the boundary.
  }
  release_class();
  next_restart(status);
}

// Whether nothing but the searches of the effort is left to run. A point found by a push alone may
// be far away (5.6 times as far, for one of 1,000 digits): the fallbacks go on as if there were
// none.
template <class Team>
ADVCORE_FN bool Machine<Team>::search_succeeded() const {
  const State::Restarts& restarts = s.restarts;
  if (restarts.far && restarts.fallbacks < kFarFallbacks) return false;
  return restarts.found_by_search && (restarts.converged_on_last_network || exact_loss());
}

// Begins the next search; returns false when there is none. Which one it is depends on what was
// found, not on the effort.
template <class Team>
ADVCORE_FN bool Machine<Team>::next_search() {
  State::Restarts& restarts = s.restarts;
  while (restarts.searches < params.schedules) {
    const bool success = search_succeeded();
    if (success && restarts.searches >= params.attempts) return false;
    s.search.schedule = restarts.searches++;
    const Schedule& next = schedule();
    if (next.fallback) {
      if (success) continue;
      ++restarts.fallbacks;
      if (!restarts.found_by_search) s.request.exclusions = 0;  // It may go to every class.
    }
    const bool from_best = next.stages == 0;
    const bool any_class =
        !(params.targeted || from_best || next.class_limit > 0 || next.same_class);
    if (any_class && s.request.exclusions + 1 >= params.classes) continue;
    if (from_best && s.best.norm == kNone) continue;
    if (next.ranked > 0) {
      if (!begin_ranking()) continue;
      return true;
    }
    if (next.class_limit > 0 && !aim_at_next_class()) continue;
    if (next.same_class && !params.targeted) {
      if (s.best.norm == kNone) continue;
      s.request.targeted = true;
      s.request.class_index = s.best.prediction;
    }
    if (from_best) {
      refine();
    } else {
      s.search.c = 0;
      s.polish.may_go_on = false;
      params.norm == Norm::l2 ? begin_stage(0) : begin_walk();
    }
    return true;
  }
  return false;
}

// Goes on from the best image. Where nothing has happened since its polish, that goes on with its
// cuts: with a smaller tolerance, as if it had never stopped.
template <class Team>
ADVCORE_FN void Machine<Team>::refine() {
  if (!params.targeted) {
    s.request.targeted = true;
    s.request.class_index = s.best.prediction;
    s.request.rival_class = s.restarts.label;
  }
  s.search.c = s.best.c;
  s.search.stage_best = kNone;
  if (schedule().descent.steps == 0 && s.polish.may_go_on) {
    s.request.class_index = s.polish.class_index;
    s.polish.iterations = s.polish.rounds_without_progress = 0;
    polish_goes_on = true;
    return;
  }
  copy(team, params, p.best, p.x);
  s.polish.pushes = 0;
  schedule().descent.steps > 0 && params.norm == Norm::l2 ? ask_descent() : ask_centre();
}

// The given starts come first, so that no budget loses them; then the searches.
template <class Team>
ADVCORE_FN void Machine<Team>::next_restart(Status status) {
  if (s.restarts.starts_tried < params.starts) {
    team.copy_row(params.n, p.starts + (size_t)s.restarts.starts_tried * params.n, p.trial);
    ++s.restarts.starts_tried;
    return ask_exact(Phase::given_start, false);
  }
  if (!next_search()) finish(s.best.norm < kNone ? s.status : status);
}

template <class Team>
ADVCORE_FN void Machine<Team>::finish(Status status) {
  const bool searched = status != Status::budget && status != Status::non_finite;
  if (s.best.norm == kNone && searched)
    status = s.restarts.model_failed ? Status::non_finite : Status::not_found;
  if (s.best.norm < s.restarts.best_before && s.search.c > 0) s.best.c = s.search.c;
  const bool settled = status == Status::converged || status == Status::stalled;
  if (settled && s.restarts.best_by_search && !s.restarts.sloped_at_x0)
    status = Status::no_gradient;
  s.status = status;
  s.phase = Phase::done;
}

}  // namespace
}  // namespace ADVCORE_NS

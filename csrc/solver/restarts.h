// The restarts of an image: its given starts and its searches one after the other, the class that
// each of them is after, and the best image of all.
#pragma once

#include "problem.h"
#include "solver/box.h"
#include "solver/machine.h"

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

// Untargeted: from here on the class reached is held as the target, with the class to leave as its
// only rival. A bundle of cuts of several classes would ask for all of them at once.
template <class Team>
ADVCORE_FN void Machine<Team>::hold_class(int reached) {
  if (params.targeted || s.request.rival_class >= 0) return;
  s.request.rival_class = s.request.class_index;
  s.request.class_index = reached;
  s.request.targeted = true;
}

// The next restart looks for another class: the one reached first is not always the nearest.
template <class Team>
ADVCORE_FN void Machine<Team>::release_class() {
  if (s.request.rival_class < 0) return;
  if (s.restarts.searches > 0 && s.request.exclusions < kMaxSchedules)
    s.request.excluded_classes[s.request.exclusions++] = s.request.class_index;
  s.request.class_index = s.request.rival_class;
  s.request.rival_class = -1;
  s.request.targeted = false;
}

// Whether the best image is far. Then it has not converged, whatever the polish says.
template <class Team>
ADVCORE_FN bool Machine<Team>::far_from_descent() const {
  const float radius = s.descent.first_radius;
  return params.descent_temperature > 0 && radius > 0 && s.best.norm > kFar * radius;
}

// The status of the image is that of the restart that found its best point.
template <class Team>
ADVCORE_FN void Machine<Team>::end_restart(Status status) {
  if (s.contest.challenging) return back_to_incumbent();
  if (s.best.norm < s.restarts.best_before) {
    s.restarts.best_before = s.best.norm;
    if (s.search.c > 0) s.best.c = s.search.c;
    s.restarts.far = far_from_descent();
    s.status = status == Status::not_found || s.restarts.far ? Status::stalled : status;
    s.restarts.best_by_search = s.restarts.searches > 0;
  }
  release_class();
  next_restart(status);
}

// Begins the next search; returns false when there is none.
template <class Team>
ADVCORE_FN bool Machine<Team>::next_search() {
  State::Restarts& restarts = s.restarts;
  int& exclusions = s.request.exclusions;
  if (!params.targeted && restarts.searches > 0) {
    // The searches of an effort differ in the excluded classes alone: where the last one added
    // none, another would be the same again. A fallback may go to every class.
    if (exclusions == restarts.exclusions_before || exclusions + 1 >= params.classes)
      restarts.searches = max(restarts.searches, params.attempts);
    if (!restarts.found_by_search && restarts.searches >= params.attempts) exclusions = 0;
    restarts.exclusions_before = exclusions;
  }
  // A point found by a push alone may be far away (5.6 times as far, for one of 1,000 digits): the
  // fallbacks go on as if there were none.
  const bool success =
      restarts.found_by_search && (restarts.converged_on_last_network || exact_loss());
  const int regular = params.attempts + (s.restarts.far ? kFarFallbacks : 0);
  const int searches = success && regular < params.schedules ? regular : params.schedules;
  if (exclusions + 1 >= params.classes || restarts.searches >= searches) return false;
  s.search.schedule = restarts.searches++;
  s.search.c = 0;
  params.norm == Norm::l2 ? begin_stage(0) : begin_walk();
  return true;
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

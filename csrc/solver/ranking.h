// The classes of an untargeted run, ranked: where the searches so far have led, which other classes
// are near the clean image by their linearised margins? The following searches go to them.
#pragma once

#include "problem.h"
#include "solver/box.h"
#include "solver/bundle.h"
#include "solver/machine.h"
#include "solver/polish.h"

namespace ADVCORE_NS {
namespace {

// Ranks classes that no search has reached, those of the largest logits at the best image. Returns
// false where there is nothing to rank.
template <class Team>
ADVCORE_FN bool Machine<Team>::begin_ranking() {
  State::Ranking& ranking = s.ranking;
  ranking = {};
  if (params.targeted || s.best.norm == kNone) return false;
  ranking.exclusions = s.request.exclusions;
  const int left = min(params.classes - 1, kMaxSchedules) - ranking.exclusions;
  ranking.wanted = min(min(schedule().ranked, kMaxRanked), left);
  if (ranking.wanted <= 0) return false;
  s.polish.may_go_on = false;  // The ring is used here.
  s.polish.prox = params.norm == Norm::l2 ? 0 : kLeastProx;
  copy(team, params, p.best, p.x);
  ask_rank();
  return true;
}

// Each class that was ranked is left out of the next margin.
template <class Team>
ADVCORE_FN void Machine<Team>::ask_rank() {
  copy(team, params, p.best, p.trial);
  ask_exact(Phase::rank, true);
}

// The distance from x0 to the class: of the projection onto its margin, linearised at the best
// image.
template <class Team>
ADVCORE_FN void Machine<Team>::rank() {
  State::Ranking& ranking = s.ranking;
  State::Request& request = s.request;
  if (!s.eval.finite) {
    note_failure(p.trial);
    request.exclusions = ranking.exclusions;
    return next_restart(s.status);
  }
  float distance = kNone;
  if (write_cut(team, params, p, s.bundle, 0, p.trial_gradient, p.trial, s.eval.margin) > 0) {
    s.bundle.count = 1;
    propose_trial();
    distance = distortion(team, params, p, p.trial);
  }
  s.bundle.count = 0;
  int place = ranking.count++;
  for (; place > 0 && ranking.distance[place - 1] > distance; --place) {
    ranking.distance[place] = ranking.distance[place - 1];
    ranking.class_index[place] = ranking.class_index[place - 1];
  }
  ranking.distance[place] = distance;
  ranking.class_index[place] = s.eval.runner_up;
  request.excluded_classes[request.exclusions++] = s.eval.runner_up;
  if (ranking.count < ranking.wanted) return ask_rank();
  request.exclusions = ranking.exclusions;
  next_restart(s.status);
}

// The next search is for the nearest class that was not searched for. Returns false where there is
// none, or where it is too far away.
template <class Team>
ADVCORE_FN bool Machine<Team>::aim_at_next_class() {
  State::Ranking& ranking = s.ranking;
  for (; ranking.next < ranking.count; ++ranking.next) {
    if (ranking.distance[ranking.next] > schedule().class_limit * rival_norm()) return false;
    const int index = ranking.class_index[ranking.next];
    bool reached = false;
    for (int i = 0; i < s.request.exclusions; ++i)
      reached = reached || s.request.excluded_classes[i] == index;
    if (reached) continue;
    ++ranking.next;
    s.request.targeted = true;
    s.request.class_index = index;
    return true;
  }
  return false;
}

}  // namespace
}  // namespace ADVCORE_NS

// The adversarial images that the caller gives: each is moved to the boundary on the way to x0 by
// bisection, and polished from there.
#pragma once

#include "problem.h"
#include "solver/box.h"
#include "solver/machine.h"

namespace ADVCORE_NS {
namespace {

// Bisections between x0 and a given start, which may be far away.
constexpr int kBisections = 12;

template <class Team>
ADVCORE_FN void Machine<Team>::given_start() {
  if (!s.eval.finite || s.eval.margin < 0) return end_restart(Status::not_found);
  hold_class(s.eval.runner_up);
  swap(p.x, p.trial);
  s.start = {};
  s.start.bisections_left = kBisections;
  s.polish.pushes = 0;
  ask_midpoint();
}

template <class Team>
ADVCORE_FN void Machine<Team>::ask_midpoint() {
  s.start.t = 0.5f * (s.start.low + s.start.high);
  between(team, params, p, p.x0, p.x, s.start.t, p.trial);
  ask_exact(Phase::bisect, false);
}

template <class Team>
ADVCORE_FN void Machine<Team>::bisect() {
  State::Start& start = s.start;
  (s.eval.finite && s.eval.margin >= 0 ? start.high : start.low) = start.t;
  if (--start.bisections_left > 0) return ask_midpoint();
  if (start.high < 1) {
    between(team, params, p, p.x0, p.x, start.high, p.trial);
    swap(p.x, p.trial);
  }
  if (exact_loss()) return end_restart(Status::stalled);  // The paper's loss has no polish.
  ask_centre();
}

}  // namespace
}  // namespace ADVCORE_NS

// The state machine of one image. `advance` consumes one evaluation (margin, smoothed log-odds and
// the gradient of the latter) at p.trial and leaves the next point to evaluate there, or
// Phase::done. It never calls a network.
//
//   start -> stage_origin -> stage ... [-> descent ...] -> polish_start [-> push -> polish_start]
//         -> polish <-> polish_probe -> done        and before it, for each given start,
//            given_start -> bisect -> polish_start ...
//   In another norm than l2 a walk takes the place of stage_origin, stage and descent.
//
//   phase         network, asked for      p.x             p.gradient      file
//   start         exact, margin (*)       -               -               stages.h
//   stage_origin  k of stage, gradient    -               -               stages.h
//   stage         k of stage, gradient    accepted point  of m_T there    search.h
//   look          exact, margin           accepted point  of m_T there    stages.h
//   descent       exact, gradient         where it began  -               descent.h
//   walk          annealed k, gradient    -               mean direction  walk.h
//   push          exact, margin           the last point  -               polish.h
//   polish_start  exact, gradient         end of search   -               polish.h
//   polish        exact, gradient         serious centre  -               polish.h
//   polish_probe  exact, margin           serious centre  failed trial    polish.h
//   given_start   exact, margin           -               -               given_start.h
//   bisect        exact, margin           given start     -               given_start.h
//   rank          exact, gradient         -               -               ranking.h
//
//   (*) With its gradient where the first network is exact: then stage_origin is this evaluation.
//
// csrc/README.md defines the words: schedule, stage, search, restart, fallback.
#pragma once

#include "outcome.h"
#include "problem.h"
#include "solver/box.h"
#include "solver/descent.h"
#include "solver/given_start.h"
#include "solver/machine.h"
#include "solver/polish.h"
#include "solver/ranking.h"
#include "solver/restarts.h"
#include "solver/search.h"
#include "solver/stages.h"
#include "solver/walk.h"

namespace ADVCORE_NS {
namespace {

// Consumes one evaluation.
template <class Team>
ADVCORE_FN void Machine<Team>::run() {
  ++(s.request.want_gradient ? s.counts.evaluations : s.counts.forwards);
  s.request.record_scales = false;
  if (s.request.k == 0 && s.eval.finite) record_best();
  run_phase();
  while (polish_goes_on) {
    polish_goes_on = false;
    propose_iteration();
  }
  if (s.phase == Phase::done) return;
  if (s.best.norm <= params.stop_at) return finish(Status::good_enough);
  if (!next_is_affordable()) finish(Status::budget);
}

// Whether the budgets allow the evaluation that is asked for. A forward alone is one query, a pair
// two.
template <class Team>
ADVCORE_FN bool Machine<Team>::next_is_affordable() const {
  const int queries = 2 * s.counts.evaluations + s.counts.forwards;
  return s.counts.evaluations < params.max_evaluations &&
         queries + (s.request.want_gradient ? 2 : 1) <= params.max_queries;
}

template <class Team>
ADVCORE_FN void Machine<Team>::run_phase() {
  switch (s.phase) {
    case Phase::start:
      return start();
    case Phase::stage_origin:
      return stage_origin();
    case Phase::stage:
      return stage();
    case Phase::descent:
      return descend();
    case Phase::walk:
      return walk();
    case Phase::push:
      return push();
    case Phase::bisect:
      return bisect();
    case Phase::polish_start:
      return polish_start();
    case Phase::polish:
      return polish();
    case Phase::polish_probe:
      return polish_probe();
    case Phase::given_start:
      return given_start();
    case Phase::look:
      return look();
    case Phase::rank:
      return rank();
    case Phase::done:
      return;
  }
}

// Asks for the first evaluation of the image in the slot.
template <class Team>
ADVCORE_FN void begin(const Team& team, const Params& params, Problem& p, int label) {
  ask_first(params, p.state, label);
  copy(team, params, p.x0, p.trial);
}

template <class Team>
ADVCORE_FN void advance(const Team& team, const Params& params, Problem& p) {
  Work work;
  Machine<Team>{team, params, p, p.state, work}.run();
}

}  // namespace
}  // namespace ADVCORE_NS

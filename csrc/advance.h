// The state machine of one image. `advance` consumes one evaluation (margin, smoothed log-odds and
// the gradient of the latter) at p.trial and leaves the next point to evaluate there, or
// Phase::done. It never calls a network.
//
//   start -> stage_origin -> stage ... [-> walk ...] -> polish_start [-> push -> polish_start]
//         -> polish <-> polish_probe -> done        and before it, for each given start,
//            given_start -> bisect -> polish_start ...
//
//   phase         network, asked for      p.x             p.gradient      file
//   start         exact, margin (*)       -               -               stages.h
//   stage_origin  k of stage, gradient    -               -               stages.h
//   stage         k of stage, gradient    accepted point  of m_T there    search.h
//   walk          exact, gradient         where it began  -               walk.h
//   push          exact, margin           the last point  -               polish.h
//   polish_start  exact, gradient         end of search   -               polish.h
//   polish        exact, gradient         centre          -               polish.h
//   polish_probe  exact, margin           centre          failed trial    polish.h
//   given_start   exact, margin           -               -               polish.h
//   bisect        exact, margin           given start     -               polish.h
//
//   (*) with its gradient where the first network is exact: then stage_origin is this evaluation
//
//   schedule  networks with less and less smoothing k, the last one often exact (k = 0)
//   search    one pass through the stages of a schedule: a fused c-search on each network
//   contest   on one of these networks a second search, straight from x0: the nearer one goes on
//   attempt   a search, its walk and its polish; or a given start and its polish
//   rescue    a search beyond Params::attempts, until one has settled on an image
//
// The walk averages kinks of the exact network. The polish projects x0 onto the bundle of
// linearised margins of the exact network, from either side of the boundary; push is for points
// from which it does not get inside. Best-so-far holds the smallest adversarial point ever
// evaluated on the exact network, whatever the phase.
#pragma once

#include "passage.h"

namespace ADVCORE_NS {
namespace {

constexpr float kReach = 0.1f;  // of the box's diagonal: the first step goes no further
constexpr float kPrune = 5.0f;  // of the best distortion: a class so far by the linear model, or
constexpr float kFar = 1.5f;    // so far when a stage has settled (Params::pass_on), is left alone
constexpr float kHopeless = 1.01f;  // of the best distortion: a search that ends above it, or
constexpr float kSame = 0.05f;      // nearer to the best image than this, is not polished
constexpr float kBehind = 1.05f;    // of the first search's distortion: the second of a contest is
constexpr float kShort = 0.2f;      // left there, once its steps are shorter than this of ||r||
constexpr int kPace = 15;           // a stage in which nothing is found goes on as long as so many
constexpr float kCrawl = 0.02f;     // rounds raise the margin by this part of it
constexpr int kStale = 3;           // rounds of the polish without progress
constexpr int kApproach = 20;       // evaluations of the polish before it reaches the margin

// From x to the trial: s = trial - x, y = g(trial) - g(x) with g the gradient of the loss.
struct Move {
  float ss, sy;  // s's, s'y
  float slope;   // (g + 2 c r)'s at x
  float norm2;   // ||trial - x0||^2
};

template <class Team>
struct Machine {
  const Team& team;
  const Params& params;
  Problem& p;
  State& s;
  Work& work;

  ADVCORE_INLINE bool exact_loss() const { return params.loss == Loss::cross_entropy; }
  ADVCORE_INLINE const Schedule& schedule() const { return params.schedule[s.schedule]; }

  // The paper's loss on a network with kinks can defeat the fused search: then a second one
  // bisects.
  ADVCORE_INLINE bool bisecting() const {
    return params.c_search == CSearch::bisection || (exact_loss() && s.searches > 1);
  }
  // What a search is measured by before it ends. Nothing with given starts: they must never make a
  // result worse, so no search is dropped for their sake.
  ADVCORE_FN float rival() const { return params.starts > 0 ? kNone : s.best_norm; }

  ADVCORE_FN void swap(float*& a, float*& b) {
    float* const t = a;
    a = b;
    b = t;
  }

  ADVCORE_FN void ask(Phase phase, bool gradient, float k, float T) {
    s.phase = phase;
    s.want_gradient = gradient;
    s.k = k;
    s.T = T;
  }
  ADVCORE_FN void ask_exact(Phase phase, bool gradient) { ask(phase, gradient, 0, 0); }

  // What the model returned at `at` is not finite. Without bounds a step of the search itself may
  // overflow: that is not the model's fault.
  ADVCORE_FN void note_failure(const float* at) {
    ++s.nans;
    s.model_failed = s.model_failed || distortion(team, params, p, at) < kNone;
  }

  ADVCORE_FN void run() {
    ++(s.want_gradient ? s.evaluations : s.forwards);
    s.measure = false;
    if (s.k == 0 && s.eval.finite) record_best();
    switch (s.phase) {
      case Phase::start:
        start();
        break;
      case Phase::stage_origin:
        stage_origin();
        break;
      case Phase::stage:
        stage();
        break;
      case Phase::walk:
        walk();
        break;
      case Phase::push:
        push();
        break;
      case Phase::bisect:
        bisect();
        break;
      case Phase::polish_start:
        polish_start();
        break;
      case Phase::polish:
        polish();
        break;
      case Phase::polish_probe:
        polish_probe();
        break;
      case Phase::given_start:
        given_start();
        break;
      case Phase::done:
        break;
    }
    if (s.phase != Phase::done && s.evaluations >= params.max_evaluations) finish(Status::budget);
  }

  ADVCORE_FN void record_best() {
    const float margin = s.eval.margin + s.eval.kappa;
    if (s.eval.margin < 0) {
      if (s.best_norm == kNone) s.best_margin = max(s.best_margin, margin);
      if (s.phase == Phase::start) s.best_prediction = s.eval.prediction;
      return;
    }
    if (s.searches > 0) s.reached = true;
    const float norm = distortion(team, params, p, p.trial);
    if (!(norm < s.best_norm)) return;
    copy(team, params, p.trial, p.best);
    s.best_norm = norm;
    s.best_margin = margin;
    s.best_prediction = s.eval.prediction;
  }

  ADVCORE_FN void finish(Status status) {
    const bool searched = status != Status::budget && status != Status::non_finite;
    if (s.best_norm == kNone && searched)
      status = s.model_failed ? Status::non_finite : Status::not_found;
    if (s.best_norm < s.attempt_best && s.c > 0) s.best_c = s.c;
    s.status = status;
    s.phase = Phase::done;
  }

  // An attempt is over. The status is that of the attempt which found the best image.
  ADVCORE_FN void end_attempt(Status status) {
    if (s.second) return back_to_first();
    if (s.best_norm < s.attempt_best) {
      s.attempt_best = s.best_norm;
      if (s.c > 0) s.best_c = s.c;
      s.status = status == Status::not_found ? Status::stalled : status;
    }
    release_class();
    next_attempt(status);
  }

  // Given starts first, so that no budget loses them; then the schedules.
  ADVCORE_FN void next_attempt(Status status) {
    if (s.starts_tried < params.starts) {
      team.copy_row(params.n, p.starts + (size_t)s.starts_tried * params.n, p.trial);
      ++s.starts_tried;
      return ask_exact(Phase::given_start, false);
    }
    if (!params.targeted && s.searches > 0) {
      // The searches of an effort differ in the classes left out alone: where the last one added
      // none, another would be the same again. A rescue may go to every class.
      if (s.exclusions == s.exclusions_before || s.exclusions + 1 >= params.classes)
        s.searches = max(s.searches, params.attempts);
      if (!s.reached && s.searches >= params.attempts) s.exclusions = 0;
      s.exclusions_before = s.exclusions;
    }
    // An image that only the way outward found, after a search without one, may be far away (5.6
    // times as far, one of 1,000 digits): the search goes on as if there were none.
    const bool done = s.reached && (s.settled || exact_loss());
    const int searches = done ? params.attempts : params.schedules;
    const bool classes_left = s.exclusions + 1 < params.classes;
    if (classes_left && s.searches < searches) {
      s.schedule = s.searches++;
      s.c = 0;
      return begin_stage(0);
    }
    finish(s.best_norm < kNone ? s.status : status);
  }

  // stages.h: from network to network
  ADVCORE_FN void start();
  ADVCORE_FN void begin_stage(int stage);
  ADVCORE_FN void stage_origin();
  ADVCORE_FN void next_network();
  ADVCORE_FN void leave_network();
  ADVCORE_FN void back_to_first();
  ADVCORE_FN bool nothing_new() const;
  ADVCORE_FN void end_stage(Status status);

  // search.h: fused c-search on one of them
  ADVCORE_FN void accept(float norm2);
  ADVCORE_FN float sigma_of(float log_odds) const;
  ADVCORE_FN float loss_of(float log_odds) const;
  ADVCORE_FN void start_search();
  ADVCORE_FN void random_start();
  ADVCORE_FN void far_start();
  ADVCORE_FN float goal() const;
  ADVCORE_FN Move move() const;
  ADVCORE_FN void keep_pair(const Move& move);
  ADVCORE_FN bool note_stage_best(float norm, const float* point);
  ADVCORE_FN void stage();
  ADVCORE_FN void propose();
  ADVCORE_FN void step_back();

  // walk.h: long steps on the exact network
  ADVCORE_FN void ask_walk();
  ADVCORE_FN void walk();
  ADVCORE_FN void end_walk();

  // polish.h: handover, polish, given starts
  ADVCORE_FN void hold_class(int reached);
  ADVCORE_FN void release_class();
  ADVCORE_FN void ask_center();
  ADVCORE_FN void polish_start();
  ADVCORE_FN void far_side();
  ADVCORE_FN void push();
  ADVCORE_FN bool add_cut(const float* gradient, const float* at);
  ADVCORE_FN void note_curvature();
  ADVCORE_FN void propose_cut();
  ADVCORE_FN void polish();
  ADVCORE_FN void probe(float least);
  ADVCORE_FN void polish_probe();
  ADVCORE_FN void end_cut_round();
  ADVCORE_FN void given_start();
  ADVCORE_FN void ask_between();
  ADVCORE_FN void bisect();
};

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

// The phases, each where it belongs.
#include "polish.h"
#include "search.h"
#include "stages.h"
#include "walk.h"

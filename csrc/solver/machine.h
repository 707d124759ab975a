// The state machine of one image as a struct: the declarations of its phases, and the few functions
// that all of them use. The phases are defined in the headers named below; advance.h has the table.
#pragma once

#include "problem.h"
#include "solver/box.h"
#include "solver/history.h"

namespace ADVCORE_NS {
namespace {

// A step from x to the trial: s = trial - x, y = g(trial) - g(x), where g is the gradient of the
// loss.
struct Step {
  float ss, sy;  // s's and s'y
  float slope;   // (g + 2 c r)'s at x
  float norm2;   // ||trial - x0||^2
};

// The point of a round of a walk. The gradient is that by the variables that can follow it.
struct WalkPoint {
  float norm;       // Its distortion.
  float gradient2;  // g'g
  float dual;       // The dual norm of g.
  float free;       // The number of these variables.
};

// The result of a round of a stage, for the rules by which the stage may end.
struct Round {
  float length;    // ||s||
  float norm;      // ||trial - x0||
  bool accepted;   // The trial is the accepted point.
  bool predicted;  // It came from a model, so its length says how near the end is.
};

// The rules by which a stage ends, and what follows; stages.h has the list.
enum class StageEnd : int8_t {
  none,          // The stage goes on.
  far_class,     // Another class turns out to be too far away: the restart ends.
  lost,          // The best search was nearer on this network: the restart ends.
  continuation,  // The steps are short: the next network.
  converged,     // The stopping rule is met.
  stalled,       // No more progress, or the budget is spent.
};

template <class Team>
struct Machine {
  const Team& team;
  const Params& params;
  Problem& p;
  State& s;
  Work& work;
  // The next iteration of a polish is asked for by run(): a call would be a recursion, whose stack
  // a GPU cannot know.
  bool polish_goes_on = false;

  ADVCORE_INLINE bool exact_loss() const { return params.loss == Loss::cross_entropy; }
  ADVCORE_INLINE const Schedule& schedule() const { return params.schedule[s.search.schedule]; }
  ADVCORE_INLINE bool on_last_stage() const { return s.search.stage + 1 == schedule().stages; }

  // Whether the c-search bisects. The paper's loss on a network with kinks can defeat the fused
  // search: then a second one bisects.
  ADVCORE_INLINE bool bisecting() const {
    return params.c_search == CSearch::bisection || (exact_loss() && s.restarts.searches > 1);
  }
  // The best distortion, beyond which a search may be dropped before it ends. With given starts it
  // is none: they must never make a result worse, so no search is dropped for their sake.
  ADVCORE_FN float rival_norm() const { return params.starts > 0 ? kNone : s.best.norm; }

  ADVCORE_FN void swap(float*& a, float*& b) {
    float* const t = a;
    a = b;
    b = t;
  }

  ADVCORE_FN void ask(Phase phase, bool gradient, float k, Temperature temperature, float T) {
    s.phase = phase;
    s.request.want_gradient = gradient;
    s.request.k = k;
    s.request.temperature = temperature;
    s.request.T = T;
  }
  ADVCORE_FN void ask_exact(Phase phase, bool gradient) {
    ask(phase, gradient, 0, Temperature::exact, 0);
  }
  // Asks for the trial of a stage, on the network and at the temperature of the last evaluation.
  ADVCORE_FN void ask_stage() {
    ask(Phase::stage, true, s.request.k, Temperature::given, s.request.T);
  }

  // Notes that what the model returned at that point is not finite. Without bounds a step of the
  // search itself may overflow: that is not the model's fault.
  ADVCORE_FN void note_failure(const float* point) {
    ++s.search.nonfinite_count;
    s.restarts.model_failed = s.restarts.model_failed || distortion(team, params, p, point) < kNone;
  }

  // advance.h: one evaluation
  ADVCORE_FN void run();
  ADVCORE_FN void run_phase();
  ADVCORE_FN bool next_is_affordable() const;

  // restarts.h: searches and given starts one after the other
  ADVCORE_FN void record_best();
  ADVCORE_FN void hold_class(int reached);
  ADVCORE_FN void release_class();
  ADVCORE_FN bool far_from_descent() const;
  ADVCORE_FN void end_restart(Status status);
  ADVCORE_FN bool search_succeeded() const;
  ADVCORE_FN bool next_search();
  ADVCORE_FN void refine();
  ADVCORE_FN void next_restart(Status status);
  ADVCORE_FN void finish(Status status);

  // ranking.h: the classes of an untargeted run by their linearised distance
  ADVCORE_FN bool begin_ranking();
  ADVCORE_FN void ask_rank();
  ADVCORE_FN void rank();
  ADVCORE_FN bool aim_at_next_class();

  // stages.h: from network to network
  ADVCORE_FN void start();
  ADVCORE_FN void begin_stage(int stage);
  ADVCORE_FN void stage_origin();
  ADVCORE_FN float next_target_margin() const;
  ADVCORE_FN void next_network();
  ADVCORE_FN bool best_was_nearer(float norm, float factor) const;
  ADVCORE_FN bool near_known_image() const;
  ADVCORE_FN bool at_rest(const Round& round) const;
  ADVCORE_FN StageEnd stage_end(const Round& round);
  ADVCORE_FN bool without_progress();
  ADVCORE_FN void go_on();
  ADVCORE_FN void next_look();
  ADVCORE_FN bool look_early();
  ADVCORE_FN void look();
  ADVCORE_FN void drop_search();
  ADVCORE_FN void leave_stage(StageEnd end);
  ADVCORE_FN void end_stage(Status status);

  // search.h: the c-search on one network
  ADVCORE_FN void accept(float norm2);
  ADVCORE_FN float sigma_of(float log_odds) const;
  ADVCORE_FN float loss_of(float log_odds) const;
  ADVCORE_FN void start_search();
  ADVCORE_FN void random_point();
  ADVCORE_FN void random_start();
  ADVCORE_FN void far_point();
  ADVCORE_FN void far_start();
  ADVCORE_FN void start_arrived();
  ADVCORE_FN Step step_products() const;
  ADVCORE_FN void keep_pair(const Step& step);
  ADVCORE_FN bool note_stage_best(float norm, const float* point);
  ADVCORE_FN void stage();
  ADVCORE_FN void reject_nonfinite();
  ADVCORE_FN Round take_step(const Step& step);
  ADVCORE_FN void adapt_damping(float old_value, float new_value, float slope);
  ADVCORE_FN void note_progress(const Step& step);
  ADVCORE_FN void propose();
  ADVCORE_FN int fill_model(const float** v, float* free_mask, float* r);
  ADVCORE_FN void step_back();

  // descent.h: gradient descent on the exact network
  ADVCORE_FN void ask_descent();
  ADVCORE_FN void ask_step();
  ADVCORE_FN void descend();
  ADVCORE_FN void end_descent();

  // walk.h: the search in another norm than l2
  ADVCORE_FN void begin_walk();
  ADVCORE_FN void ask_walk();
  ADVCORE_FN int walk_budget() const;
  ADVCORE_FN WalkPoint walk_products() const;
  ADVCORE_FN void walk();
  ADVCORE_FN void no_slope(float norm);
  ADVCORE_FN float next_radius(const WalkPoint& point, float annealing);
  ADVCORE_FN void step_walk(const WalkPoint& point, float step);
  ADVCORE_FN void shrink_to_radius();
  ADVCORE_FN void end_walk();

  // polish.h: to the boundary of the exact network, and along it
  ADVCORE_FN void ask_centre();
  ADVCORE_FN void polish_start();
  ADVCORE_FN void far_side();
  ADVCORE_FN void push();
  ADVCORE_FN bool add_cut(const float* gradient, const float* point);
  ADVCORE_FN void note_curvature();
  ADVCORE_FN float prox_unit() const;
  ADVCORE_FN void propose_trial();
  ADVCORE_FN void end_polish(Status status);
  ADVCORE_FN void propose_iteration();
  ADVCORE_FN void polish();
  ADVCORE_FN void probe(float least);
  ADVCORE_FN void polish_probe();
  ADVCORE_FN void end_iteration();

  // given_start.h: the caller's starts
  ADVCORE_FN void given_start();
  ADVCORE_FN void ask_midpoint();
  ADVCORE_FN void bisect();
};

}  // namespace
}  // namespace ADVCORE_NS

// The options of a run as the engine takes them: Params, with its schedules.
#pragma once

#include <stdint.h>

namespace advcore {

// The largest number of stages of a schedule.
constexpr int kMaxStages = 8;
// The largest number of schedules of a run.
constexpr int kMaxSchedules = 32;
// The largest number of classes that are ranked at a time.
constexpr int kMaxRanked = 16;

enum class Loss : int8_t { margin, cross_entropy };
enum class CSearch : int8_t { fused, bisection };
// The norm of r that is smallest in the result.
enum class Norm : int8_t { l2, linf, l1 };

// Gradient steps on the exact network before a polish (solver/descent.h).
struct DescentSettings {
  int steps = 0;
  float first_step = 0.3f;    // Length of the first step, as a part of ||r||.
  float last_step = 0.01f;    // Length of the last step, as a part of ||r||.
  float radius_rate = 0.03f;  // Largest relative change of the radius in the first round.
  int power = 1;              // Time of the annealing is (round / steps)^power: > 1 cools later.
  // T as a fraction of the margin at x0; 0: the exact margin. Where it is positive the descent is
  // the search: an image far from its beginning has not converged (solver/restarts.h).
  float temperature = 0;
  float start = 1;  // It begins at this many times the r where the stages ended.
  float reach = 0;  // Largest step, as a multiple of that ||r||; 0: none.
};

// One search: a pass through the stages, a descent and a polish, with the rules by which they stop.
// Without stages it goes on from the best image.
struct Schedule {
  int stages = 1;
  float smoothing[kMaxStages] = {0};        // k of each stage; 0 is the exact network.
  int budget[kMaxStages] = {50};            // Evaluations of each stage.
  float temperature[kMaxStages] = {0.02f};  // T of each stage as a fraction of the margin at x0.
  float origin = -1;  // The search begins at lo + origin (hi - lo); < 0: at x0.
  // A walk (solver/walk.h) anneals k from that of the first stage to 0 in the budget of that stage,
  // and T from that of the first stage to that of the last in the budget of all.
  int patience = 12;  // A stage stops after so many rounds near its best without a better.
  // A step shorter than this part of ||r|| ends every stage but the last: the continuation step.
  float continuation_tolerance = 0.2f;
  DescentSettings descent;         // A walk takes its steps and the rate of its radius from it.
  float polish_tolerance = 1e-4f;  // The polish stops at this relative gain.
  int polish_budget = 30;          // Iterations of one polish.
  bool fallback = false;           // Run only while no search has converged on an image.
  // Untargeted: instead of a search, so many classes are ranked by their linearised distance.
  int ranked = 0;
  // > 0: a search for the next of these classes, if its distance is below so many times the best.
  float class_limit = 0;
  bool same_class = false;  // Untargeted: the search is for the class of the best image.
};

struct Params {
  int n = 0;       // Variables of an image.
  int stride = 0;  // row_stride(n)
  int classes = 0;
  bool targeted = true;
  Loss loss = Loss::margin;
  CSearch c_search = CSearch::fused;
  Norm norm = Norm::l2;      // Of another one the search is a walk (solver/walk.h).
  float confidence = 1e-4f;  // The margin required, in logits.
  // Where the model squashes its logits: how fast its outputs near their limits, and the logits
  // whose outputs are the confidence away from them. 0: it does not.
  float squash_rate = 0;
  float logit_cap = 0;
  float logit_floor = 0;
  float c_init = 0;                  // The first c; <= 0: from the linearised problem.
  bool unsquared = false;            // c_init weighs ||r||: c of ||r||^2 is c_init / (2 ||r||).
  int history = 5;                   // Pairs of L-BFGS.
  float tolerance = 1e-3f;           // A stage stops at this relative change of c and of x.
  int max_evaluations = 0x7fffffff;  // Forward and backward passes of one image, as pairs.
  int max_queries = 0x7fffffff;      // Forward and backward passes of one image, each counted.
  float stop_at = -1;                // An image ends once its best is no further than this.
  // The searches of a run in their order. The first `attempts` are run in any case, the others
  // until one succeeds; a fallback never is once one has. So what is run for an image does not
  // depend on `attempts`, only where it ends.
  int schedules = 1;
  int attempts = 1;
  Schedule schedule[kMaxSchedules];
  bool smoothable = false;  // Whether the network's activations can be smoothed.
  int starts = 0;           // Adversarial starting images given for each image.
  uint64_t seed = 0;        // Seed of random points.
};

// Calls f(name, field) for each field that the caller sets. The schedules are added one by one, and
// the stride follows from n.
template <class F>
void for_each_param(F f) {
  f("n", &Params::n);
  f("classes", &Params::classes);
  f("targeted", &Params::targeted);
  f("loss", &Params::loss);
  f("c_search", &Params::c_search);
  f("norm", &Params::norm);
  f("confidence", &Params::confidence);
  f("squash_rate", &Params::squash_rate);
  f("logit_cap", &Params::logit_cap);
  f("logit_floor", &Params::logit_floor);
  f("c_init", &Params::c_init);
  f("unsquared", &Params::unsquared);
  f("history", &Params::history);
  f("tolerance", &Params::tolerance);
  f("max_evaluations", &Params::max_evaluations);
  f("max_queries", &Params::max_queries);
  f("stop_at", &Params::stop_at);
  f("attempts", &Params::attempts);
  f("smoothable", &Params::smoothable);
  f("starts", &Params::starts);
  f("seed", &Params::seed);
}

// The same for a search. Its stages are added one by one.
template <class F>
void for_each_schedule_setting(F f) {
  f("origin", &Schedule::origin);
  f("patience", &Schedule::patience);
  f("continuation_tolerance", &Schedule::continuation_tolerance);
  f("polish_tolerance", &Schedule::polish_tolerance);
  f("polish_budget", &Schedule::polish_budget);
  f("fallback", &Schedule::fallback);
  f("ranked", &Schedule::ranked);
  f("class_limit", &Schedule::class_limit);
  f("same_class", &Schedule::same_class);
}

template <class F>
void for_each_descent_setting(F f) {
  f("steps", &DescentSettings::steps);
  f("first_step", &DescentSettings::first_step);
  f("last_step", &DescentSettings::last_step);
  f("radius_rate", &DescentSettings::radius_rate);
  f("power", &DescentSettings::power);
  f("temperature", &DescentSettings::temperature);
  f("start", &DescentSettings::start);
  f("reach", &DescentSettings::reach);
}

}  // namespace advcore

// One image in a slot: its vectors (Problem) and its scalars (State), with the request to the
// network. Plain data, shared by every back end.
//
// Letters of the papers: x0 clean image, r = x - x0, c weight of the distortion, s and y the pairs
// of L-BFGS, T temperature of the smoothed log-odds, k smoothing of the activations.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "params.h"

// For a CUDA compiler. ADVCORE_FN: the solver's functions, which one thread runs, are not inlined,
// as ptxas would take more than 10 minutes and 6 GB. ADVCORE_INLINE: functions of every lane are.
#ifdef __CUDACC__
#define ADVCORE_FN __device__ __noinline__
#define ADVCORE_INLINE __device__ __forceinline__
#define ADVCORE_BOTH static __host__ __device__ inline  // For host and device.
#define ADVCORE_UNROLL _Pragma("unroll")
#else
#define ADVCORE_FN
#define ADVCORE_INLINE inline
#define ADVCORE_BOTH static inline
#define ADVCORE_UNROLL _Pragma("GCC unroll 16")
#endif

namespace advcore {

// Rows are padded to a multiple of this many floats, with lo = hi = x0 = 0 in the padding.
constexpr int kPad = 16;
// The largest number of L-BFGS pairs (s, y) of an image.
constexpr int kMaxHistory = 8;
// The largest number of cutting planes in the bundle of the polish.
constexpr int kMaxCuts = 16;
// The distortion of an image that has no adversarial point yet.
constexpr float kNone = 3e38f;
// The logit of the padding behind the classes.
constexpr float kPadLogit = -1e30f;

// n rounded up to kPad.
static constexpr int padded(int n) { return (n + kPad - 1) / kPad * kPad; }
// The floats from row to row: an odd number of 64-byte lines, so that the rows of an image do not
// share the sets of a cache.
static constexpr int row_stride(int n) { return ((n + kPad - 1) / kPad | 1) * kPad; }

enum class Status : int8_t {
  converged,            // The stopping rule of the last phase was met.
  already_adversarial,  // The clean image has the required margin: distortion 0.
  budget,               // max_evaluations or max_queries was reached.
  stalled,              // No more progress, but the stopping rule was not met.
  not_found,            // No adversarial image was found.
  non_finite,           // The model returned NaN or infinity where the search could not avoid it.
  interrupted,          // Ctrl-C, the time limit or the callback ended the run.
  no_gradient,          // Found, but the gradient at x0 was zero: the way began at random.
  good_enough,          // The best image is no further than stop_at.
};
constexpr const char* kStatusNames[] = {"converged",   "already_adversarial", "budget",
                                        "stalled",     "not_found",           "non_finite",
                                        "interrupted", "no_gradient",         "good_enough"};

// The purpose of the next evaluation of an image; solver/advance.h has the table of all phases.
enum class Phase : int8_t {
  start,         // The exact network at x0: margin, temperature, scales of the smoothing.
  stage_origin,  // The network of this stage at x0.
  stage,         // A step of the c-search.
  descent,       // A gradient step on the exact network.
  walk,          // A gradient step on a network that is smoothed less and less.
  look,          // Forward only: is a point of a smoothed network's search adversarial?
  push,          // Forward only: away from x0 until the exact network calls it adversarial.
  bisect,        // Forward only: between x0 and a given start.
  polish_start,  // The exact margin and its gradient at the serious centre.
  polish,        // A trial of the bundle.
  polish_probe,  // Forward only: between the serious centre and a trial that failed.
  rank,          // The margin of another class and its gradient, at the best image.
  given_start,   // Forward only: is the given start adversarial?
  done,
};

// The result of the last evaluation, at the trial; written by solver/margin_loss.h. The required
// margin is taken off, so that adversarial is margin >= 0 everywhere.
struct Evaluation {
  float margin = 0;           // m less the required margin.
  float log_odds = 0;         // m_T, the smoothed margin, less the same.
  float required_margin = 0;  // The confidence, or the rounding of the logits where that is more.
  float rounding = 0;         // 16 eps max|z| over the classes that are not masked.
  int prediction = -1;        // The class of the largest logit.
  int runner_up = -1;         // The best class that is not the one asked for.
  bool finite = true;         // Whether all logits are finite.
};

// The source of the temperature of an evaluation.
enum class Temperature : int8_t {
  exact,        // T = 0: the margin itself.
  given,        // T is in the request.
  from_margin,  // The margin loss sets T, as the stage's fraction of the margin that it finds.
};

// The scalars of one image, in parts of which each has one owner. Lanes of a team work on private
// copies; the leader writes them back.
struct State {
  Phase phase = Phase::done;
  Status status = Status::not_found;
  float clean_margin = 0;  // |m| at x0 on the exact network.

  // The request to network and margin loss at Problem::trial. Owner: solver/machine.h (ask); the
  // classes belong to solver/restarts.h (hold_class, release_class).
  struct Request {
    bool want_gradient = false;
    bool record_scales = false;  // The scales of the smoothing are taken from this forward.
    bool targeted = true;        // Whether class_index is to be reached or to be left.
    Temperature temperature = Temperature::exact;
    float T = 0;           // Temperature of the log-odds; 0: the exact margin.
    float k = 0;           // Smoothing of the activations; 0: the exact network.
    int class_index = 0;   // The target, or the class to leave.
    int rival_class = -1;  // >= 0: the margin is z[class_index] - z[rival_class] alone.
    int excluded_classes[kMaxSchedules] = {};  // Untargeted: the classes of earlier restarts.
    int exclusions = 0;                        // The number of excluded_classes.
  } request;

  Evaluation eval;

  // The smallest adversarial point evaluated on the exact network, in Problem::best. Owner:
  // solver/restarts.h.
  struct Best {
    float norm = kNone;     // Its distortion.
    float margin = -kNone;  // Its margin; before there is one, the largest margin evaluated.
    int prediction = -1;    // Its class; before there is one, that of x0.
    float c = 0;            // c where the restart that reached it ended.
  } best;

  // Searches and given starts of the image, one after the other. Owner: solver/restarts.h.
  struct Restarts {
    int label = -1;                          // The target, or the class to leave.
    int searches = 0;                        // Schedules begun or passed over.
    int fallbacks = 0;                       // Those of them that were fallbacks and begun.
    int starts_tried = 0;                    // Given starts begun.
    float best_before = kNone;               // Best::norm when the last restart ended.
    bool found_by_search = false;            // A search, not a given start, has reached an image.
    bool converged_on_last_network = false;  // And a search has done so on its last network.
    bool far = false;                        // The best image is far from where its descent began.
    bool model_failed = false;  // The model has returned NaN or infinity at a finite point.
    bool sloped_at_x0 = false;  // A network of a search had a gradient at x0, or was fooled there.
    bool best_by_search = false;  // The best point is that of a search, not of a given start.
  } restarts;

  // The accepted point, in Problem::x. Owner: solver/search.h (accept).
  struct Point {
    float margin = 0;    // m
    float log_odds = 0;  // m_T
    float sigma = 0;     // sigmoid(-m_T / T), the derivative of the loss by -m_T.
    float loss = 0;      // l = T log(1 + exp(-m_T / T))
    float norm2 = 0;     // r'r
  } point;

  // The c-search on the networks of a schedule. Owners: solver/search.h and solver/stages.h.
  struct Search {
    int schedule = 0;                   // Index in Params::schedule.
    int stage = 0;                      // Index in the schedule.
    int first_stage = 0;                // The stage at which the search left x0.
    bool started_away_from_x0 = false;  // It began at a random point or at an image of one value.
    bool start_pending = false;         // The trial is that beginning.
    bool fresh_model = false;           // The trial is accepted: no model has predicted it.
    float origin_margin = 0;            // m at x0 on the network of the first stage.
    float c = 0;                        // The weight of ||r||^2.
    float first_c = 0;                  // c at the start of this stage; bounds c.
    float last_c = 0;                   // c of the round before.
    float damping = 0;                  // mu of Levenberg and Marquardt.
    float target_margin = 0;            // The margin that the choice of c aims at.
    float stage_best = kNone;           // Distortion of Problem::stage_point.
    int stage_class = -1;               // Its runner-up: the class reached, if untargeted.
    float margin_checkpoint = -kNone;   // m kMinProgressRounds ago; -kNone: none in this stage.
    int looks = 0;                      // Points of this stage that the exact network was asked.
    float look_k = 0, look_T = 0;       // Of the stage that goes on after a look; 0: at its end.
    int rounds = 0;                     // Rounds since the stage, or a solve for one c, began.
    int rounds_since_improvement = 0;   // Rounds near stage_best; short steps count three times.
    int nonfinite_count = 0;            // Evaluations of the image that were not finite.
    float penalty_norm = -1;            // Distortion of the penalty minimiser; < 0: none.
  } search;

  // The bracket of c where c is bisected. Owner: solver/c_search.h.
  struct Bracket {
    float low = 0;   // The largest c with an adversarial minimiser; 0: none yet.
    float high = 0;  // The smallest c without one; 0: none yet.
    int solves = 0;  // Solves done.
  } bracket;

  // The stages that a search has left: on which network, and how far from x0 it was there. Owner:
  // solver/stages.h.
  struct Stages {
    int count = 0;
    float k[kMaxStages] = {};
    float norm[kMaxStages] = {};  // Search::stage_best
  } stages, best_stages;          // Of this search, and of the one that found the best image.

  // The pairs of L-BFGS, a ring in Problem::ring. Owner: solver/history.h.
  struct Pairs {
    int count = 0;
    int newest = -1;                          // Its place in the ring.
    float ss[kMaxHistory][kMaxHistory] = {};  // s_i's_j
    float sy[kMaxHistory][kMaxHistory] = {};  // s_i'y_j for i not older than j; the diagonal is D.
  } pairs;

  // Gradient descent on the exact network. Owner: solver/descent.h.
  struct Descent {
    float radius = 0;        // Radius of the sphere around x0 that the steps return to.
    float first_radius = 0;  // ||r|| where the stages ended.
    // The first of them where the descent is the search: where the linearised margin is zero.
    float linear_radius = 0;
    float T = 0;  // Temperature of the log-odds; 0: the exact margin.
    int rounds = 0;
  } descent;

  // The search in another norm than l2. Owner: solver/walk.h.
  struct Walk {
    float radius = kNone;  // Radius of the ball around x0 that the steps return to.
    bool reached = false;  // A network has called a point adversarial.
    bool sloped = false;   // A gradient was not zero.
    bool moving = false;   // Problem::gradient holds the mean of the last directions.
    int rounds = 0;
  } walk;

  // Cutting planes a'(x - x0) + h >= 0 of the exact margin, ||a|| = 1, the a in Problem::ring.
  // Owner: solver/bundle.h.
  struct Bundle {
    int count = 0;
    int writes = 0;                // Cuts written since the bundle was empty.
    float offset[kMaxCuts] = {};   // h
    float dual[kMaxCuts] = {};     // Multiplier in the last projection.
    int order[kMaxCuts] = {};      // `writes` when it was written: the smallest is the oldest.
    int runner_up[kMaxCuts] = {};  // Evaluation::runner_up where it was written.
  } bundle;

  // The polish. Owner: solver/polish.h.
  struct Polish {
    int pushes = 0;                   // Steps away from x0 in search of the adversarial side.
    int approaches = 0;               // Projections from outside before the boundary is reached.
    int iterations = 0;               // Trials of the bundle.
    int rounds_without_progress = 0;  // Iterations without a relative gain of the tolerance.
    float prox = 0;                   // Weight of the proximal term.
    float curvature = 0;              // Curvature of the Lagrangian along the last steps.
    float centre_norm = 0;            // Distortion of the serious centre, in Problem::x.
    float centre_margin = 0;          // Its margin.
    float progress_norm = 0;          // centre_norm at the last progress.
    float trial_norm = 0;             // Distortion of the trial.
    bool may_go_on = false;           // It ended at the best image, and its cuts are there.
    int class_index = -1;             // Request::class_index at its end.
  } polish;

  // Classes of an untargeted run by their linearised distance, the nearest first. Owner:
  // solver/ranking.h.
  struct Ranking {
    int count = 0;
    int next = 0;        // The first that was not searched for.
    int wanted = 0;      // Classes to rank, in work.
    int exclusions = 0;  // Request::exclusions before.
    int class_index[kMaxRanked] = {};
    float distance[kMaxRanked] = {};
  } ranking;

  // Line probes between the serious centre (t = 0) and a trial that failed (t = 1). Owner:
  // solver/polish.h.
  struct Line {
    float low = 0;          // The largest t known to be adversarial.
    float high = 1;         // The smallest t above it known not to be.
    float low_margin = 0;   // The margin at low.
    float high_margin = 0;  // The margin at high.
    float t = 1;            // The probe in work.
    int probes = 0;         // Probes done.
  } line;

  // Bisection between x0 (t = 0) and a given start (t = 1). Owner: solver/given_start.h.
  struct Start {
    float low = 0;   // The largest t known not to be adversarial.
    float high = 1;  // The smallest t above it known to be.
    float t = 1;     // The point in work.
    int bisections_left = 0;
  } start;

  // The work done for the image. Owner: solver/advance.h (run).
  struct Counts {
    int evaluations = 0;  // Forward and backward passes, as pairs.
    int forwards = 0;     // Forward passes alone.
    int iterations = 0;   // Steps of all phases.
  } counts;
};

// One image in a slot. Vectors have `stride` floats, aligned to 64 bytes. The kernels of a network
// read records of whole 16 bytes.
struct alignas(16) Problem {
  State state;
  int64_t index = -1;  // The image's place in the run; -1: the slot is empty.
  const float* lo = nullptr;
  const float* hi = nullptr;
  float* x0 = nullptr;
  float* x = nullptr;      // The accepted point; in the polish the serious centre.
  float* trial = nullptr;  // The point that the network is asked to evaluate.
  // Gradient of m_T at x; in a walk the mean of the last directions, in the polish the trial that
  // failed.
  float* gradient = nullptr;
  float* trial_gradient = nullptr;  // Gradient of m_T at trial, written from outside.
  float* best = nullptr;            // The smallest adversarial point of the exact network.
  float* stage_point = nullptr;     // The same of this stage's network, the descent or the walk.
  float* ring = nullptr;            // max(2 history, kMaxCuts) vectors: y_0.., s_0..; or the cuts.
  const float* starts = nullptr;    // (starts, n) of this image, in the caller's memory.
};

}  // namespace advcore

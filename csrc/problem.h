// The data of a run: Params (options, one a run), Problem (one image in a slot), and what an
// oracle is asked for. Plain data, shared by every backend.
//
// Letters of the papers: x0 clean image, r = x - x0, c weight of the distortion, s and y the pairs
// of L-BFGS (Nocedal), T temperature of the smoothed log-odds, k smoothing of the activations.
#pragma once

#include <stddef.h>
#include <stdint.h>

// What a CUDA compiler is told: functions of the solver, which one thread runs, are not inlined
// (otherwise ptxas takes more than 10 minutes and 6 GB); those of every lane are.
#ifdef __CUDACC__
#define ADVCORE_FN __device__ __noinline__
#define ADVCORE_INLINE __device__ __forceinline__
#define ADVCORE_BOTH static __host__ __device__ inline  // host and device
#define ADVCORE_UNROLL _Pragma("unroll")
#else
#define ADVCORE_FN
#define ADVCORE_INLINE inline
#define ADVCORE_BOTH static inline
#define ADVCORE_UNROLL _Pragma("GCC unroll 16")
#endif

namespace advcore {

constexpr int kPad = 16;        // rows are padded to this many floats, with lo = hi = x0 = 0
constexpr int kMaxHistory = 8;  // pairs (s, y)
constexpr int kMaxCuts = 16;    // linearised margins of the polish
constexpr int kMaxStages = 8;
constexpr int kMaxSchedules = 12;
constexpr float kNone = 3e38f;  // no distortion yet
constexpr float kPadLogit = -1e30f;

// n rounded up to kPad; and the floats from row to row, an odd number of 64-byte lines, so that the
// rows of an image do not share the sets of a cache.
static constexpr int padded(int n) { return (n + kPad - 1) / kPad * kPad; }
static constexpr int row_stride(int n) { return ((n + kPad - 1) / kPad | 1) * kPad; }

enum class Status : int8_t {
  converged,            // the stopping rule of the last phase was met
  already_adversarial,  // the clean image has the required margin: distortion 0
  budget,               // max_evaluations reached
  stalled,              // left by patience: no more progress, the stopping rule not met
  not_found,            // no adversarial image found
  non_finite,           // the model returned NaN or infinity where the search could not avoid it
  interrupted,          // Ctrl-C, time limit or callback
};

enum class Phase : int8_t {
  start,         // exact network at x0: margin, temperature, widths of the smoothing
  stage_origin,  // network of this stage at x0
  stage,         // fused c-search
  walk,          // long steps on the exact network
  push,          // forward only: away from x0 until adversarial on the exact network
  bisect,        // forward only: from a given start toward x0
  polish_start,  // exact margin and its gradient at the centre
  polish,        // trial of the bundle
  polish_probe,  // forward only: between the centre and a failed trial
  given_start,   // forward only: is it adversarial?
  done,
};

enum class Loss : int8_t { margin, cross_entropy };
enum class CSearch : int8_t { fused, bisection };

// One pass through the stages.
struct Schedule {
  int stages = 1;
  float smoothing[kMaxStages] = {0};        // k of each stage; 0 is the exact network
  int budget[kMaxStages] = {50};            // evaluations of each stage
  float temperature[kMaxStages] = {0.02f};  // T of each as a fraction of the margin at x0
  float origin = -1;  // where the search begins: lo + origin (hi - lo); < 0: at x0
  int contest = -1;   // at the end of this stage a second search, from x0 straight to its network,
                      // competes with the first; < 0: none
};

struct Params {
  int n = 0;       // variables of an image
  int stride = 0;  // row_stride(n)
  int classes = 0;
  bool targeted = true;
  Loss loss = Loss::margin;
  CSearch c_search = CSearch::fused;
  float confidence = 1e-4f;  // margin required, in logits
  float c_init = 0;          // <= 0: from the linearised problem
  bool unsquared = false;    // c_init is of c ||r||: c of c ||r||^2 is c_init / (2 ||r||)
  int history = 5;
  float tolerance = 1e-3f;  // stages: relative change of c and of x
  int patience = 12;        // stages: rounds without progress near the best
  float c_factor = 2;       // c moves by at most this factor a round
  float pass_on = 0.2f;     // a step shorter than this part of ||r|| ends all stages but the last
  int walk_budget = 0;      // steps on the exact network before a polish
  float walk_first = 0.3f, walk_last = 0.01f;  // their lengths, parts of ||r||
  float walk_turn = 0.03f;  // by which part the radius changes in the first round at most
  int walk_power = 1;       // the schedule's time is (round / budget)^power: long steps for longer
  float polish_tolerance = 1e-4f;    // relative gain below which the polish stops
  int polish_budget = 30;            // evaluations of one polish
  int max_evaluations = 0x7fffffff;  // forward+backward pairs of one image
  int schedules = 1;  // the first `attempts` are always run, the others until one succeeds
  int attempts = 1;
  Schedule schedule[kMaxSchedules];
  bool smoothable = false;  // the oracle can smooth its activations
  int starts = 0;           // adversarial starting images given for each image
  uint64_t seed = 0;
};

// What the last evaluation found; written by head.h. Margins have the confidence taken off, so
// that adversarial is margin >= 0 everywhere.
struct Evaluation {
  float margin = 0;    // m
  float log_odds = 0;  // m_T, the smoothed margin
  float kappa = 0;     // what was taken off: max(confidence, rounding)
  float rounding = 0;  // 16 eps max|z|, but for masked classes
  int prediction = -1;
  int runner_up = -1;  // best class that is not `label`
  bool finite = true;
};

// Scalars of one image. Lanes of a team work on private copies; the leader writes them back.
struct State {
  Phase phase = Phase::done;
  Status status = Status::not_found;
  // what the oracle and head are asked for
  bool want_gradient = false;
  bool measure = false;  // record the smoothing widths from this forward
  bool targeted = true;
  int label = 0;                              // target, or the class to leave
  int excluded[kMaxSchedules] = {};           // untargeted: classes that earlier attempts went for
  int exclusions = 0, exclusions_before = 0;  // now, and when the last attempt began
  int against = -1;                           // >= 0: the margin is z_label - z_against alone
  float k = 0;                                // smoothing of this evaluation
  float T = 0;  // temperature; 0: exact margin; < 0: head sets it from the margin found
  Evaluation eval;

  // best-so-far on the exact network
  float best_norm = kNone;
  float best_margin = -kNone;  // of the best image; without success: the best margin seen
  int best_prediction = -1;    // there; without success at x0
  float best_c = 0;            // c where the search that found it ended
  float penalty_norm = -1;     // distortion of the penalty minimiser at the final c; < 0: none

  // fused c-search, at the accepted point x
  int schedule = 0, stage = 0, searches = 0;  // searches: schedules begun
  bool second = false;                        // of the two of a contest
  int began = 0;                              // stage at which the search left x0
  float first_best = 0, first_c = 0;          // stage_best and c of the other
  float first_margin0 = 0;
  bool moved = false, move_pending = false;  // the search does not start at x0
  bool accept_any = false;                   // the next trial is the start of the search
  float margin = 0, log_odds = 0, sigma = 0, loss = 0,
        norm2 = 0;         // m, m_T, sigmoid(-m_T/T), l, r'r
  float clean_margin = 0;  // |m| at x0 on the exact network
  float margin0 = 0;       // m at x0 on the network of the first stage
  float c = 0, c0 = 0, c_last = 0;
  float c_low = 0, c_high = 0;  // bracket of the bisection; 0: open
  int solves = 0;               // of the bisection
  float shift = 0;              // mu of Levenberg and Marquardt
  float goal = 0;               // margin that the choice of c aims at
  float stage_best = kNone;
  int stage_class = -1;        // runner-up there: the class reached, untargeted
  float pace_margin = -kNone;  // margin kPace rounds ago; -kNone: none in this stage
  int since = 0, rounds = 0, nans = 0;
  bool model_failed = false;                // it returned NaN or infinity at a finite point
  int pairs = 0, newest = -1;               // ring
  float ss[kMaxHistory][kMaxHistory] = {};  // s_i's_j
  float sy[kMaxHistory][kMaxHistory] = {};  // s_i'y_j for i not older than j; diagonal D

  // walk, handover and polish
  float radius = 0, radius_before = 0;  // of the sphere of the steps
  int tries = 0;
  float t_low = 0, t_high = 1, t = 1;
  float margin_low = 0, margin_high = 0;
  int cuts = 0, cut_rounds = 0, stale = 0;
  float prox = 0, curvature = 0;
  float center_norm = 0, center_before = 0, trial_norm = 0;
  float offset[kMaxCuts] = {};  // h of the cut a'(x - x0) + h >= 0, ||a|| = 1
  float dual[kMaxCuts] = {};
  int born[kMaxCuts] = {};
  int cut_class[kMaxCuts] = {};  // the runner-up there
  int starts_tried = 0;
  bool reached = false;        // a search, not a given start, has found an image
  bool settled = false;        // and did so on its last network, not at the handover from it
  float attempt_best = kNone;  // best_norm when the last attempt ended

  int evaluations = 0, forwards = 0, iterations = 0;  // forward+backward pairs; forwards alone
};

// One image in a slot. Vectors have `stride` floats, aligned to 64 bytes.
struct alignas(16) Problem {  // the kernels of a network read records of whole 16 bytes
  State state;
  int64_t index = -1;  // of the image in the run; -1: empty slot
  const float* lo = nullptr;
  const float* hi = nullptr;
  float* x0 = nullptr;
  float* x = nullptr;               // accepted point; centre of the polish
  float* trial = nullptr;           // the point that the oracle is asked to evaluate
  float* gradient = nullptr;        // of m_T at x; in the polish: the trial that failed
  float* trial_gradient = nullptr;  // of m_T at trial, written by the oracle
  float* best = nullptr;
  float* stage_point = nullptr;   // best of this stage's network
  float* first = nullptr;         // accepted point of the first search of a contest
  float* ring = nullptr;          // max(2 history, kMaxCuts) vectors: y_0.., s_0..; or the cuts
  const float* starts = nullptr;  // (starts, n) of this image, in the caller's memory
};

}  // namespace advcore

// The two ends of an image: its first request, and its outcome.
#pragma once

#include "problem.h"

namespace advcore {

// Asks for the first evaluation, at x0. label: the target, or the class to leave.
ADVCORE_BOTH void ask_first(const Params& params, State& s, int label) {
  s = {};
  s.phase = Phase::start;
  State::Request& request = s.request;
  request.targeted = params.targeted;
  request.class_index = label;
  s.restarts.label = label;
  request.record_scales = params.smoothable;
  // Where the first stage is the exact network, its evaluation at x0 is this one.
  request.want_gradient = params.schedule[0].smoothing[0] == 0 && params.starts == 0;
  if (!request.want_gradient) return;
  const bool exact_loss = params.loss == Loss::cross_entropy;
  request.temperature = exact_loss ? Temperature::given : Temperature::from_margin;
  request.T = exact_loss ? 1.0f : 0.0f;
}

struct Outcome {
  float distortion;  // kNone: there is no adversarial image.
  float margin;      // The best image's; -kNone: none was evaluated.
  float c;           // 0: there is none.
  float penalty;     // Distortion of the penalty minimiser; < 0: there is none.
  int prediction;
  int evaluations, forwards, iterations;
  int rescues;  // Fallback searches.
  Status status;
  bool written;  // False in memory that no outcome was written to yet.
};

ADVCORE_BOTH Outcome outcome_of(const State& s) {
  return {s.best.norm,
          s.best.prediction >= 0 ? s.best.margin : -kNone,
          s.best.c > 0 ? s.best.c : s.search.c,
          s.search.penalty_norm,
          s.best.prediction,
          s.counts.evaluations,
          s.counts.forwards,
          s.counts.iterations,
          s.restarts.fallbacks,
          s.status,
          true};
}

}  // namespace advcore

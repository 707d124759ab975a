// An image's way through a slot: what is asked of the oracle first, and what is kept at the end.
#pragma once

#include "problem.h"

namespace advcore {

// The first evaluation, at x0. label: target, or class to leave.
ADVCORE_BOTH void ask_first(const Params& params, State& s, int label) {
  s = {};
  s.targeted = params.targeted;
  s.label = label;
  s.phase = Phase::start;
  s.measure = params.smoothable;
  // Where the first stage is the exact network, its evaluation at x0 is this one.
  s.want_gradient = params.schedule[0].smoothing[0] == 0 && params.starts == 0;
  s.k = 0;
  s.T = !s.want_gradient ? 0.0f : params.loss == Loss::cross_entropy ? 1.0f : -1.0f;
}

struct Outcome {
  float distortion;  // kNone: no adversarial image
  float margin;      // of the best image; -kNone: none was evaluated
  float c;           // 0: none
  float penalty;     // < 0: none
  int prediction;
  int evaluations, forwards, iterations, rescues;
  Status status;
  bool delivered;
};

ADVCORE_BOTH Outcome outcome_of(const Params& params, const State& s) {
  const int rescues = s.searches - params.attempts;
  return {s.best_norm,
          s.best_prediction >= 0 ? s.best_margin : -kNone,
          s.best_c > 0 ? s.best_c : s.c,
          s.penalty_norm,
          s.best_prediction,
          s.evaluations,
          s.forwards,
          s.iterations,
          rescues > 0 ? rescues : 0,
          s.status,
          true};
}

}  // namespace advcore

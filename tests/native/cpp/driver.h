// Runs the state machine of one image on an analytic model and watches every round.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "oracles.h"

namespace {

constexpr float kNothing = 3e38f;  // best_norm of an image without success
constexpr int kPhases = static_cast<int>(Phase::done) + 1;

struct Round {  // what the solver asked for and what it was given
  std::vector<float> trial, gradient;
  Phase phase;
  float k, T;
  advcore::Evaluation eval;
};

struct Trace {
  std::vector<Round> rounds;
  State state;
  std::vector<float> best;
  int visits[kPhases] = {};
};

Params smooth_params(int classes) {
  Params params;
  params.classes = classes;
  return params;
}

Params kinked_params(int classes) {
  Params params = smooth_params(classes);
  params.smoothable = true;
  const float k[] = {0.8f, 0.2f, 0.05f};
  const int budget[] = {30, 20, 20};
  params.schedule[0].stages = 3;
  for (int i = 0; i < 3; ++i) {
    params.schedule[0].smoothing[i] = k[i];
    params.schedule[0].budget[i] = budget[i];
    params.schedule[0].temperature[i] = 0.02f;
  }
  return params;
}

// More rounds than any run can take.
int most_rounds(const Params& params) {
  const bool bisects = params.c_search == advcore::CSearch::bisection ||
                       params.loss == advcore::Loss::cross_entropy;  // where the fused search fails
  const auto polish = [](const advcore::Schedule& search) { return 2 + 3 * search.polish_budget; };
  int rounds = 1 + params.starts * (14 + polish(params.schedule[0]));
  for (int q = 0; q < params.schedules; ++q) {
    const advcore::Schedule& schedule = params.schedule[q];
    // 20 to the boundary, 15 of the push, 3 looks at a stage's end
    rounds += 39 + polish(schedule) + schedule.descent.steps + schedule.ranked;
    for (int i = 0; i < schedule.stages; ++i) rounds += 6 + schedule.budget[i] * (bisects ? 40 : 3);
  }
  return rounds;
}

void write_logits(const dense::Vector& z, float* row, size_t padded) {
  for (size_t j = 0; j < padded; ++j)
    row[j] = j < z.size() ? static_cast<float>(z[j]) : advcore::kPadLogit;
}

double distance(const Slot& slot, const float* x) {
  const dense::Vector r = dense::minus(slot.vector(x), slot.vector(slot.p.x0));
  if (slot.params.norm == advcore::Norm::l2) return dense::norm(r);
  double largest = 0, sum = 0;
  for (const double v : r) largest = std::max(largest, std::fabs(v)), sum += std::fabs(v);
  return slot.params.norm == advcore::Norm::linf ? largest : sum;
}

void expect_in_box(const Slot& slot, const float* x, const char* what) {
  for (size_t i = 0; i < slot.size(); ++i)
    expect(x[i] >= slot.lo[i] && x[i] <= slot.hi[i], "%s: variable %zu is %g outside [%g, %g]",
           what, i, static_cast<double>(x[i]), static_cast<double>(slot.lo[i]),
           static_cast<double>(slot.hi[i]));
  for (int i = slot.params.n; i < slot.params.stride; ++i)
    expect(x[i] == 0, "%s: padding %d is %g", what, i, static_cast<double>(x[i]));
}

// The end of a run: what it says is true of the image that it returns.
inline void expect_consistent(const advcore::IsaTable& isa, const Slot& slot, Model& model,
                              int label, const Trace& trace) {
  const State& s = trace.state;
  const bool success = s.best.norm < kNothing;
  const int status = static_cast<int>(s.status);
  expect(s.phase == Phase::done && s.counts.evaluations <= slot.params.max_evaluations,
         "ended in phase %d after %d evaluations", static_cast<int>(s.phase), s.counts.evaluations);
  double least = 1e300;
  for (const Round& round : trace.rounds)
    if (round.k == 0 && round.eval.finite && round.eval.margin >= 0)
      least = std::min(least, distance(slot, round.trial.data()));
  expect(success == (least < 1e300), "success %d, but the smallest adversarial trial is %g",
         success, least);
  if (!success) {
    expect(s.status == Status::not_found || s.status == Status::budget ||
               s.status == Status::non_finite,
           "no image found, yet status %d", status);
    return;
  }
  expect(s.status != Status::not_found && s.status != Status::non_finite &&
             s.status != Status::interrupted,
         "an image was found, yet status %d", status);
  expect(std::fabs(static_cast<double>(s.best.norm) - least) <= 2e-6 * least,
         "distortion %g, smallest adversarial trial %g", static_cast<double>(s.best.norm), least);
  expect(std::fabs(distance(slot, trace.best.data()) - least) <= 2e-6 * least,
         "the best image has distortion %g, not %g", distance(slot, trace.best.data()), least);
  expect_in_box(slot, trace.best.data(), "best image");
  const size_t padded = (model.classes + advcore::kPad - 1) / advcore::kPad * advcore::kPad;
  const advcore::AlignedFloats rows = advcore::allocate(static_cast<size_t>(2 * padded));
  write_logits(model.forward(trace.best.data(), 0, false), rows.get(), padded);
  State fresh;
  fresh.request.targeted = slot.params.targeted, fresh.request.class_index = label;
  isa.margin_loss(slot.params, fresh, rows.get(), rows.get() + padded);
  const float margin = fresh.eval.margin + fresh.eval.required_margin;
  expect(fresh.eval.margin >= 0 && fresh.eval.prediction == s.best.prediction,
         "the best image has margin %g and class %d, reported is class %d",
         static_cast<double>(fresh.eval.margin), fresh.eval.prediction, s.best.prediction);
  // In the polish of an untargeted run the margin is that against the class reached.
  expect(!(slot.params.targeted && margin != s.best.margin), "margin %g, reported %g",
         static_cast<double>(margin), static_cast<double>(s.best.margin));
}

inline Trace run(const advcore::IsaTable& isa, Slot& slot, Model& model, int label) {
  const size_t padded = (model.classes + advcore::kPad - 1) / advcore::kPad * advcore::kPad;
  const advcore::AlignedFloats rows = advcore::allocate(static_cast<size_t>(2 * padded));
  float *const z = rows.get(), *const dlogits = z + padded;
  const size_t length = static_cast<size_t>(slot.params.stride);
  const int bound = most_rounds(slot.params);
  Problem& p = slot.p;
  State& s = p.state;
  Trace trace;
  isa.begin(slot.params, p, label);
  float best = kNothing;
  for (int count = 0; s.phase != Phase::done; ++count) {
    if (count > bound) {
      expect(false, "%s: not done after %d rounds, in phase %d", isa.name, bound,
             static_cast<int>(s.phase));
      break;
    }
    ++trace.visits[static_cast<int>(s.phase)];
    expect_in_box(slot, p.trial, "trial");
    Round round{{p.trial, p.trial + length}, {}, s.phase, s.request.k, 0, {}};
    write_logits(model.forward(p.trial, static_cast<double>(s.request.k), s.request.record_scales),
                 z, padded);
    isa.margin_loss(slot.params, s, z, dlogits);
    round.eval = s.eval;
    round.T = s.request.T;
    if (s.request.want_gradient) {
      slot.set(p.trial_gradient, model.backward(dlogits));
      for (size_t i = slot.size(); i < length; ++i) p.trial_gradient[i] = 0;
      round.gradient.assign(p.trial_gradient, p.trial_gradient + length);
    }
    trace.rounds.push_back(round);
    const int evaluations = s.counts.evaluations, forwards = s.counts.forwards;
    const bool gradient = s.request.want_gradient;
    isa.advance(slot.params, p);
    expect(
        s.counts.evaluations == evaluations + gradient && s.counts.forwards == forwards + !gradient,
        "%s: a round was not counted as what it is", isa.name);
    expect(s.best.norm <= best, "%s: best-so-far rose from %g to %g", isa.name,
           static_cast<double>(best), static_cast<double>(s.best.norm));
    best = s.best.norm;
  }
  trace.state = s;
  trace.best.assign(p.best, p.best + length);
  return trace;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

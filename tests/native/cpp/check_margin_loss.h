// Margin, smoothed log-odds and dlogits of every instruction set against plain double.
#pragma once

#include <cmath>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "slot.h"

namespace {

struct PlainLoss {
  double margin, log_odds, largest;
  int prediction, runner_up;
  dense::Vector dlogits;
};

// m, m_T and d m_T / dz; the first of equal logits counts.
PlainLoss plain_loss(const dense::Vector& z, const State& s, double T, double required_margin) {
  const int K = static_cast<int>(z.size());
  PlainLoss out{0, 0, 0, 0, -1, dense::Vector(z.size())};
  for (int j = 0; j < K; ++j) {
    const size_t i = static_cast<size_t>(j);
    out.largest = std::max(out.largest, std::fabs(z[i]));
    if (z[i] > z[static_cast<size_t>(out.prediction)]) out.prediction = j;
    if (j != s.request.class_index &&
        (out.runner_up < 0 || z[i] > z[static_cast<size_t>(out.runner_up)]))
      out.runner_up = j;
  }
  if (s.request.rival_class >= 0) out.runner_up = s.request.rival_class;
  const size_t label = static_cast<size_t>(s.request.class_index),
               other = static_cast<size_t>(out.runner_up);
  const double sign = s.request.targeted ? 1 : -1;
  out.margin = out.log_odds = sign * (z[label] - z[other]) - required_margin;
  out.dlogits[label] = sign;
  if (T > 0) {
    double total = 0;
    for (size_t j = 0; j < z.size(); ++j)
      if (j != label) total += std::exp((z[j] - z[other]) / T);
    for (size_t j = 0; j < z.size(); ++j)
      if (j != label) out.dlogits[j] = -sign * std::exp((z[j] - z[other]) / T) / total;
    out.log_odds -= sign * T * std::log(total);
  } else {
    out.dlogits[other] = -sign;
  }
  return out;
}

// Logits and dlogits in padded rows, as a slot pool holds them.
struct LossRows {
  explicit LossRows(size_t classes)
      : padded((classes + advcore::kPad - 1) / advcore::kPad * advcore::kPad),
        memory(advcore::allocate(2 * padded)) {
    for (size_t i = 0; i < padded; ++i) z()[i] = advcore::kPadLogit, dlogits()[i] = 7;
  }
  float* z() const { return memory.get(); }
  float* dlogits() const { return memory.get() + padded; }
  size_t padded;
  advcore::AlignedFloats memory;
};

// temperature: T, < 0: from the margin; the classes in `tied` share the largest logit.
void check_logits(const advcore::IsaTable& isa, int classes, State s, float temperature,
                  const std::vector<size_t>& tied, Random& rng) {
  const size_t K = static_cast<size_t>(classes);
  Params params;
  params.classes = classes;
  params.confidence = uniform(rng) < 0.5 ? 1e-4f : 0.0f;
  const LossRows rows(K);
  dense::Vector z;
  for (size_t j = 0; j < K; ++j) rows.z()[j] = static_cast<float>(10 * normal(rng));
  for (const size_t j : tied) rows.z()[j] = 60;
  z = dense::from_floats(rows.z(), K);
  s.request.T = temperature;
  s.request.temperature = temperature < 0   ? advcore::Temperature::from_margin
                          : temperature > 0 ? advcore::Temperature::given
                                            : advcore::Temperature::exact;
  s.request.want_gradient = true;
  isa.margin_loss(params, s, rows.z(), rows.dlogits());
  expect(dense::from_floats(rows.z(), K) == z, "%s K %d: logits were not restored", isa.name,
         classes);
  const PlainLoss at_zero = plain_loss(z, s, 0, 0);
  const double required_margin =
      std::max(static_cast<double>(params.confidence), 16 * 1.1920929e-7 * at_zero.largest);
  double T = static_cast<double>(temperature);
  if (T < 0)
    T = std::max(0.02 * std::fabs(at_zero.margin - required_margin),
                 64 * 1.1920929e-7 * at_zero.largest);
  const PlainLoss plain = plain_loss(z, s, T, required_margin);
  const advcore::Evaluation& e = s.eval;
  const double rounding = 4e-6 * plain.largest;
  const auto off = [](float got, double expected) {
    return std::fabs(static_cast<double>(got) - expected);
  };
  expect(e.finite && off(e.required_margin, required_margin) < 1e-6 * required_margin &&
             off(e.margin, plain.margin) < rounding,
         "%s K %d T %g: margin %g, expected %g", isa.name, classes, T,
         static_cast<double>(e.margin), plain.margin);
  expect(off(s.request.T, T) <= 1e-4 * T, "%s K %d: temperature %g, expected %g", isa.name, classes,
         static_cast<double>(s.request.T), T);
  expect(off(e.log_odds, plain.log_odds) < rounding, "%s K %d T %g: log-odds %g, expected %g",
         isa.name, classes, T, static_cast<double>(e.log_odds), plain.log_odds);
  expect(e.prediction == plain.prediction && e.runner_up == plain.runner_up,
         "%s K %d: prediction %d and runner-up %d, expected %d and %d", isa.name, classes,
         e.prediction, e.runner_up, plain.prediction, plain.runner_up);
  for (size_t j = 0; j < K; ++j)
    expect(off(rows.dlogits()[j], plain.dlogits[j]) < 1e-4,
           "%s K %d T %g: dlogits %zu is %g, expected %g", isa.name, classes, T, j,
           static_cast<double>(rows.dlogits()[j]), plain.dlogits[j]);
  for (size_t j = K; j < rows.padded; ++j)
    expect(std::fabs(rows.dlogits()[j]) < 1e-36f, "%s K %d: padding of the dlogits is %g", isa.name,
           classes, static_cast<double>(rows.dlogits()[j]));
  // The dlogits against differences of the log-odds; ties have none where T = 0.
  for (size_t j = 0; T > 0 && j < K; j += K > 20 ? 97 : 1) {
    const double h = 1e-4 * T;
    dense::Vector more = z, less = z;
    more[j] += h, less[j] -= h;
    const double slope =
        (plain_loss(more, s, T, 0).log_odds - plain_loss(less, s, T, 0).log_odds) / (2 * h);
    expect(off(rows.dlogits()[j], slope) < 1e-4, "%s K %d T %g: dlogits %zu is %g, difference %g",
           isa.name, classes, T, j, static_cast<double>(rows.dlogits()[j]), slope);
  }
}

// A logit of -infinity masks its class; any other that is not finite spoils the row.
void check_not_finite(const advcore::IsaTable& isa, int classes) {
  Params params;
  params.classes = classes;
  for (const float bad : {NAN, INFINITY, -INFINITY})
    for (const int at : {0, classes / 2, classes - 1}) {
      const LossRows rows(static_cast<size_t>(classes));
      for (int j = 0; j < classes; ++j) rows.z()[j] = static_cast<float>(j % 7);
      rows.z()[at] = bad;
      const dense::Vector before = dense::from_floats(rows.z(), rows.padded);
      State s;
      s.request.class_index = 1, s.request.T = 0.1f, s.request.want_gradient = true;
      s.eval.finite = true;
      isa.margin_loss(params, s, rows.z(), rows.dlogits());
      const dense::Vector after = dense::from_floats(rows.z(), rows.padded);
      const bool masks = bad < 0;
      expect(s.eval.finite == masks, "%s K %d: a logit of %g is finite: %d", isa.name, classes,
             static_cast<double>(bad), s.eval.finite);
      if (masks && classes > 2 && at != s.request.class_index)
        expect(s.eval.rounding <= 16 * 1.2e-7f * 6 && std::fabs(rows.dlogits()[at]) < 1e-36f,
               "%s K %d: masked, a rounding of %g and a dlogits of %g", isa.name, classes,
               static_cast<double>(s.eval.rounding), static_cast<double>(rows.dlogits()[at]));
      for (size_t j = 0; j < rows.padded; ++j)
        expect(after[j] == before[j] || j == static_cast<size_t>(at),
               "%s K %d: logit %zu was not restored", isa.name, classes, j);
    }
}

void check_margin_losses(const advcore::IsaTable& isa) {
  Random rng(31);
  for (const int classes : {2, 3, 10, 16, 17, 1000}) {
    for (int repeat = 0; repeat < 12; ++repeat)
      for (const float T : {0.0f, -1.0f, 1.0f, 0.05f, 30.0f}) {
        State s;
        s.request.class_index = static_cast<int>(rng() % static_cast<unsigned>(classes));
        s.request.targeted = repeat % 2 == 0;
        check_logits(isa, classes, s, T, {}, rng);
        const size_t last = static_cast<size_t>(classes) - 1;
        check_logits(isa, classes, s, T, {last, last / 2}, rng);
        check_logits(isa, classes, s, T, {0, last}, rng);
      }
    for (int repeat = 0; repeat < 12; ++repeat) {  // one class against another, exact margin
      State s;
      s.request.class_index = repeat % classes;
      s.request.rival_class = (s.request.class_index + 1 + repeat % (classes - 1)) % classes;
      if (s.request.rival_class == s.request.class_index)
        s.request.rival_class = (s.request.class_index + 1) % classes;
      check_logits(isa, classes, s, 0, {}, rng);
    }
    check_not_finite(isa, classes);
  }
}

}  // namespace

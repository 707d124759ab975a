// The compact L-BFGS matrix with its damping against the dense BFGS matrix: direction, slope and
// predicted margin on a random free set.
#pragma once

#include <cstring>
#include <string>

#include "check.h"
#include "slot.h"
#include "solver_parts.h"

namespace {

using Pair = std::pair<dense::Vector, dense::Vector>;

// Pushes s and y as differences of points and of scaled gradients, as the solver does.
void push(Slot& slot, State& s, Random& rng, const dense::Vector& step,
          const dense::Vector& change) {
  const size_t n = slot.size(), padded = static_cast<size_t>(slot.params.stride);
  const advcore::AlignedFloats rows = advcore::allocate(static_cast<size_t>(4 * padded));
  float* const from = rows.get();
  float *const to = from + padded, *const old_g = to + padded, *const new_g = old_g + padded;
  const float old_sigma = 0.8f, new_sigma = 0.3f;
  double ss = 0, sy = 0;
  for (size_t i = 0; i < n; ++i) {
    // Multiples of 2^-12 and of the size of the step, so that the differences do not round.
    from[i] = 0, to[i] = static_cast<float>(step[i]);
    new_g[i] = static_cast<float>(normal(rng) * 0.01 * change[i]);
    old_g[i] = static_cast<float>((change[i] + new_sigma * static_cast<double>(new_g[i])) /
                                  static_cast<double>(old_sigma));
    ss += step[i] * step[i], sy += step[i] * change[i];
  }
  parts::push_pair(Team{}, slot.params, slot.p, s.pairs, from, old_g, old_sigma, to, new_g,
                   new_sigma, static_cast<float>(ss), static_cast<float>(sy));
}

struct Penalty {  // a random point of the penalty problem, about a third of its variables held
  Penalty(Slot& slot, Random& rng) {
    const size_t n = slot.size();
    c = std::exp(uniform(rng, -3, 2)), damping = uniform(rng) < 0.5 ? 0 : c * uniform(rng);
    sigma = uniform(rng, 0.1, 1), margin = normal(rng);
    slot.set(slot.p.x0, normals(rng, n));
    slot.set(slot.p.x, normals(rng, n));
    slot.set(slot.p.gradient, normals(rng, n));
    r = dense::minus(slot.vector(slot.p.x), slot.vector(slot.p.x0));
    G = slot.vector(slot.p.gradient);
    slot.bound(-1e6f, 1e6f);
    for (size_t i = 0; i < n; ++i) {
      const double total = 2 * c * r[i] - sigma * G[i];
      if (uniform(rng) < 0.35 && i > 0)
        (total >= 0 ? slot.lo : slot.hi)[i] = slot.p.x[i];
      else
        free.push_back(i);
    }
  }
  State state(State s) const {
    s.search.c = s.search.first_c = static_cast<float>(c),
    s.search.damping = static_cast<float>(damping);
    s.point.sigma = static_cast<float>(sigma), s.point.margin = static_cast<float>(margin);
    s.search.target_margin = 1e9f;  // out of reach: no step back
    return s;
  }
  double c, damping, sigma, margin;
  dense::Vector r, G;
  std::vector<size_t> free;
};

// The direction of the solver, from the trial that it proposes.
dense::Vector proposed(Slot& slot, const State& s) {
  State state = s;
  parts::Work work;
  parts::Machine<Team> machine{Team{}, slot.params, slot.p, state, work};
  const dense::Vector x = slot.vector(slot.p.x);
  machine.propose();
  return dense::minus(slot.vector(slot.p.trial), x);
}

void model_of(Slot& slot, const State& s, const Penalty& at, double theta, parts::Model& model) {
  const size_t padded = static_cast<size_t>(slot.params.stride);
  const advcore::AlignedFloats rows = advcore::allocate(static_cast<size_t>(2 * padded));
  for (const size_t i : at.free) rows.get()[i] = 1;
  for (size_t i = 0; i < slot.size(); ++i) rows.get()[padded + i] = slot.p.x[i] - slot.p.x0[i];
  model.pairs = s.pairs.count, model.theta = static_cast<float>(theta),
  model.damping = s.search.damping;
  model.sigma = s.point.sigma, model.margin = s.point.margin;
  const float* v[parts::kMaxBasis];
  for (int j = 0; j < s.pairs.count; ++j) {
    v[j] = parts::ring_y(slot.params, slot.p, j);
    v[s.pairs.count + j] = parts::ring_s(slot.params, slot.p, j);
  }
  v[2 * s.pairs.count] = slot.p.gradient;
  v[2 * s.pairs.count + 1] = rows.get() + padded;
  parts::masked_gram(Team{}, slot.params.stride, rows.get(), v, 2 * s.pairs.count + 2, model.gram);
  parts::assemble(slot.params, s.pairs, model);
}

// At kTrialCs values of c, as the choice of c has them.
std::vector<double> predicted_margins(parts::Work& work, const std::vector<double>& values) {
  std::vector<double> margins(kTrialCs);
  const auto K = parts::trial_cs(work.trials.K), q = parts::trial_cs(work.trials.q);
  for (size_t i = 0; i < kTrialCs; i += kTrialLanes) {
    TrialC c{};
    std::memcpy(&c, &values[i], sizeof c);
    const auto at = parts::solve_model(work.model, c, K, q);
    const TrialC found = parts::predicted_margin(work.model, at, q);
    std::memcpy(&margins[i], &found, sizeof found);
  }
  return margins;
}

void check_direction(int n, int history, int pushes, Random& rng, double& worst) {
  Params params;
  params.history = history;
  params.c_search = advcore::CSearch::bisection;  // c stays
  Slot slot(n, params);
  State s;
  std::vector<Pair> pushed;
  const size_t size = slot.size();
  const dense::Vector ray = normals(rng, size);
  for (int k = 0; k < pushes; ++k) {
    dense::Vector step = normals(rng, size), change(size);
    const double along = dense::dot(ray, step) / static_cast<double>(n);
    for (size_t i = 0; i < size; ++i) change[i] = uniform(rng, 0.3, 2) * step[i] + along * ray[i];
    push(slot, s, rng, step, change);
    const dense::Vector kept_s = slot.vector(parts::ring_s(slot.params, slot.p, s.pairs.newest));
    const dense::Vector kept_y = slot.vector(parts::ring_y(slot.params, slot.p, s.pairs.newest));
    const double error = dense::difference(kept_s, step) + dense::difference(kept_y, change);
    expect(error < 1e-5, "n %d: the ring holds another pair, off by %.1e", n, error);
    pushed.emplace_back(kept_s, kept_y);
  }
  expect(s.pairs.count == std::min(history, pushes), "%d pushes of %d left %d pairs", pushes,
         history, s.pairs.count);
  const Penalty at(slot, rng);
  s = at.state(s);
  pushed.erase(pushed.begin(), pushed.end() - s.pairs.count);
  double theta = 0.2 * at.c;
  if (s.pairs.count > 0)
    theta = std::min(theta, dense::dot(pushed.back().first, pushed.back().second) /
                                dense::dot(pushed.back().first, pushed.back().first));

  parts::Work work;
  model_of(slot, s, at, theta, work.model);
  const dense::Matrix B = dense::bfgs(size, theta, pushed);
  const dense::Vector d = proposed(slot, s);
  std::vector<double> c;
  for (int lane = 0; lane < kTrialCs; ++lane) c.push_back(at.c * std::exp(0.3 * lane));
  const std::vector<double> margins = predicted_margins(work, c);
  for (const size_t lane : {size_t{0}, size_t{5}}) {
    if (lane > 0 && n > 100) continue;
    dense::Matrix part = dense::restricted(B, at.free);
    dense::Vector v;
    for (size_t i = 0; i < part.n; ++i) {
      part(i, i) += 2 * c[lane] + at.damping;
      v.push_back(at.sigma * at.G[at.free[i]] - 2 * c[lane] * at.r[at.free[i]]);
    }
    const dense::Vector on_free = dense::solve(part, v);
    dense::Vector expected(size);
    for (size_t i = 0; i < part.n; ++i) expected[at.free[i]] = on_free[i];
    const double gain = dense::dot(at.G, expected), slope = -dense::dot(v, on_free);
    const double gain_scale = dense::norm(at.G) * dense::norm(expected);
    const double error = lane > 0 ? 0 : dense::difference(d, expected);
    const double margin = std::fabs(margins[lane] - at.margin - gain) / gain_scale;
    std::vector<double> K(parts::kPacked);
    const auto solution = parts::solve_model<double>(work.model, c[lane], K.data(), work.q);
    const double predicted = parts::model_slope(work.model, solution, work.q);
    const double fall = std::fabs(predicted / slope - 1);
    const std::string where = "n " + std::to_string(n) + " history " + std::to_string(history) +
                              " pushes " + std::to_string(pushes);
    expect(error < 2e-4, "%s: direction off by %.1e", where.c_str(), error);
    expect(margin < 2e-4, "%s lane %zu: predicted margin %g, expected %g", where.c_str(), lane,
           margins[lane], at.margin + gain);
    expect(fall < 2e-4, "%s lane %zu: slope %g, expected %g", where.c_str(), lane, predicted,
           slope);
    worst = std::max({worst, error, margin, fall});
  }
}

// Pairs that carry no or doubled information: the trial stays finite and the direction descends.
void check_degenerate_pairs() {
  Random rng(14);
  for (const double scale : {1.0, 1e-12, 1e-17})
    for (const double tilt : {0.0, 1e-7, 1e-3})
      for (const int n : {1, 7, 50}) {
        Params params;
        params.c_search = advcore::CSearch::bisection;
        Slot slot(n, params);
        State s;
        const dense::Vector first = normals(rng, slot.size());
        for (int k = 0; k < 7; ++k) {
          dense::Vector step = normals(rng, slot.size());
          for (size_t i = 0; i < slot.size(); ++i) step[i] = scale * (first[i] + tilt * step[i]);
          dense::Vector change = step;
          for (double& v : change) v *= k % 2 == 0 ? 1 : 1e-6;
          push(slot, s, rng, step, change);
        }
        const Penalty at(slot, rng);
        const dense::Vector d = proposed(slot, at.state(s));
        double slope = 0;
        for (const size_t i : at.free) slope += (2 * at.c * at.r[i] - at.sigma * at.G[i]) * d[i];
        expect(std::isfinite(dense::norm(d)) && slope < 0,
               "collinear pairs of scale %g, tilt %g, n %d: ||d|| %g, slope %g", scale, tilt, n,
               dense::norm(d), slope);
      }
}

void check_directions() {
  Random rng(13);
  double worst = 0;
  for (const int n : {1, 7, 16, 50, 784})
    for (int history = 1; history <= advcore::kMaxHistory; ++history)
      for (const int pushes : {0, 1, history, history + 1, 2 * history + 3})
        if (n < 100 || ((history == 1 || history == 8) && pushes > 1))
          check_direction(n, history, pushes, rng, worst);
  check_degenerate_pairs();
  std::printf("direction against dense BFGS: largest relative error %.1e\n", worst);
}

}  // namespace

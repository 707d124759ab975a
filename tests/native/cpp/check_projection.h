// Cuts, their projection and what belongs to the box, against exact solutions in double.
#pragma once

#include "check.h"
#include "slot.h"
#include "solver_parts.h"

namespace {

// The floats that the solver sees, with the proximal point q = x0 + w (x - x0).
dense::Polytope polytope(const Slot& slot, const State& s, double w) {
  dense::Polytope set;
  set.x0 = slot.vector(slot.p.x0);
  set.q = set.x0;
  set.lo = slot.vector(slot.lo);
  set.hi = slot.vector(slot.hi);
  for (size_t i = 0; i < slot.size(); ++i)
    set.q[i] += w * (static_cast<double>(slot.p.x[i]) - set.x0[i]);
  for (int j = 0; j < s.bundle.count; ++j) {
    set.rows.push_back(slot.vector(parts::cut_row(slot.params, slot.p, j)));
    set.offset.push_back(s.bundle.offset[j]);
  }
  return set;
}

// A point of the unit box with half of its variables on a bound, as pixels are.
dense::Vector random_pixels(Random& rng, size_t n) {
  dense::Vector x(n);
  for (double& v : x) v = std::clamp(uniform(rng, -0.5, 1.5), 0.0, 1.0);
  return x;
}

// Cut j with the given normal; at x its linearised margin is `margin`.
void cut(Slot& slot, State& s, int j, const dense::Vector& normal, const dense::Vector& at,
         double margin) {
  const size_t padded = static_cast<size_t>(slot.params.stride);
  const advcore::AlignedFloats rows = advcore::allocate(static_cast<size_t>(2 * padded));
  slot.set(rows.get(), normal);
  slot.set(rows.get() + padded, at);
  const float length = parts::write_cut(Team{}, slot.params, slot.p, s.bundle, j, rows.get(),
                                        rows.get() + padded, static_cast<float>(margin));
  const dense::Vector row = slot.vector(parts::cut_row(slot.params, slot.p, j));
  const double expected = dense::norm(normal);
  expect(std::fabs(static_cast<double>(length) / expected - 1) < 1e-5 &&
             std::fabs(dense::norm(row) - 1) < 1e-5,
         "cut of a gradient of norm %g: %g, row of norm %g", expected, static_cast<double>(length),
         dense::norm(row));
  const dense::Vector away = dense::minus(slot.vector(rows.get() + padded), slot.vector(slot.p.x0));
  const double value = dense::dot(row, away) + static_cast<double>(s.bundle.offset[j]);
  expect(std::fabs(value - margin / expected) < 2e-6 * (1 + dense::norm(away)) &&
             s.bundle.dual[j] == 0,
         "cut is %g where its margin is %g, multiplier %g", value, margin / expected,
         static_cast<double>(s.bundle.dual[j]));
}

struct Projected {
  dense::Vector x, dual;
};

Projected project(Slot& slot, State& s, double w) {
  parts::Work work;
  parts::project(Team{}, slot.params, slot.p, s.bundle, work, static_cast<float>(w), slot.p.trial);
  Projected out{slot.vector(slot.p.trial), {}};
  for (int j = 0; j < s.bundle.count; ++j) out.dual.push_back(s.bundle.dual[j]);
  for (size_t i = 0; i < slot.size(); ++i)
    expect(slot.p.trial[i] >= slot.lo[i] && slot.p.trial[i] <= slot.hi[i],
           "projection leaves the box at %zu: %g", i, out.x[i]);
  return out;
}

void check_one_cut(int n, bool bounded, double w, Random& rng, double& worst) {
  Slot slot(n, Params{});
  State s;
  if (bounded) slot.bound(0, 1);
  slot.set(slot.p.x0, random_pixels(rng, slot.size()));
  slot.set(slot.p.x, random_pixels(rng, slot.size()));
  const dense::Vector normal = normals(rng, slot.size()), x0 = slot.vector(slot.p.x0);
  // Between what the clean image reaches and what the box allows, and beyond either end.
  double reach = 0;
  for (size_t i = 0; i < slot.size(); ++i)
    reach += std::max(normal[i] * (1 - x0[i]), -normal[i] * x0[i]);
  const double part = uniform(rng, -0.2, 1.3);
  cut(slot, s, 0, normal, x0, -part * reach);
  s.bundle.count = 1;
  if (uniform(rng) < 0.3) s.bundle.dual[0] = static_cast<float>(uniform(rng));  // a warm start
  const dense::Polytope set = polytope(slot, s, w);
  const double dual = dense::solve_line(set);
  const Projected got = project(slot, s, w);
  if (std::isfinite(dual)) {
    const dense::Vector x = set.at({dual});
    const double scale = dense::norm(dense::minus(x, set.q)) + 0.02;
    const double error = dense::norm(dense::minus(got.x, x)) / scale;
    worst = std::max(worst, error);
    expect(error < 1e-4, "one cut, n %d, w %g: off by %.1e", n, w, error);
  } else {
    const double best = set.residuals(set.at({1e9}))[0], residual = set.residuals(got.x)[0];
    expect(residual > best - 1e-4 * std::fabs(reach / dense::norm(normal)),
           "unreachable cut, n %d: %g where the vertex has %g", n, residual, best);
    for (size_t i = 0; i < slot.size(); ++i)
      if (std::fabs(set.rows[0][i]) > 1e-3)
        expect(got.x[i] == (set.rows[0][i] > 0 ? 1.0 : 0.0),
               "unreachable cut, n %d: variable %zu is %g, not on its bound", n, i, got.x[i]);
  }
}

void check_many_cuts(int n, int cuts, bool bounded, double w, Random& rng, double& worst) {
  Slot slot(n, Params{});
  State s;
  if (bounded) slot.bound(0, 1);
  const dense::Vector centre = random_pixels(rng, slot.size());
  slot.set(slot.p.x0, random_pixels(rng, slot.size()));
  slot.set(slot.p.x, centre);
  const dense::Vector common = normals(rng, slot.size()), x0 = slot.vector(slot.p.x0);
  const float warm[] = {0, 0, 0, 1e-6f, 0.5f, 10};  // multipliers of an older bundle
  for (int j = 0; j < cuts; ++j) {  // all hold at the centre, few at the clean image
    dense::Vector normal = normals(rng, slot.size());
    for (size_t i = 0; i < slot.size(); ++i) {
      normal[i] += uniform(rng, 0, 2) * common[i] + 0.5 * (centre[i] - x0[i]);
      normal[i] *= 100;
    }
    const double rise = dense::dot(normal, dense::minus(centre, x0));
    cut(slot, s, j, normal, centre, uniform(rng, 0, 0.3) * std::fabs(rise));
    ++s.bundle.count;
    s.bundle.dual[j] = warm[rng() % 6];
  }
  const dense::Polytope set = polytope(slot, s, w);
  const dense::Vector dual = dense::solve_dual(set);
  const double certificate = set.violation(dual);
  expect(certificate < 1e-8, "the reference is not optimal: n %d, %d cuts, %.1e", n, cuts,
         certificate);
  const Projected got = project(slot, s, w);
  const dense::Vector x = set.at(dual);
  const double scale = dense::norm(dense::minus(x, set.q)) + 0.02;
  const double error = dense::norm(dense::minus(got.x, x)) / scale;
  worst = std::max(worst, error);
  expect(error < 3e-4, "%d cuts, n %d, w %g: off by %.1e", cuts, n, w, error);
  const double enough = 1e-5 * scale + 1e-6;  // offsets near 10 are rounded to 5e-7
  for (size_t j = 0; j < dual.size(); ++j) {
    const double residual = set.residuals(got.x)[j];
    expect(residual > -enough, "%d cuts, n %d: cut %zu missed by %.1e", cuts, n, j, -residual);
    expect(got.dual[j] >= 0 && (got.dual[j] == 0 || std::fabs(residual) < enough),
           "%d cuts, n %d: multiplier %g of a cut at distance %.1e", cuts, n, got.dual[j],
           residual);
  }
}

// Cuts that exclude each other: whatever comes out, it ends and lies in the box.
void check_contradiction() {
  Random rng(23);
  for (int n : {1, 7, 50}) {
    Slot slot(n, Params{});
    State s;
    slot.bound(0, 1);
    slot.set(slot.p.x0, random_pixels(rng, slot.size()));
    dense::Vector normal = normals(rng, slot.size());
    for (int j = 0; j < advcore::kMaxCuts; ++j) {
      cut(slot, s, j, normal, slot.vector(slot.p.x0), -1);
      ++s.bundle.count;
      for (double& v : normal) v = -v;
    }
    const Projected got = project(slot, s, 0);
    expect(std::isfinite(dense::norm(got.x) + dense::norm(got.dual)),
           "contradicting cuts: multipliers of norm %g", dense::norm(got.dual));
  }
}

void check_write_cut() {
  Random rng(24);
  Slot slot(20, Params{});
  State s;
  const dense::Vector x0 = random_pixels(rng, 20);
  slot.set(slot.p.x0, x0);
  for (const double scale : {1e-15, 1.0, 1e15}) {
    dense::Vector gradient = normals(rng, 20);
    for (double& v : gradient) v *= scale;
    cut(slot, s, 2, gradient, random_pixels(rng, 20), 0.3 * scale);
  }
  const float offset = s.bundle.offset[2];
  for (const double bad : {0.0, static_cast<double>(NAN), HUGE_VAL}) {
    slot.set(slot.p.gradient, dense::Vector(20, bad));
    const float norm =
        parts::write_cut(Team{}, slot.params, slot.p, s.bundle, 2, slot.p.gradient, slot.p.x0, 1);
    expect((bad == 0 ? norm == 0 : norm != norm) && s.bundle.offset[2] == offset,
           "a gradient of %g gave a cut of norm %g", bad, static_cast<double>(norm));
  }
}

void check_keep_centre() {
  Random rng(25);
  Slot slot(50, Params{});
  State s;
  slot.set(slot.p.x0, random_pixels(rng, 50));
  const dense::Vector centre = random_pixels(rng, 50);
  slot.set(slot.p.x, centre);
  for (int j = 0; j < advcore::kMaxCuts; ++j) {
    cut(slot, s, j, normals(rng, 50), centre, j % 2 ? 1 : -1);
    ++s.bundle.count;
  }
  const State before = s;
  parts::keep_centre(Team{}, slot.params, slot.p, s.bundle);
  const dense::Vector residual = polytope(slot, s, 0).residuals(slot.vector(slot.p.x));
  for (size_t j = 0; j < residual.size(); ++j) {
    if (j % 2)
      expect(s.bundle.offset[j] == before.bundle.offset[j],
             "cut %zu was moved though the centre keeps it", j);
    else
      expect(std::fabs(residual[j]) < 1e-6, "the centre misses cut %zu by %g", j, -residual[j]);
  }
}

void check_cut_slot() {
  Random rng(26);
  for (int repeat = 0; repeat < 500; ++repeat) {
    State s;
    s.bundle.count = repeat % 7 ? advcore::kMaxCuts : repeat % advcore::kMaxCuts;
    int expected = -1;
    for (int j = 0; j < advcore::kMaxCuts; ++j) {
      s.bundle.order[j] = (j + repeat) % advcore::kMaxCuts + repeat;
      s.bundle.dual[j] = uniform(rng) < 0.6 ? 0.5f : 0.0f;
    }
    for (const bool held : {true, false})  // the oldest of those without a multiplier wins
      for (int age = advcore::kMaxCuts - 1, found = 0; age >= 0 && !found; --age)
        for (int j = 0; j < advcore::kMaxCuts; ++j)
          if (s.bundle.order[j] == repeat + advcore::kMaxCuts - 1 - age &&
              (s.bundle.dual[j] > 0) == held)
            expected = j, found = 1;
    if (s.bundle.count < advcore::kMaxCuts) expected = s.bundle.count;
    const int got = parts::cut_slot(s.bundle);
    expect(got == expected, "the next cut goes to %d, expected %d", got, expected);
  }
}

void check_box() {
  using parts::kLanes;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  struct Case {
    float x, total, lo, hi, free, clipped;
  };
  const Case cases[] = {
      {0, 1, 0, 1, 0, 0},   {0, -1, 0, 1, 1, 0},  {1, -1, 0, 1, 0, 1},     {1, 1, 0, 1, 1, 1},
      {0, 0, 0, 1, 0, 0},   {1, 0, 0, 1, 0, 1},   {0.5f, 3, 0, 1, 1, .5f}, {0.5f, 0, 0, 1, 1, .5f},
      {2, 1, 2, 2, 0, 2},   {2, -1, 2, 2, 0, 2},  {-3, 1, 0, 1, 0, 0},     {3, -1, 0, 1, 0, 1},
      {-3, -1, 0, 1, 1, 0}, {nan, 1, 0, 1, 1, 0},
  };
  for (size_t k = 0; k < std::size(cases); ++k) {
    alignas(64) float out[16];
    const Case& c = cases[k];
    const auto all = [](float v) { return parts::broadcast(v); };
    parts::store(out, 0, parts::free_variable(all(c.x), all(c.total), all(c.lo), all(c.hi)));
    for (int lane = 0; lane < kLanes; ++lane)
      expect(out[lane] == c.free, "case %zu: free %g", k, static_cast<double>(out[lane]));
    parts::store(out, 0, parts::clip(all(c.x), all(c.lo), all(c.hi)));
    for (int lane = 0; lane < kLanes; ++lane)
      expect(out[lane] == c.clipped, "case %zu: clipped to %g", k, static_cast<double>(out[lane]));
  }
}

void check_projections() {
  Random rng(21);
  double one = 0, many = 0;
  for (const int n : {1, 7, 16, 50, 784})
    for (const bool bounded : {true, false})
      for (const double w : {0.0, 0.3, 0.9}) {
        for (int repeat = 0; repeat < (n > 100 ? 3 : 20); ++repeat)
          check_one_cut(n, bounded, w, rng, one);
        for (int cuts = 2; cuts <= advcore::kMaxCuts && cuts <= n; ++cuts)
          for (int repeat = 0; repeat < (n > 100 ? 1 : 5); ++repeat)
            check_many_cuts(n, cuts, bounded, w, rng, many);
      }
  check_contradiction();
  check_write_cut();
  check_keep_centre();
  check_cut_slot();
  check_box();
  std::printf("projection: largest error with one cut %.1e, with several %.1e\n", one, many);
}

}  // namespace

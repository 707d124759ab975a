// The small dense solves against elimination with pivoting.
#pragma once

#include "check.h"
#include "slot.h"
#include "solver_parts.h"

namespace {

// A quasi-definite matrix a lane, with its first m diagonal entries negative.
std::vector<dense::Matrix> random_quasi_definite(Random& rng, size_t size, size_t m) {
  std::vector<dense::Matrix> out;
  for (int lane = 0; lane < kTrialLanes; ++lane) {
    dense::Matrix K(size);
    const dense::Vector factor = normals(rng, size * size);
    for (size_t i = 0; i < size; ++i)
      for (size_t j = 0; j < size; ++j) {
        const bool same = (i < m) == (j < m);
        double block = i == j ? 0.5 : 0;
        for (size_t k = 0; same && k < size; ++k)
          block += factor[i * size + k] * factor[j * size + k];
        K(i, j) = !same ? factor[std::min(i, j) * size + std::max(i, j)] : i < m ? -block : block;
      }
    out.push_back(K);
  }
  return out;
}

// x of K x = b, a lane each, by the solver's own elimination.
std::vector<dense::Vector> quasi_definite(const std::vector<dense::Matrix>& K, size_t m,
                                          const std::vector<dense::Vector>& b) {
  const size_t size = K[0].n;
  TrialC packed[advcore::kMaxHistory * (2 * advcore::kMaxHistory + 1)];
  TrialC x[2 * advcore::kMaxHistory];
  for (size_t lane = 0; lane < kTrialLanes; ++lane)
    for (size_t i = 0, at = 0; i < size; ++i) {
      x[i][lane] = b[lane][i];
      for (size_t j = 0; j <= i; ++j) packed[at++][lane] = K[lane](i, j);
    }
  parts::solve_quasi_definite<TrialC>(static_cast<int>(size), static_cast<int>(m), packed, x);
  std::vector<dense::Vector> out(kTrialLanes, dense::Vector(size));
  for (size_t lane = 0; lane < kTrialLanes; ++lane)
    for (size_t i = 0; i < size; ++i) out[lane][i] = x[i][lane];
  return out;
}

// `dropped` of x is zero and the others solve the system without it.
void expect_dropped(const char* solver, const dense::Matrix& A, const dense::Vector& b,
                    const dense::Vector& x, size_t dropped, double tolerance) {
  std::vector<size_t> kept;
  dense::Vector right, left;
  for (size_t i = 0; i < A.n; ++i) {
    if (i == dropped) continue;
    kept.push_back(i), right.push_back(b[i]), left.push_back(x[i]);
  }
  expect(std::fabs(x[dropped]) < 1e-100, "%s size %zu: unknown %zu is %g, not dropped", solver, A.n,
         dropped, x[dropped]);
  if (kept.empty()) return;
  const double error = dense::difference(left, dense::solve(dense::restricted(A, kept), right));
  expect(error < tolerance, "%s size %zu without %zu: off by %.1e", solver, A.n, dropped, error);
}

void check_quasi_definite() {
  Random rng(11);
  for (size_t m = 1; m <= advcore::kMaxHistory; ++m)
    for (int repeat = 0; repeat < 10; ++repeat) {
      const size_t size = 2 * m, odd = static_cast<size_t>(repeat) % size;
      std::vector<dense::Matrix> K = random_quasi_definite(rng, size, m);
      std::vector<dense::Vector> b;
      for (int lane = 0; lane < kTrialLanes; ++lane) b.push_back(normals(rng, size));
      std::vector<dense::Vector> x = quasi_definite(K, m, b);
      for (size_t lane = 0; lane < kTrialLanes; ++lane) {
        const double error = dense::difference(x[lane], dense::solve(K[lane], b[lane]));
        expect(error < 1e-9, "quasi-definite size %zu lane %zu: off by %.1e", size, lane, error);
      }
      // In every second lane a pivot on the wrong side: large enough that no other can save it.
      for (size_t lane = 0; lane < kTrialLanes; lane += 2) K[lane](odd, odd) = odd < m ? 1e6 : -1e6;
      x = quasi_definite(K, m, b);
      for (size_t lane = 0; lane < kTrialLanes; ++lane) {
        if (lane % 2 == 0) {
          expect_dropped("quasi-definite", K[lane], b[lane], x[lane], odd, 1e-9);
        } else {
          const double error = dense::difference(x[lane], dense::solve(K[lane], b[lane]));
          expect(error < 1e-9, "a neighbour's lane changed lane %zu by %.1e", lane, error);
        }
      }
    }
}

void check_positive() {
  Random rng(12);
  for (size_t size = 1; size <= advcore::kMaxCuts; ++size)
    for (int repeat = 0; repeat < 20; ++repeat) {
      const dense::Vector factor = normals(rng, size * size), b = normals(rng, size);
      const bool broken = repeat % 2 == 1;
      const size_t odd = static_cast<size_t>(repeat / 2) % size;
      dense::Matrix H(size);
      for (size_t i = 0; i < size; ++i)
        for (size_t j = 0; j < size; ++j) {
          H(i, j) = i == j ? 0.5 : 0;
          for (size_t k = 0; k < size; ++k) H(i, j) += factor[i * size + k] * factor[j * size + k];
        }
      // Small beside the trace, which has to stay positive.
      if (broken) H(odd, odd) = -1e-3;
      double h[advcore::kMaxCuts][advcore::kMaxCuts] = {}, trace = 0;
      double x[advcore::kMaxCuts];
      for (size_t i = 0; i < size; ++i) {
        trace += H(i, i);
        for (size_t j = 0; j < size; ++j) h[i][j] = H(i, j);
      }
      parts::solve_positive(static_cast<int>(size), h, b.data(), x);
      for (size_t i = 0; i < size; ++i) H(i, i) += 1e-6 * trace / static_cast<double>(size);
      const dense::Vector got(x, x + size);
      if (broken) {
        expect_dropped("positive", H, b, got, odd, 1e-9);
      } else {
        const double error = dense::difference(got, dense::solve(H, b));
        expect(error < 1e-9, "positive size %zu: off by %.1e", size, error);
      }
    }
  double zero[advcore::kMaxCuts][advcore::kMaxCuts] = {}, b[2] = {1, -1}, x[2] = {7, 7};
  parts::solve_positive(2, zero, b, x);
  expect(std::fabs(x[0]) + std::fabs(x[1]) < 1e-100, "H = 0 gave %g %g, not 0", x[0], x[1]);
}

}  // namespace

// Small dense linear systems in float64. The quasi-definite one is also solved for several values
// of c at once, a lane each.
#pragma once

#include "problem.h"

namespace ADVCORE_NS {
namespace {

// Solves K x = b in place, K symmetric (rows*2 square, lower triangle stored by rows) and
// quasi-definite: its first `negative` pivots are negative, the others positive, in every order of
// elimination, so L D L' needs no pivoting (Vanderbei 1995). A pivot that rounding has brought to
// the wrong side belongs to a pair that is nearly a multiple of older ones; its unknown is set to
// zero, which drops the pair from this solve.
template <class Value, class Row>
ADVCORE_FN void solve_quasi_definite(int size, int negative, Row K, Row b) {
  const auto row = [](int i) { return i * (i + 1) / 2; };
  Value inverse[2 * kMaxHistory];  // 1 / pivot: divisions would take half of the time.
  for (int j = 0; j < size; ++j) {
    const double side = j < negative ? -1.0 : 1.0;
    const Row kj = K + row(j);
    const Value diagonal = kj[j] * side;
    Value d = diagonal, v[2 * kMaxHistory];
    for (int p = 0; p < j; ++p) {
      v[p] = kj[p] * K[row(p) + p];
      d -= v[p] * kj[p] * side;
    }
    // Relative rounding of the float32 sums behind K is about 1e-6.
    const auto usable = (d > 1e-9 * diagonal) & (d > 0.0);
    kj[j] = usable ? d * side : Value{} + 1e300 * side;
    inverse[j] = 1.0 / kj[j];
    for (int i = j + 1; i < size; ++i) {
      const Row ki = K + row(i);
      Value t = ki[j];
      for (int p = 0; p < j; ++p) t -= ki[p] * v[p];
      ki[j] = t * inverse[j];
    }
  }
  for (int i = 0; i < size; ++i)
    for (int p = 0; p < i; ++p) b[i] -= K[row(i) + p] * b[p];
  for (int i = size - 1; i >= 0; --i) {
    b[i] *= inverse[i];
    for (int p = i + 1; p < size; ++p) b[i] -= K[row(p) + i] * b[p];
  }
}

// Solves H x = b for a symmetric positive definite H of at most kMaxCuts rows, by Cholesky with a
// floor on the pivots: relative 1e-6 of the trace, as the sums behind H are float32.
ADVCORE_FN inline void solve_positive(int size, double (*H)[kMaxCuts], const double* b, double* x) {
  double trace = 0;
  for (int i = 0; i < size; ++i) trace += H[i][i];
  const double ridge = 1e-6 * trace / (size > 0 ? size : 1);
  for (int j = 0; j < size; ++j) {
    double d = H[j][j] + ridge;
    for (int p = 0; p < j; ++p) d -= H[j][p] * H[j][p];
    H[j][j] = d > 1e-3 * ridge ? __builtin_sqrt(d) : 1e150;
    for (int i = j + 1; i < size; ++i) {
      double t = H[i][j];
      for (int p = 0; p < j; ++p) t -= H[i][p] * H[j][p];
      H[i][j] = t / H[j][j];
    }
  }
  for (int i = 0; i < size; ++i) {
    double t = b[i];
    for (int p = 0; p < i; ++p) t -= H[i][p] * x[p];
    x[i] = t / H[i][i];
  }
  for (int i = size - 1; i >= 0; --i) {
    double t = x[i];
    for (int p = i + 1; p < size; ++p) t -= H[p][i] * x[p];
    x[i] = t / H[i][i];
  }
}

}  // namespace
}  // namespace ADVCORE_NS

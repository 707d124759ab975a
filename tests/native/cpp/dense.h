// Slow and obvious twins in double: Gaussian elimination, the dense BFGS matrix, and projections
// onto half-spaces and a box whose optimality conditions are checked where they are used.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

namespace dense {

using Vector = std::vector<double>;

struct Matrix {
  explicit Matrix(size_t n) : n(n), value(n * n) {}
  double& operator()(size_t i, size_t j) { return value[i * n + j]; }
  double operator()(size_t i, size_t j) const { return value[i * n + j]; }
  size_t n;
  Vector value;
};

inline double dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}
inline double norm(const Vector& a) { return std::sqrt(dot(a, a)); }
inline Vector minus(Vector a, const Vector& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return a;
}
inline Vector from_floats(const float* p, size_t n) { return Vector(p, p + n); }

// ||a - b|| / ||b||; infinity where a is not finite
inline double difference(const Vector& a, const Vector& b) {
  const double error = norm(minus(a, b)) / std::max(norm(b), 1e-300);
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

inline Vector multiply(const Matrix& A, const Vector& x) {
  Vector y(A.n);
  for (size_t i = 0; i < A.n; ++i)
    for (size_t j = 0; j < A.n; ++j) y[i] += A(i, j) * x[j];
  return y;
}

// A x = b by elimination with partial pivoting.
inline Vector solve(Matrix A, Vector b) {
  const size_t n = A.n;
  for (size_t k = 0; k < n; ++k) {
    size_t pivot = k;
    for (size_t i = k + 1; i < n; ++i)
      if (std::fabs(A(i, k)) > std::fabs(A(pivot, k))) pivot = i;
    for (size_t j = k; pivot != k && j < n; ++j) std::swap(A(k, j), A(pivot, j));
    std::swap(b[k], b[pivot]);
    for (size_t i = k + 1; i < n; ++i) {
      const double factor = A(i, k) / A(k, k);
      if (factor == 0) continue;
      for (size_t j = k; j < n; ++j) A(i, j) -= factor * A(k, j);
      b[i] -= factor * b[k];
    }
  }
  for (size_t k = n; k-- > 0;) {
    for (size_t j = k + 1; j < n; ++j) b[k] -= A(k, j) * b[j];
    b[k] /= A(k, k);
  }
  return b;
}

// The rows and columns `kept` of A.
inline Matrix restricted(const Matrix& A, const std::vector<size_t>& kept) {
  Matrix part(kept.size());
  for (size_t i = 0; i < part.n; ++i)
    for (size_t j = 0; j < part.n; ++j) part(i, j) = A(kept[i], kept[j]);
  return part;
}

// BFGS matrix from theta I by one update a pair, oldest first:
//   B <- B - B s s'B / s'Bs + y y' / y's
inline Matrix bfgs(size_t n, double theta, const std::vector<std::pair<Vector, Vector>>& pairs) {
  Matrix B(n);
  for (size_t i = 0; i < n; ++i) B(i, i) = theta;
  for (const auto& [s, y] : pairs) {
    const Vector Bs = multiply(B, s);
    const double sBs = dot(s, Bs), sy = dot(s, y);
    for (size_t i = 0; i < n; ++i)
      for (size_t j = 0; j < n; ++j) B(i, j) += y[i] * y[j] / sy - Bs[i] * Bs[j] / sBs;
  }
  return B;
}

// min 1/2 ||x - q||^2  subject to  rows[j]'(x - x0) + offset[j] >= 0,  lo <= x <= hi
struct Polytope {
  std::vector<Vector> rows;
  Vector offset, x0, q, lo, hi;

  Vector at(const Vector& dual) const {
    Vector x = q;
    for (size_t i = 0; i < x.size(); ++i) {
      for (size_t j = 0; j < rows.size(); ++j) x[i] += dual[j] * rows[j][i];
      x[i] = std::clamp(x[i], lo[i], hi[i]);
    }
    return x;
  }
  Vector residuals(const Vector& x) const {
    Vector out;
    for (size_t j = 0; j < rows.size(); ++j) out.push_back(dot(rows[j], minus(x, x0)) + offset[j]);
    return out;
  }
  // Largest violation of the optimality conditions of x(dual), dual >= 0, as a distance.
  double violation(const Vector& dual) const {
    const Vector residual = residuals(at(dual));
    double worst = 0;
    for (size_t j = 0; j < rows.size(); ++j)
      worst = std::max(worst, dual[j] > 0 ? std::fabs(residual[j]) : -residual[j]);
    return worst;
  }
};

// Accelerated projected gradient on the dual (Beck and Teboulle 2009) with restarts.
inline Vector solve_dual(const Polytope& set, int passes = 40000) {
  const size_t P = set.rows.size();
  double lipschitz = 0;
  for (const Vector& row : set.rows) lipschitz += dot(row, row);
  Vector dual(P), ahead(P);
  double momentum = 1;
  for (int pass = 0; pass < passes; ++pass) {
    if (pass % 16 == 0 && set.violation(dual) < 1e-12) break;
    const Vector residual = set.residuals(set.at(ahead));
    Vector next(P);
    double along = 0;
    for (size_t j = 0; j < P; ++j) {
      next[j] = std::max(ahead[j] - residual[j] / lipschitz, 0.0);
      along += residual[j] * (next[j] - dual[j]);
    }
    momentum = along > 0 ? 1 : momentum;
    const double following = 0.5 * (1 + std::sqrt(1 + 4 * momentum * momentum));
    for (size_t j = 0; j < P; ++j)
      ahead[j] = next[j] + (momentum - 1) / following * (next[j] - dual[j]);
    dual = next;
    momentum = following;
  }
  return dual;
}

// The multiplier of one cut from its sorted breakpoints; infinity where the cut misses the box.
inline double solve_line(const Polytope& set) {
  const Vector &a = set.rows[0], &q = set.q;
  const auto residual = [&](double dual) { return set.residuals(set.at({dual}))[0]; };
  if (residual(0) >= 0) return 0;
  Vector breaks{0};
  for (size_t i = 0; i < a.size(); ++i)
    for (const double bound : {set.lo[i], set.hi[i]})
      if (a[i] != 0 && std::isfinite(bound) && (bound - q[i]) / a[i] > 0)
        breaks.push_back((bound - q[i]) / a[i]);
  std::sort(breaks.begin(), breaks.end());
  double low = breaks.back(), high = low + 1;  // past the last breakpoint the residual is linear
  for (size_t k = 1; k < breaks.size(); ++k)
    if (residual(breaks[k]) >= 0) {
      low = breaks[k - 1], high = breaks[k];
      break;
    }
  const double slope = (residual(high) - residual(low)) / (high - low);
  return slope > 0 ? low - residual(low) / slope : std::numeric_limits<double>::infinity();
}

}  // namespace dense

// The pairs (s, y) of the loss alone, and the compact form of their L-BFGS matrix with damping.
//
//   B = theta I - W M W',  W = [Y, theta S],  M^-1 = [ -D  L' ; L  theta S'S ]
//   (Byrd, Nocedal, Schnabel 1994), D = diag(s_i'y_i), L_ij = s_i'y_j for i newer than j.
//
// The penalty c||r||^2 and the damping mu of Levenberg and Marquardt enter exactly: B_c = B + (2c +
// mu) I, so that, with tau = theta + 2c + mu and W_F the rows of the free variables,
//   (B_c)_FF^-1 v = v / tau + W_F K^-1 W_F'v / tau^2,   K = M^-1 - W_F'W_F / tau.
// Everything that depends on c is in tau: pairs and Gram blocks survive every change of c.
// The pairs lie in a ring that is never sorted; L comes from their ages.
#pragma once

#include "problem.h"
#include "solver/small_solve.h"

namespace ADVCORE_NS {
namespace {

// The vectors of a model: Y, S, the gradient and r.
constexpr int kMaxBasis = 2 * kMaxHistory + 2;

ADVCORE_FN inline float* ring_y(const Params& params, const Problem& p, int i) {
  return p.ring + (size_t)i * params.stride;
}
ADVCORE_FN inline float* ring_s(const Params& params, const Problem& p, int i) {
  return p.ring + (size_t)(params.history + i) * params.stride;
}

// Dot products of the pair in `slot` with R pairs from `first` on, as often as they go into what is
// left, then with fewer.
template <int R, class Team>
ADVCORE_FN void ring_dots(const Team& team, const Params& params, const Problem& p,
                          State::Pairs& pairs, int slot, int first) {
  const int length = params.stride;
  const float* const new_s = ring_s(params, p, slot);
  for (; first + R <= pairs.count; first += R) {
    const float *const y = ring_y(params, p, first), *const old_s = ring_s(params, p, first);
    float dots[2 * R];
    team.template sums<2 * R>(length, dots, [=](int i, Lane* acc) {
      const Lane v = load(new_s, i);
      ADVCORE_UNROLL
      for (int r = 0; r < R; ++r) {
        acc[2 * r] += v * load(old_s, r * length + i);
        acc[2 * r + 1] += v * load(y, r * length + i);
      }
    });
    for (int r = 0; r < R; ++r) {
      pairs.ss[slot][first + r] = pairs.ss[first + r][slot] = dots[2 * r];
      pairs.sy[slot][first + r] = dots[2 * r + 1];
    }
  }
  if constexpr (R > 1) ring_dots<R - 1>(team, params, p, pairs, slot, first);
}

// Pushes s = new_x - old_x and y = g(new_x) - g(old_x), where g = -sigma * gradient of m_T. The
// caller has tested the curvature.
template <class Team>
ADVCORE_FN void push_pair(const Team& team, const Params& params, const Problem& p,
                          State::Pairs& pairs, const float* old_x, const float* old_gradient,
                          float old_sigma, const float* new_x, const float* new_gradient,
                          float new_sigma, float ss, float sy) {
  const int slot = pairs.newest + 1 == params.history ? 0 : pairs.newest + 1;
  float* const new_s = ring_s(params, p, slot);
  float* const new_y = ring_y(params, p, slot);
  team.each(params.stride, [=](int i) {
    store(new_s, i, load(new_x, i) - load(old_x, i));
    store(new_y, i, old_sigma * load(old_gradient, i) - new_sigma * load(new_gradient, i));
  });
  pairs.newest = slot;
  if (pairs.count < params.history) ++pairs.count;
  ring_dots<5>(team, params, p, pairs, slot, 0);
  pairs.ss[slot][slot] = ss;
  pairs.sy[slot][slot] = sy;
}

ADVCORE_FN inline void clear_ring(State::Pairs& pairs) {
  pairs.count = 0;
  pairs.newest = -1;
}

// The age of pair i in pushes; 0: the newest.
ADVCORE_FN inline int age(const Params& params, const State::Pairs& pairs, int i) {
  return pairs.newest - i + (i > pairs.newest ? params.history : 0);
}

// Dot products of a[0..R) with b[0..C) over the free variables, kept in registers. `diagonal`: a
// and b are the same, and the lower triangle is enough.
template <int R, int C, bool diagonal, class Team>
ADVCORE_FN void gram_block(const Team& team, int n, const float* free_mask, const float* const* a,
                           const float* const* b, float (*dots)[Team::kTile]) {
  const float *rows[R], *columns[C];
  for (int r = 0; r < R; ++r) rows[r] = a[r];
  for (int c = 0; c < C; ++c) columns[c] = b[c];
  float sums[R * C];
  team.template sums<R * C>(n, sums, [=](int i, Lane* acc) {
    const Mask is_free = load(free_mask, i) > 0.0f;
    Lane x[R], y[C];
    ADVCORE_UNROLL
    for (int r = 0; r < R; ++r) x[r] = load(rows[r], i);
    ADVCORE_UNROLL
    for (int c = 0; c < C; ++c) y[c] = diagonal ? x[c] : load(columns[c], i);
    ADVCORE_UNROLL
    for (int r = 0; r < R; ++r) {
      if (!kMaskedSums) x[r] = select(is_free, x[r], Lane{});
      ADVCORE_UNROLL
      for (int c = 0; c < (diagonal ? r + 1 : C); ++c) {
        const Lane sum = acc[r * C + c] + x[r] * y[c];
        acc[r * C + c] = kMaskedSums ? select(is_free, sum, acc[r * C + c]) : sum;
      }
    }
  });
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < (diagonal ? r + 1 : C); ++c) dots[r][c] = sums[r * C + c];
}

template <int R, class Team>
ADVCORE_FN void gram_rows(const Team& team, int n, const float* free_mask, const float* const* v,
                          int first, float (*gram)[kMaxBasis]) {
  constexpr int T = Team::kTile;
  float dots[T][T];
  for (int j = 0; j <= first; j += T) {
    if (j < first)
      gram_block<R, T, false>(team, n, free_mask, v + first, v + j, dots);
    else
      gram_block<R, R, true>(team, n, free_mask, v + first, v + first, dots);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < (j < first ? T : r + 1); ++c)
        gram[first + r][j + c] = gram[j + c][first + r] = dots[r][c];
  }
}

// All dot products of the vectors v[first..count) with each other and with those before, over the
// free variables.
template <int R, class Team>
ADVCORE_FN void gram_from(const Team& team, int n, const float* free_mask, const float* const* v,
                          int first, int count, float (*gram)[kMaxBasis]) {
  for (; first + R <= count; first += R) gram_rows<R>(team, n, free_mask, v, first, gram);
  if constexpr (R > 1) gram_from<R - 1>(team, n, free_mask, v, first, count, gram);
}

// gram = v'v over the free variables, for v[0..count).
template <class Team>
ADVCORE_FN void masked_gram(const Team& team, int n, const float* free_mask, const float* const* v,
                            int count, float (*gram)[kMaxBasis]) {
  gram_from<Team::kTile>(team, n, free_mask, v, 0, count, gram);
}

// The entries of K: its lower triangle, by rows.
constexpr int kPacked = kMaxHistory * (2 * kMaxHistory + 1);

// The model of one round: the Gram blocks over the free set, in the order Y, S, gradient of m_T, r;
// and the part of the small systems that c does not change: K = fixed - product / tau.
struct Model {
  int pairs;
  float theta, damping;
  float sigma, margin;  // At the accepted point.
  float gram[kMaxBasis][kMaxBasis];
  double fixed[kPacked];             // M^-1
  double product[kPacked];           // W_F'W_F
  double gradient[2 * kMaxHistory];  // W_F'(gradient of m_T)
  double r[2 * kMaxHistory];         // W_F'r
};

// The solution of the small system at one c; K^-1 W_F'(g + 2 c r) is in q.
template <class Value>
struct Solution {
  Value c;
  Value inverse;  // 1 / tau
};

// The small systems of all trial values of c; for a single c the first numbers of `K`.
struct TrialSystems {
  alignas(64) double c[kTrialCs];
  alignas(64) double margin[kTrialCs];
  StoredTrialC q[2 * kMaxHistory];
  StoredTrialC K[kPacked];
};

// Scratch of a round. No part is set before it is used.
struct Work {
  ADVCORE_INLINE Work() {}
  double newton[kMaxCuts][kMaxCuts];  // The Hessian of the projection (bundle.h).
  double q[2 * kMaxHistory];          // The solution for the c chosen.
  Model model;
  TrialSystems trials;
};

// Fills the small systems from the Gram blocks, once a round.
ADVCORE_FN inline void assemble(const Params& params, const State::Pairs& pairs, Model& model) {
  const int m = model.pairs, iG = 2 * m, iR = 2 * m + 1;
  const double theta = model.theta;
  for (int i = 0, entry = 0; i < 2 * m; ++i) {
    const double scale = i < m ? 1.0 : theta;
    for (int j = 0; j <= i; ++j, ++entry) {
      double fixed = 0;
      if (i < m) {
        fixed = i == j ? -(double)pairs.sy[i][i] : 0.0;
      } else if (j < m) {
        fixed =
            age(params, pairs, i - m) < age(params, pairs, j) ? (double)pairs.sy[i - m][j] : 0.0;
      } else {
        fixed = theta * pairs.ss[i - m][j - m];
      }
      model.fixed[entry] = fixed;
      model.product[entry] = scale * (j < m ? 1.0 : theta) * model.gram[i][j];
    }
    model.gradient[i] = scale * model.gram[i][iG];
    model.r[i] = scale * model.gram[i][iR];
  }
}

// Solves the small system at c: a number, or a vector of them. K and q are rows in memory.
template <class Value, class Row>
ADVCORE_FN Solution<Value> solve_model(const Model& model, Value c, Row K, Row q) {
  const int m = model.pairs;
  const double theta = (double)model.theta + (double)model.damping, sigma = model.sigma;
  const Value inverse = 1.0 / (theta + 2.0 * c);
  for (int i = 0; i < 2 * m; ++i) q[i] = 2.0 * c * model.r[i] - sigma * model.gradient[i];
  for (int i = 0; i < m * (2 * m + 1); ++i) K[i] = model.fixed[i] - model.product[i] * inverse;
  solve_quasi_definite<Value>(2 * m, m, K, q);
  return {c, inverse};
}

// v'B^-1 u for u = g + 2 c r and a v with W_F'v = projected and v'u = direct, which is v'u / tau +
// projected'q / tau^2.
template <class Value, class Row>
ADVCORE_FN Value inverse_product(const Model& model, const Solution<Value>& solution, Row q,
                                 Value direct, const double* projected) {
  Value sum = Value{};
  for (int i = 0; i < 2 * model.pairs; ++i) sum += q[i] * projected[i];
  return (direct + sum * solution.inverse) * solution.inverse;
}

// The margin that the model predicts for the step d: m + (gradient of m_T)'d.
template <class Value, class Row>
ADVCORE_FN Value predicted_margin(const Model& model, const Solution<Value>& solution, Row q) {
  const int iG = 2 * model.pairs, iR = iG + 1;
  const Value direct =
      2.0 * solution.c * (double)model.gram[iG][iR] - (double)model.sigma * model.gram[iG][iG];
  return (double)model.margin - inverse_product(model, solution, q, direct, model.gradient);
}

// The slope of the penalty function along d: (g + 2 c r)'d.
ADVCORE_FN inline double model_slope(const Model& model, const Solution<double>& solution,
                                     const double* q) {
  const int iG = 2 * model.pairs, iR = iG + 1;
  const double c2 = 2 * solution.c, sigma = model.sigma;
  double projected[2 * kMaxHistory];
  for (int i = 0; i < iG; ++i) projected[i] = c2 * model.r[i] - sigma * model.gradient[i];
  const double direct = sigma * sigma * model.gram[iG][iG] - 2 * sigma * c2 * model.gram[iG][iR] +
                        c2 * c2 * model.gram[iR][iR];
  return -inverse_product(model, solution, q, direct, projected);
}

}  // namespace
}  // namespace ADVCORE_NS

// Ring of pairs (s, y) of the loss alone, and the compact form of its L-BFGS matrix with a shift.
//
//   B = theta I - W M W',  W = [Y, theta S],  M^-1 = [ -D  L' ; L  theta S'S ]
//   (Byrd, Nocedal, Schnabel 1994), D = diag(s_i'y_i), L_ij = s_i'y_j for i newer than j.
//
// The penalty c||r||^2 and the Levenberg-Marquardt shift enter exactly: B_c = B + (2c + mu) I, so
// that, with tau = theta + 2c + mu and W_F the rows of the free variables,
//   (B_c)_FF^-1 v = v / tau + W_F K^-1 W_F'v / tau^2,   K = M^-1 - W_F'W_F / tau.
// Everything that depends on c is in tau: pairs and Gram blocks survive every change of c.
// The ring is never sorted; L comes from ages.
#pragma once

namespace ADVCORE_NS {
namespace {

constexpr int kMaxBasis = 2 * kMaxHistory + 2;

ADVCORE_FN inline float* ring_y(const Params& params, const Problem& p, int i) {
  return p.ring + (size_t)i * params.padded_n;
}
ADVCORE_FN inline float* ring_s(const Params& params, const Problem& p, int i) {
  return p.ring + (size_t)(params.history + i) * params.padded_n;
}

// Pushes s = trial - x, y = g(trial) - g(x), where g = -sigma * gradient of m_T. The caller has
// tested the curvature.
template <class Team>
ADVCORE_FN void push_pair(const Team& team, const Params& params, const Problem& p, State& s,
                          const float* from, const float* from_gradient, float from_sigma,
                          const float* to, const float* to_gradient, float to_sigma, float ss,
                          float sy) {
  const int slot = s.newest + 1 == params.history ? 0 : s.newest + 1;
  float* const new_s = ring_s(params, p, slot);
  float* const new_y = ring_y(params, p, slot);
  team.each(params.padded_n, [=](int i) {
    store(new_s, i, load(to, i) - load(from, i));
    store(new_y, i, from_sigma * load(from_gradient, i) - to_sigma * load(to_gradient, i));
  });
  s.newest = slot;
  if (s.pairs < params.history) ++s.pairs;
  for (int first = 0; first < s.pairs; first += 2) {  // two pairs a pass
    const int j = first, k = first + 1 < s.pairs ? first + 1 : first;
    const float *const sj = ring_s(params, p, j), *const sk = ring_s(params, p, k);
    const float *const yj = ring_y(params, p, j), *const yk = ring_y(params, p, k);
    float dots[4];
    team.template sums<4>(params.padded_n, dots, [=](int i, Lane* acc) {
      const Lane v = load(new_s, i);
      acc[0] += v * load(sj, i);
      acc[1] += v * load(yj, i);
      acc[2] += v * load(sk, i);
      acc[3] += v * load(yk, i);
    });
    s.ss[slot][j] = s.ss[j][slot] = dots[0];
    s.sy[slot][j] = dots[1];
    s.ss[slot][k] = s.ss[k][slot] = dots[2];
    s.sy[slot][k] = dots[3];
  }
  s.ss[slot][slot] = ss;
  s.sy[slot][slot] = sy;
}

ADVCORE_FN inline void clear_ring(State& s) {
  s.pairs = 0;
  s.newest = -1;
}

// 0: newest
ADVCORE_FN inline int age(const Params& params, const State& s, int i) {
  return s.newest - i + (i > s.newest ? params.history : 0);
}

// Dot products of a[0..R) with b[0..C), or with themselves (the lower triangle), over the free
// variables; kept in registers.
template <int R, int C, bool diagonal, class Team>
ADVCORE_FN void gram_block(const Team& team, int n, const float* free, const float* const* a,
                           const float* const* b, float (*dots)[Team::kTile]) {
  const float *rows[R], *columns[C];
  for (int r = 0; r < R; ++r) rows[r] = a[r];
  for (int c = 0; c < C; ++c) columns[c] = b[c];
  float sums[R * C];
  team.template sums<R * C>(n, sums, [=](int i, Lane* acc) {
    const Mask on = load(free, i) > 0.0f;
    Lane x[R], y[C];
    ADVCORE_UNROLL
    for (int r = 0; r < R; ++r) x[r] = load(rows[r], i);
    ADVCORE_UNROLL
    for (int c = 0; c < C; ++c) y[c] = diagonal ? x[c] : load(columns[c], i);
    ADVCORE_UNROLL
    for (int r = 0; r < R; ++r) {
      ADVCORE_UNROLL
      for (int c = 0; c < (diagonal ? r + 1 : C); ++c)
        acc[r * C + c] = select(on, acc[r * C + c] + x[r] * y[c], acc[r * C + c]);
    }
  });
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < (diagonal ? r + 1 : C); ++c) dots[r][c] = sums[r * C + c];
}

template <int R, class Team>
ADVCORE_FN void gram_rows(const Team& team, int n, const float* free, const float* const* v,
                          int first, float (*gram)[kMaxBasis]) {
  constexpr int T = Team::kTile;
  float dots[T][T];
  for (int j = 0; j <= first; j += T) {
    if (j < first)
      gram_block<R, T, false>(team, n, free, v + first, v + j, dots);
    else
      gram_block<R, R, true>(team, n, free, v + first, v + first, dots);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < (j < first ? T : r + 1); ++c)
        gram[first + r][j + c] = gram[j + c][first + r] = dots[r][c];
  }
}

// All dot products of the vectors v[first..count), and with those before, over the free variables.
template <int R, class Team>
ADVCORE_FN void gram_from(const Team& team, int n, const float* free, const float* const* v,
                          int first, int count, float (*gram)[kMaxBasis]) {
  for (; first + R <= count; first += R) gram_rows<R>(team, n, free, v, first, gram);
  if constexpr (R > 1) gram_from<R - 1>(team, n, free, v, first, count, gram);
}

template <class Team>
ADVCORE_FN void masked_gram(const Team& team, int n, const float* free, const float* const* v,
                            int count, float (*gram)[kMaxBasis]) {
  gram_from<Team::kTile>(team, n, free, v, 0, count, gram);
}

// The model of one round: Gram blocks over the free set, in the order Y, S, gradient of m_T, r.
struct Model {
  int pairs;
  float theta, shift, sigma, margin;
  float gram[kMaxBasis][kMaxBasis];
};

// Direction and predicted margin for kShifts values of c.
struct Step {
  StoredShifts c;
  StoredShifts tau;
  StoredShifts margin;              // m + (gradient of m_T)'d
  StoredShifts slope;               // (g + 2 c r)'d
  StoredShifts q[2 * kMaxHistory];  // K^-1 W_F'(g + 2 c r)
  StoredShifts K[kMaxHistory * (2 * kMaxHistory + 1)];
};

// The small systems of a round. Not set before they are used.
struct Work {
  ADVCORE_INLINE Work() {}
  double newton[kMaxCuts][kMaxCuts];  // of the projection
  Model model;
  Step step;
};

// For the values step.c.
ADVCORE_FN inline void model_step(const Params& params, const State& s, const Model& model,
                                  Step& step) {
  const int m = model.pairs, size = 2 * m, iG = size, iR = size + 1;
  const double theta = model.theta, sigma = model.sigma;
  const Shifts c = *shifts(&step.c), tau = theta + 2.0 * c + (double)model.shift;
  const Shifts inverse = 1.0 / tau;
  const auto K = shifts(step.K), q = shifts(step.q);
  Shifts u[2 * kMaxHistory];
  for (int i = 0; i < size; ++i) {
    const double scale_i = i < m ? 1.0 : theta;
    u[i] = scale_i * (2.0 * c * (double)model.gram[i][iR] - sigma * model.gram[i][iG]);
    q[i] = u[i];
    for (int j = 0; j <= i; ++j) {
      const double scale = scale_i * (j < m ? 1.0 : theta);
      double fixed = 0;  // of M^-1
      if (i < m) {
        fixed = i == j ? -(double)s.sy[i][i] : 0.0;
      } else if (j < m) {
        fixed = age(params, s, i - m) < age(params, s, j) ? (double)s.sy[i - m][j] : 0.0;
      } else {
        fixed = theta * s.ss[i - m][j - m];
      }
      K[i * (i + 1) / 2 + j] = fixed - scale * model.gram[i][j] * inverse;
    }
  }
  solve_quasi_definite(size, m, K, q);
  Shifts gd = (2.0 * c * (double)model.gram[iG][iR] - sigma * model.gram[iG][iG]) * inverse;
  Shifts vd = (sigma * sigma * model.gram[iG][iG] - 4.0 * sigma * c * (double)model.gram[iG][iR] +
               4.0 * c * c * (double)model.gram[iR][iR]) *
              inverse;
  for (int i = 0; i < size; ++i) {
    const Shifts w = q[i] * inverse * inverse;
    gd += w * ((i < m ? 1.0 : theta) * model.gram[i][iG]);
    vd += w * u[i];
  }
  *shifts(&step.tau) = tau;
  *shifts(&step.margin) = (double)model.margin - gd;
  *shifts(&step.slope) = -vd;
}

}  // namespace
}  // namespace ADVCORE_NS

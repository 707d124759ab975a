// Analytic models in double, in place of a network, for the checks of the solver.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "slot.h"

namespace {

// z = W x + b, or z = V h(W x + b) + v with h = tanh or a ReLU that can be smoothed.
struct Model {
  enum class Kind { affine, tanh, relu };

  Model(Kind kind, int n, int classes, Random& rng, int hidden = 12)
      : kind(kind), n(static_cast<size_t>(n)), classes(static_cast<size_t>(classes)) {
    const size_t rows = kind == Kind::affine ? this->classes : static_cast<size_t>(hidden);
    W = normals(rng, rows * this->n);
    for (double& w : W) w *= 2 / std::sqrt(n);
    b = normals(rng, rows);
    if (kind == Kind::affine) return;
    V = normals(rng, this->classes * rows);
    v = normals(rng, this->classes);
  }
  virtual ~Model() = default;

  // Logits; the state for the next backward.
  virtual dense::Vector forward(const float* x, double k, bool record_scales) {
    dense::Vector h = b;
    for (size_t o = 0; o < h.size(); ++o)
      for (size_t i = 0; i < n; ++i) h[o] += W[o * n + i] * static_cast<double>(x[i]);
    if (kind == Kind::affine) return h;
    if (record_scales) {
      double mean = 0, square = 0;
      for (const double a : h) mean += a, square += a * a;
      const double count = static_cast<double>(h.size());
      scale = std::sqrt(square / count - mean * mean / (count * count));
    }
    slope.assign(h.size(), 0);
    const double d = k * scale;
    for (size_t o = 0; o < h.size(); ++o) {
      const double a = h[o];
      if (kind == Kind::tanh) {
        h[o] = std::tanh(a), slope[o] = 1 - h[o] * h[o];
      } else if (std::fabs(a) < d) {
        h[o] = (a + d) * (a + d) / (4 * d), slope[o] = (a + d) / (2 * d);
      } else {
        h[o] = std::max(a, 0.0), slope[o] = a > 0;
      }
    }
    dense::Vector z = v;
    for (size_t c = 0; c < classes; ++c)
      for (size_t o = 0; o < h.size(); ++o) z[c] += V[c * h.size() + o] * h[o];
    return z;
  }

  virtual dense::Vector backward(const float* dlogits) {
    dense::Vector back(b.size()), dx(n);
    for (size_t o = 0; o < back.size(); ++o) {
      if (kind == Kind::affine) back[o] = static_cast<double>(dlogits[o]);
      for (size_t c = 0; kind != Kind::affine && c < classes; ++c)
        back[o] += slope[o] * V[c * back.size() + o] * static_cast<double>(dlogits[c]);
    }
    for (size_t i = 0; i < n; ++i)
      for (size_t o = 0; o < back.size(); ++o) dx[i] += W[o * n + i] * back[o];
    return dx;
  }

  Kind kind;
  size_t n, classes;
  dense::Vector W, b, V, v, slope;
  double scale = 1;
};

// A model that fails once, in the pass number `at` (from 1).
struct Failing : Model {
  enum class What { logits, gradient };

  Failing(const Model& model, What what, int at) : Model(model), what(what), at(at) {}
  dense::Vector forward(const float* x, double k, bool record_scales) override {
    dense::Vector z = Model::forward(x, k, record_scales);
    if (++pass == at && what == What::logits) z[1] = std::numeric_limits<double>::quiet_NaN();
    return z;
  }
  dense::Vector backward(const float* dlogits) override {
    dense::Vector dx = Model::backward(dlogits);
    if (pass == at && what == What::gradient) dx[0] = std::numeric_limits<double>::quiet_NaN();
    return dx;
  }
  What what;
  int at, pass = 0;
};

// The gradient is zero at one point: there z has no slope in any direction.
struct Flat : Model {
  Flat(const Model& model, const dense::Vector& point) : Model(model), point(point) {}
  dense::Vector forward(const float* x, double k, bool record_scales) override {
    at_point = dense::from_floats(x, n) == point;
    return Model::forward(x, k, record_scales);
  }
  dense::Vector backward(const float* dlogits) override {
    return at_point ? dense::Vector(n) : Model::backward(dlogits);
  }
  dense::Vector point;
  bool at_point = false;
};

}  // namespace

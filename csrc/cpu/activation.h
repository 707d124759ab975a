// Activations h(z) with their derivatives dh, a row at a time. NaN in z gives NaN in h; units of
// the padding (z = 0) get finite values that nothing reads.
//
// Some have a smoothed form for a half-width d > 0. The kink of relu and leaky_relu is replaced by
// a quadratic spline:
//   relu_d(z) = 0 (z <= -d), (z + d)^2 / 4d (|z| < d), z (z >= d)
//   leaky_relu_d(z) = slope z + (1 - slope) relu_d(z)
// Sigmoid and tanh are stretched as if z had noise of standard deviation d (their convolution with
// a normal density, by the probit approximation of MacKay 1992), so that units that are saturated
// at the clean image pass gradients in the first stages:
//   sigmoid_d(z) = sigmoid(z / sqrt(1 + pi d^2 / 8)),  tanh_d(z) = tanh(z / sqrt(1 + pi d^2 / 2))
#pragma once

#include "cpu/lanes.h"
#include "cpu/packed_network.h"

namespace ADVCORE_NS {
namespace {

struct Value {
  Lane h, dh;
};

inline Lane keep_nan(Lane z, Lane h) { return select(z == z, h, z); }

inline Value relu(Lane z) {
  const Mask on = z > 0.0f;
  return {max(Lane{}, z), select(on, broadcast(1.0f), Lane{})};
}

inline Value leaky_relu(Lane z, float slope) {
  const Lane dh = select(z > 0.0f, broadcast(1.0f), broadcast(slope));
  return {z * dh, dh};
}

template <class D>  // float, or a Lane of half-widths
inline Value smoothed_leaky_relu(Lane z, float slope, D d) {
  const Lane t = min(broadcast(1.0f), max(Lane{}, (z + d) * (0.5f / d)));
  const Lane relu_d = select(z >= d, z, d * t * t);
  return {slope * z + (1.0f - slope) * relu_d, slope + (1.0f - slope) * t};
}

// From e = exp(-|z|), as 1 - sigmoid would cancel.
inline Value sigmoid(Lane z) {
  const Lane e = exp(-abs(z)), r = 1.0f / (1.0f + e);
  return {keep_nan(z, select(z >= 0.0f, r, e * r)), e * r * r};
}

// tanh z = (1 - e) / (1 + e) with e = exp(-2|z|), which cancels below 0.625: there an odd
// polynomial (Cephes, tanhf).
inline Value tanh(Lane z) {
  const Lane e = exp(-2.0f * abs(z)), r = 1.0f / (1.0f + e), q = z * z;
  Lane p = broadcast(-5.70498872745e-3f);
  p = p * q + 2.06390887954e-2f;
  p = p * q - 5.37397155531e-2f;
  p = p * q + 1.33314422036e-1f;
  p = p * q - 3.33332819422e-1f;
  const Lane large = (1.0f - e) * r;
  const Lane h = select(abs(z) < 0.625f, p * q * z + z, select(z < 0.0f, -large, large));
  return {keep_nan(z, h), 4.0f * e * r * r};
}

inline Value softplus(Lane z) {
  const Lane e = exp(-abs(z)), r = 1.0f / (1.0f + e);
  return {max(Lane{}, z) + log1p01(e), select(z >= 0.0f, r, e * r)};
}

// z Phi(z). The normal tail Phi(-a) = exp(-a^2/2) t P(t), t = 1 / (1 + 0.35 a), with P of degree 8
// fitted over a in [0, 13.5]: relative error 3.2e-8 before rounding.
inline Value gelu(Lane z) {
  const Lane a = abs(z), e = exp(-0.5f * a * a), t = 1.0f / (1.0f + 0.35f * a);
  Lane p = broadcast(-2.912586938e-2f);
  p = p * t + 1.438722560e-1f;
  p = p * t - 2.555046088e-1f;
  p = p * t + 1.589293435e-1f;
  p = p * t - 2.293717633e-2f;
  p = p * t + 1.054329535e-1f;
  p = p * t + 1.198524329e-1f;
  p = p * t + 1.398590829e-1f;
  p = p * t + 1.396215698e-1f;
  const Lane tail = e * t * p;
  const Lane phi = select(z < 0.0f, tail, 1.0f - tail);
  return {keep_nan(z, z * phi), phi + z * e * 0.398942280f};
}

// z (1 + tanh u) / 2 = z sigmoid(2u), u = sqrt(2/pi) (z + 0.044715 z^3)
inline Value gelu_tanh(Lane z) {
  const Lane q = z * z;
  const Value s = sigmoid(1.595769122f * (z + 0.044715f * z * q));
  const Lane du = 1.595769122f + 0.214063932f * q;
  return {z * s.h, s.h + z * s.dh * du};
}

template <class F>
inline void map(const float* z, float* h, float* dh, int n, F f) {
  for (int i = 0; i < n; i += kLanes) {
    const Value v = f(load(z, i));
    store(h, i, v.h);
    store(dh, i, v.dh);
  }
}

// f(z / sqrt(1 + variance))
template <class F>
inline void map_stretched(const float* z, float* h, float* dh, int n, float variance, F f) {
  const float a = 1.0f / __builtin_sqrtf(1.0f + variance);
  map(z, h, dh, n, [a, f](Lane x) {
    const Value v = f(a * x);
    return Value{v.h, a * v.dh};
  });
}

// z, h, dh: rows (n); h may be z
void activate(Activation kind, float slope, float d, const float* z, float* h, float* dh, int n) {
  switch (kind) {
    case Activation::identity:
      return map(z, h, dh, n, [](Lane x) { return Value{x, broadcast(1.0f)}; });
    case Activation::relu:
      if (!(d > 0.0f)) return map(z, h, dh, n, [](Lane x) { return relu(x); });
      return map(z, h, dh, n, [d](Lane x) { return smoothed_leaky_relu(x, 0.0f, d); });
    case Activation::leaky_relu:
      if (!(d > 0.0f)) return map(z, h, dh, n, [slope](Lane x) { return leaky_relu(x, slope); });
      return map(z, h, dh, n, [slope, d](Lane x) { return smoothed_leaky_relu(x, slope, d); });
    case Activation::sigmoid:
      if (!(d > 0.0f)) return map(z, h, dh, n, [](Lane x) { return sigmoid(x); });
      return map_stretched(z, h, dh, n, 0.3926991f * d * d, [](Lane x) { return sigmoid(x); });
    case Activation::tanh:
      if (!(d > 0.0f)) return map(z, h, dh, n, [](Lane x) { return tanh(x); });
      return map_stretched(z, h, dh, n, 1.5707963f * d * d, [](Lane x) { return tanh(x); });
    case Activation::softplus:
      return map(z, h, dh, n, [](Lane x) { return softplus(x); });
    case Activation::gelu:
      return map(z, h, dh, n, [](Lane x) { return gelu(x); });
    case Activation::gelu_tanh:
      return map(z, h, dh, n, [](Lane x) { return gelu_tanh(x); });
  }
}

// Applies f(z, parameter of the feature) to rows of features side by side.
template <class F>
inline void map_features(const float* parameter, int features, float* z, float* dh, int n, F f) {
  for (int i = 0; i < n; i += features)
    for (int j = 0; j < features; j += kLanes) {
      const Value v = f(load(z, i + j), load(parameter, j));
      store(z, i + j, v.h);
      store(dh, i + j, v.dh);
    }
}

// The smoothed forms in place, with a half-width d > 0 of each feature; d is overwritten.
void activate_features(Activation kind, float slope, float* d, int features, float* z, float* dh,
                       int n) {
  const auto stretched = [&](float variance, auto f) {
    for (int j = 0; j < features; ++j) d[j] = 1.0f / __builtin_sqrtf(1.0f + variance * d[j] * d[j]);
    map_features(d, features, z, dh, n, [f](Lane x, Lane a) {
      const Value v = f(a * x);
      return Value{v.h, a * v.dh};
    });
  };
  if (kind == Activation::sigmoid) return stretched(0.3926991f, [](Lane x) { return sigmoid(x); });
  if (kind == Activation::tanh) return stretched(1.5707963f, [](Lane x) { return tanh(x); });
  if (kind == Activation::relu) slope = 0.0f;
  map_features(d, features, z, dh, n,
               [slope](Lane x, Lane d) { return smoothed_leaky_relu(x, slope, d); });
}

// The scale of the smoothing, its half-width at k = 1: the standard deviation of n values of z,
// `step` apart, around their mean, but at least 1e-3 of their rms.
float standard_deviation(const float* z, int n, int step = 1) {
  double sum = 0, squares = 0, deviations = 0;
  for (int i = 0; i < n; ++i) {
    const double v = z[i * step];
    sum += v;
    squares += v * v;
  }
  const double mean = sum / n;
  for (int i = 0; i < n; ++i) deviations += (z[i * step] - mean) * (z[i * step] - mean);
  const double floor = 1e-3 * __builtin_sqrt(squares / n), width = __builtin_sqrt(deviations / n);
  return max(static_cast<float>(width > floor ? width : floor), 1e-30f);
}

}  // namespace
}  // namespace ADVCORE_NS

// Pooling of h (positions, features), with its derivatives.
#pragma once

#include <stddef.h>

#include "cpu/gemm.h"
#include "cpu/lanes.h"
#include "cpu/packed_network.h"

namespace ADVCORE_NS {
namespace {

// The temperature of smoothed max-pooling for a half-width of 1, as in advcore/oracles/pooling.py.
constexpr float kPoolTemperature = 0.2f;

inline int whole_lanes(int features) { return vectors(features) * kLanes; }

// The values (y, x, feature) that a layer leaves for the next one, with rows `step` floats apart.
struct OutputView {
  float* values;
  size_t step;
  int features;
  float* at(int y, int x) const {
    return values + static_cast<size_t>(y) * step + static_cast<size_t>(x * features);
  }
};

// Calls f(i, k) for each value of the window (y, x): i is its offset in h; k is the offset of its
// derivative in the pooled value, which is i where the windows are side by side.
template <bool side_by_side, class F>
inline void each_value(const Convolution& c, int padded, int y, int x, F f) {
  const Size positions = c.positions();
  if constexpr (side_by_side) {
    const int first = y * c.window.y * positions.x + x * c.window.x;
    for (int i = 0; i < c.window.y; ++i)
      for (int k = 0; k < c.window.x; ++k) {
        const int offset = (first + i * positions.x + k) * padded;
        f(offset, offset);
      }
  } else {
    const int top = y * c.window_step().y - c.pooling_padding.y;
    const int left = x * c.window_step().x - c.pooling_padding.x;
    const int first = (y * c.pooled().x + x) * c.window.area();
    for (int i = 0; i < c.window.y; ++i)
      for (int k = 0; k < c.window.x; ++k) {
        const int row = top + i, column = left + k;
        if (row >= 0 && row < positions.y && column >= 0 && column < positions.x)
          f((row * positions.x + column) * padded, (first + i * c.window.x + k) * padded);
      }
  }
}

// Writes the largest value or the mean of each window to `out`, and the derivatives of the pooled
// values, times dh, to `to`. d (or null) is the half-width of each feature; `parts` is overwritten.
// Where the windows are side by side, `to` may be dh and `parts` h.
template <bool side_by_side>
void pool(const Convolution& c, int features, const float* d, const float* h, const float* dh,
          float* parts, float* to, const OutputView& out) {
  const int padded = whole_lanes(features);
  for (int y = 0; y < c.pooled().y; ++y)
    for (int x = 0; x < c.pooled().x; ++x)
      for (int j = 0; j < features; j += kLanes) {
        const auto each = [&](auto f) {
          each_value<side_by_side>(c, padded, y, x, [&](int i, int k) { f(i + j, k + j); });
        };
        const auto write = [&](Lane v) { store_any(out.at(y, x) + j, v, features - j); };
        Lane sum{};
        if (c.pooling == Pooling::mean) {
          const float part = 1.0f / static_cast<float>(c.window.area());
          each([&](int i, int k) {
            sum += load(h, i);
            store(to, k, part * load(dh, i));
          });
          write(part * sum);
          continue;
        }
        Lane maximum = broadcast(-__builtin_inff());
        each([&](int i, int) {  // NaN stays.
          const Lane v = load(h, i);
          maximum = select((v > maximum) | (v != v), v, maximum);
        });
        if (!d) {
          Mask earlier{};  // The first of equal values has the derivative.
          each([&](int i, int k) {
            const Mask is_largest = (load(h, i) == maximum) & ~earlier;
            store(to, k, select(is_largest, load(dh, i), Lane{}));
            earlier |= is_largest;
          });
          write(maximum);
          continue;
        }
        // T log sum exp(h / T); its derivatives are the parts of the sum.
        const Lane T = kPoolTemperature * load(d, j);
        each([&](int i, int k) {
          const Lane e = exp((load(h, i) - maximum) / T);
          store(parts, k, e);
          sum += e;
        });
        const Lane part = 1.0f / sum;
        each([&](int i, int k) { store(to, k, part * load(parts, k) * load(dh, i)); });
        write(T * log(sum) + maximum);
      }
}

// Adds the gradient at `out`, through the derivatives that `pool` left, to z (positions, features).
void spread_windows(const Convolution& c, int features, const float* derivatives,
                    const OutputView& out, float* z) {
  const int padded = whole_lanes(features);
  for (int i = 0; i < c.positions().area() * padded; i += kLanes) store(z, i, Lane{});
  for (int y = 0; y < c.pooled().y; ++y)
    for (int x = 0; x < c.pooled().x; ++x)
      each_value<false>(c, padded, y, x, [&](int i, int k) {
        for (int j = 0; j < padded; j += kLanes)
          store(z, i + j, load(z, i + j) + load_any(out.at(y, x) + j) * load(derivatives, k + j));
      });
}

}  // namespace
}  // namespace ADVCORE_NS

// Forward and input gradient of the convolutions of one image at a time: one image has hundreds of
// positions that share the weights, and what lies between its layers stays in L2.
//
// Inside, an image is (y, x, channel) with its padding around it. What a position of the kernel
// sees is then, for each row of the kernel, one piece of memory, and the positions are the rows of
// a product with the weights, packed once (gemm.h). Backward: a product with the same weights gives
// the gradient of what each position saw, which is added where it saw it; any kernel and stride.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "cpu/activation.h"
#include "cpu/gemm.h"
#include "cpu/lanes.h"
#include "cpu/packed_network.h"

namespace ADVCORE_NS {
namespace {

// The temperature of smoothed max-pooling for a half-width of 1, as in advcore/oracles/pooling.py.
constexpr float kPoolTemperature = 0.2f;
// Positions whose patches of the gradient are computed together, in L2, before they are added.
constexpr int kPatchRows = 4 * kBlockRows;

inline int whole_lanes(int features) { return vectors(features) * kLanes; }

// The floats from one row of an image to the next.
inline size_t row_floats(const Convolution& c) {
  return static_cast<size_t>(c.padded().x) * static_cast<size_t>(c.channels);
}
inline size_t image_floats(const Convolution& c) {
  return row_floats(c) * static_cast<size_t>(c.padded().y);
}
// The values that the kernel sees at a position.
inline float* position(const Convolution& c, float* image, int y, int x) {
  return image + static_cast<size_t>(y * c.stride.y) * row_floats(c) +
         static_cast<size_t>(x * c.stride.x) * static_cast<size_t>(c.channels);
}
// The image itself inside its padding.
inline float* interior(const Convolution& c, float* image) {
  return image + static_cast<size_t>(c.padding.y) * row_floats(c) +
         static_cast<size_t>(c.padding.x) * static_cast<size_t>(c.channels);
}

// The values (y, x, feature) that a layer leaves for the next one, with rows `step` floats apart.
struct OutputView {
  float* values;
  size_t step;
  int features;
  float* at(int y, int x) const {
    return values + static_cast<size_t>(y) * step + static_cast<size_t>(x * features);
  }
};

// Fills the padding around the interior of an image, which a backward overwrites.
void fill_border(const PackedLayer& layer, float* image) {
  const Convolution& c = *layer.convolution;
  const size_t channels = static_cast<size_t>(c.channels), row = row_floats(c);
  const auto fill = [&](float* pixel, size_t pixels) {
    for (size_t i = 0; i < pixels * channels; ++i) pixel[i] = layer.padding_value[i % channels];
  };
  const size_t border_rows = static_cast<size_t>(c.padding.y * c.padded().x);
  const size_t border_columns = static_cast<size_t>(c.padding.x);
  fill(image, border_rows);
  fill(image + image_floats(c) - border_rows * channels, border_rows);
  for (int y = 0; border_columns > 0 && y < c.size.y; ++y) {
    float* const line = image + static_cast<size_t>(c.padding.y + y) * row;
    fill(line, border_columns);
    fill(line + row - border_columns * channels, border_columns);
  }
}

// Copies x (channel, y, x) to the interior, or the interior to x.
template <bool to_interior>
void transpose_image(const Convolution& c, float* image, float* x) {
  float* const inside = interior(c, image);
  for (int channel = 0; channel < c.channels; ++channel)
    for (int i = 0; i < c.size.y; ++i) {
      float* const row = inside + static_cast<size_t>(i) * row_floats(c) + channel;
      for (int j = 0; j < c.size.x; ++j, ++x) {
        float& value = row[static_cast<size_t>(j * c.channels)];
        to_interior ? value = *x : * x = value;
      }
    }
}

// Writes f(h, dh, feature) of each window, at its first value, to `out`.
template <class F>
void each_window(const Convolution& c, int features, float* h, float* dh, const OutputView& out,
                 F f) {
  const int padded = whole_lanes(features), columns = c.positions().x;
  for (int y = 0; y < c.pooled().y; ++y)
    for (int x = 0; x < c.pooled().x; ++x) {
      const size_t first = static_cast<size_t>(y * c.window.y * columns + x * c.window.x);
      for (int j = 0; j < features; j += kLanes) {
        const size_t offset = first * static_cast<size_t>(padded) + static_cast<size_t>(j);
        store_any(out.at(y, x) + j, f(h + offset, dh + offset, j), features - j);
      }
    }
}

// Calls f(offset) for each value of a window.
template <class F>
inline void each_value(const Convolution& c, int padded, F f) {
  for (int i = 0; i < c.window.y; ++i)
    for (int k = 0; k < c.window.x; ++k) f((i * c.positions().x + k) * padded);
}

// Pools h (positions, features), which is overwritten: the largest value or the mean of each
// window. d (or null) is the half-width of each feature. dh becomes the derivative of the pooled
// value.
void pool(const Convolution& c, int features, const float* d, float* h, float* dh,
          const OutputView& out) {
  const int padded = whole_lanes(features);
  const auto largest = [&](const float* h_window) {
    Lane maximum = load(h_window, 0);
    each_value(c, padded, [&](int i) {  // NaN stays.
      const Lane v = load(h_window, i);
      maximum = select((v > maximum) | (v != v), v, maximum);
    });
    return maximum;
  };
  if (c.pooling == Pooling::mean)
    return each_window(c, features, h, dh, out, [&](float* h_window, float* dh_window, int) {
      const float part = 1.0f / static_cast<float>(c.window.area());
      Lane sum{};
      each_value(c, padded, [&](int i) {
        sum += load(h_window, i);
        store(dh_window, i, part * load(dh_window, i));
      });
      return part * sum;
    });
  if (!d)
    return each_window(c, features, h, dh, out, [&](float* h_window, float* dh_window, int) {
      const Lane maximum = largest(h_window);
      Mask earlier{};  // The first of equal values has the derivative.
      each_value(c, padded, [&](int i) {
        const Mask is_largest = (load(h_window, i) == maximum) & ~earlier;
        store(dh_window, i, select(is_largest, load(dh_window, i), Lane{}));
        earlier |= is_largest;
      });
      return maximum;
    });
  // T log sum exp(h / T); its derivatives are the parts of the sum.
  each_window(c, features, h, dh, out, [&](float* h_window, float* dh_window, int j) {
    const Lane maximum = largest(h_window), T = kPoolTemperature * load(d, j);
    Lane sum{};
    each_value(c, padded, [&](int i) {
      const Lane e = exp((load(h_window, i) - maximum) / T);
      store(h_window, i, e);
      sum += e;
    });
    const Lane part = 1.0f / sum;
    each_value(c, padded,
               [&](int i) { store(dh_window, i, part * load(h_window, i) * load(dh_window, i)); });
    return T * log(sum) + maximum;
  });
}

// Records the scales of z or h (positions, features): of each feature over the positions; where
// there is a single position, over the features, as for a fully connected layer.
void record_feature_scales(const float* z, int positions, int features, float* scales) {
  const int padded = whole_lanes(features);
  const float all = positions == 1 ? standard_deviation(z, features) : 0.0f;
  for (int j = 0; j < features; ++j)
    scales[j] = positions == 1 ? all : standard_deviation(z + j, positions, padded);
}

// The half-widths, k times the scales, padded with ones.
inline void half_widths(float k, const float* scales, int features, float* d) {
  for (int j = 0; j < whole_lanes(features); ++j) d[j] = j < features ? k * scales[j] : 1.0f;
}

// The forward pass of convolution l, from scratch.image[l] to `out`. `scales` are the row's, from
// those of this layer on.
void convolve(const PackedLayer& layer, const Scratch& scratch, int l, float* dh, float k,
              float* scales, bool record_scales, const OutputView& out) {
  const Convolution& c = *layer.convolution;
  const int positions = c.positions().area(), padded = whole_lanes(layer.features);
  const int n = positions * padded;
  for (int i = 0, y = 0; y < c.positions().y; ++y)
    for (int x = 0; x < c.positions().x; ++x, ++i) {
      scratch.read[i] = position(c, scratch.image[l], y, x);
      scratch.written[i] = scratch.z + static_cast<size_t>(i * padded);
    }
  gemm(scratch.read, positions, {c.kernel.x * c.channels, c.kernel.y, row_floats(c)}, layer.forward,
       layer.features, layer.bias, scratch.written);
  if (record_scales) record_feature_scales(scratch.z, positions, layer.features, scales);
  if (k > 0.0f && has_smoothed_form(layer.activation)) {
    half_widths(k, scales, layer.features, scratch.half_width);
    activate_features(layer.activation, layer.slope, scratch.half_width, padded, scratch.z, dh, n);
  } else {
    activate(layer.activation, layer.slope, 0.0f, scratch.z, scratch.z, dh, n);
  }
  float* const pooled = scales ? scales + layer.features : nullptr;
  if (record_scales && c.pooling == Pooling::max)
    record_feature_scales(scratch.z, positions, layer.features, pooled);
  const bool smooth = k > 0.0f && c.pooling == Pooling::max;
  if (smooth) half_widths(k, pooled, layer.features, scratch.half_width);
  if (c.pooling != Pooling::none)
    return pool(c, layer.features, smooth ? scratch.half_width : nullptr, scratch.z, dh, out);
  each_window(c, layer.features, scratch.z, dh, out,
              [](const float* h_window, const float*, int) { return load(h_window, 0); });
}

// The backward pass: the gradient at `out` to that at scratch.image[l], padding included.
void convolve_back(const PackedLayer& layer, const Scratch& scratch, int l, const float* dh,
                   const OutputView& out) {
  const Convolution& c = *layer.convolution;
  const int padded = whole_lanes(layer.features), piece = c.kernel.x * c.channels;
  const size_t patch = static_cast<size_t>(whole_lanes(c.depth()));
  float* const image = scratch.image[l];
  for (size_t i = 0; i < image_floats(c); ++i) image[i] = 0.0f;
  const Size positions = c.positions(), pooled = c.pooled();
  int patches = 0;
  float* targets[kPatchRows];  // The places that the patches are added to.
  const auto add = [&] {
    gemm(scratch.read, patches, {layer.features}, layer.backward, c.depth(), nullptr,
         scratch.written);
    for (int i = 0; i < patches; ++i)
      for (int y = 0; y < c.kernel.y; ++y) {
        float* __restrict const target = targets[i] + static_cast<size_t>(y) * row_floats(c);
        const float* __restrict const patch_row = scratch.written[i] + y * piece;
        for (int j = 0; j < piece; ++j) target[j] += patch_row[j];
      }
    patches = 0;
  };
  // No gradient reaches what the pooling drops at the ends.
  for (int y = 0; y < pooled.y * c.window.y; ++y)
    for (int x = 0; x < pooled.x * c.window.x; ++x) {
      const size_t offset = static_cast<size_t>((y * positions.x + x) * padded);
      float* const dz = scratch.z + static_cast<size_t>(patches * padded);
      const float* const dout = out.at(y / c.window.y, x / c.window.x);
      for (int j = 0; j < padded; j += kLanes)
        store(dz, j, load_any(dout + j) * load(dh + offset, j));
      scratch.read[patches] = dz;
      scratch.written[patches] = scratch.patches + static_cast<size_t>(patches) * patch;
      targets[patches] = position(c, image, y, x);
      if (++patches == kPatchRows) add();
    }
  if (patches > 0) add();
}

// The output of convolution l: the next image, or `row`.
inline OutputView output_of(const PackedNetwork& net, const Scratch& scratch, int l, float* row) {
  const PackedLayer& layer = net.layer[l];
  if (l + 1 < net.convolutions) {
    const Convolution& next = *net.layer[l + 1].convolution;
    return {interior(next, scratch.image[l + 1]), row_floats(next), layer.features};
  }
  const size_t step = static_cast<size_t>(layer.convolution->pooled().x * layer.features);
  return {row, step, layer.features};
}

// The forward pass of row r through all convolutions; the values of the last go to `row`.
void convolutions(const PackedNetwork& net, const Scratch& scratch, int r, const float* x, float k,
                  float* scales, bool record_scales, float* row) {
  transpose_image<true>(*net.layer[0].convolution, scratch.image[0], const_cast<float*>(x));
  for (int l = 0; l < net.convolutions; ++l) {
    fill_border(net.layer[l], scratch.image[l]);
    float* const dh = scratch.derivative[static_cast<size_t>(l * scratch.max_rows + r)];
    convolve(net.layer[l], scratch, l, dh, k, scales ? scales + net.layer[l].scale_offset : nullptr,
             record_scales, output_of(net, scratch, l, row));
  }
}

// The backward pass, from the gradient at the last convolution's values, in `row`, to dx.
void convolutions_back(const PackedNetwork& net, const Scratch& scratch, int r, const float* row,
                       float* dx) {
  for (int l = net.convolutions - 1; l >= 0; --l)
    convolve_back(net.layer[l], scratch, l,
                  scratch.derivative[static_cast<size_t>(l * scratch.max_rows + r)],
                  output_of(net, scratch, l, const_cast<float*>(row)));
  transpose_image<false>(*net.layer[0].convolution, scratch.image[0], dx);
}

}  // namespace
}  // namespace ADVCORE_NS

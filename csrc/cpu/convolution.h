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

constexpr float kPoolTemperature = 0.2f;    // as advcore/pooling.py: T of half-width 1
constexpr int kPatchRows = 4 * kBlockRows;  // whose patches wait, in L2, until they are added

inline int whole_lanes(int features) { return vectors(features) * kLanes; }

// Positions of an image as the product sees them, and how far its rows are apart.
inline size_t row_floats(const Convolution& c) {
  return static_cast<size_t>(c.padded().x) * static_cast<size_t>(c.channels);
}
inline size_t image_floats(const Convolution& c) {
  return row_floats(c) * static_cast<size_t>(c.padded().y);
}
inline float* position(const Convolution& c, float* image, int y, int x) {
  return image + static_cast<size_t>(y * c.stride.y) * row_floats(c) +
         static_cast<size_t>(x * c.stride.x) * static_cast<size_t>(c.channels);
}
// The image itself inside its padding.
inline float* interior(const Convolution& c, float* image) {
  return image + static_cast<size_t>(c.padding.y) * row_floats(c) +
         static_cast<size_t>(c.padding.x) * static_cast<size_t>(c.channels);
}

// Values (y, x, feature) that a layer leaves for the next one: rows of them `step` apart.
struct Place {
  float* values;
  size_t step;
  int features;
  float* at(int y, int x) const {
    return values + static_cast<size_t>(y) * step + static_cast<size_t>(x * features);
  }
};

// The padding around the interior of an image; a backward overwrites it.
void surround(const PackedLayer& layer, float* image) {
  const Convolution& c = *layer.convolution;
  const size_t channels = static_cast<size_t>(c.channels), row = row_floats(c);
  const auto fill = [&](float* at, size_t pixels) {
    for (size_t i = 0; i < pixels * channels; ++i) at[i] = layer.padding_value[i % channels];
  };
  const size_t above = static_cast<size_t>(c.padding.y * c.padded().x);
  const size_t beside = static_cast<size_t>(c.padding.x);
  fill(image, above);
  fill(image + image_floats(c) - above * channels, above);
  for (int y = 0; beside > 0 && y < c.size.y; ++y) {
    float* const left = image + static_cast<size_t>(c.padding.y + y) * row;
    fill(left, beside);
    fill(left + row - beside * channels, beside);
  }
}

// x (channel, y, x) to the interior, or the interior to x.
template <bool in>
void transpose_image(const Convolution& c, float* image, float* x) {
  float* const inside = interior(c, image);
  for (int channel = 0; channel < c.channels; ++channel)
    for (int i = 0; i < c.size.y; ++i) {
      float* const row = inside + static_cast<size_t>(i) * row_floats(c) + channel;
      for (int j = 0; j < c.size.x; ++j, ++x) {
        float& value = row[static_cast<size_t>(j * c.channels)];
        in ? value = *x : * x = value;
      }
    }
}

// out = f(h, dh, feature) of each window, at its first value.
template <class F>
void each_window(const Convolution& c, int features, float* h, float* dh, const Place& out, F f) {
  const int padded = whole_lanes(features), columns = c.positions().x;
  for (int y = 0; y < c.pooled().y; ++y)
    for (int x = 0; x < c.pooled().x; ++x) {
      const size_t first = static_cast<size_t>(y * c.window.y * columns + x * c.window.x);
      for (int j = 0; j < features; j += kLanes) {
        const size_t at = first * static_cast<size_t>(padded) + static_cast<size_t>(j);
        store_any(out.at(y, x) + j, f(h + at, dh + at, j), features - j);
      }
    }
}

// Calls f(offset) for each value of a window.
template <class F>
inline void each_value(const Convolution& c, int padded, F f) {
  for (int i = 0; i < c.window.y; ++i)
    for (int k = 0; k < c.window.x; ++k) f((i * c.positions().x + k) * padded);
}

// Largest or mean of each window of h (positions, features), which is overwritten; d (or null) is
// the half-width of each feature. dh becomes the derivative of the pooled value.
void pool(const Convolution& c, int features, const float* d, float* h, float* dh,
          const Place& out) {
  const int padded = whole_lanes(features);
  const auto largest = [&](const float* at) {
    Lane most = load(at, 0);
    each_value(c, padded, [&](int i) {  // NaN stays
      const Lane v = load(at, i);
      most = select((v > most) | (v != v), v, most);
    });
    return most;
  };
  if (c.pooling == Pooling::mean)
    return each_window(c, features, h, dh, out, [&](float* at, float* dat, int) {
      const float part = 1.0f / static_cast<float>(c.window.area());
      Lane sum{};
      each_value(c, padded, [&](int i) {
        sum += load(at, i);
        store(dat, i, part * load(dat, i));
      });
      return part * sum;
    });
  if (!d)
    return each_window(c, features, h, dh, out, [&](float* at, float* dat, int) {
      const Lane most = largest(at);
      Mask taken{};  // the first of equals has the derivative
      each_value(c, padded, [&](int i) {
        const Mask here = (load(at, i) == most) & ~taken;
        store(dat, i, select(here, load(dat, i), Lane{}));
        taken |= here;
      });
      return most;
    });
  // T log sum exp(h / T), its derivatives the parts of the sum
  each_window(c, features, h, dh, out, [&](float* at, float* dat, int j) {
    const Lane most = largest(at), T = kPoolTemperature * load(d, j);
    Lane sum{};
    each_value(c, padded, [&](int i) {
      const Lane e = exp((load(at, i) - most) / T);
      store(at, i, e);
      sum += e;
    });
    const Lane part = 1.0f / sum;
    each_value(c, padded, [&](int i) { store(dat, i, part * load(at, i) * load(dat, i)); });
    return T * log(sum) + most;
  });
}

// Widths of z or h (positions, features): of each feature over the positions; of a single position
// over the features, as of a fully connected layer.
void measure_features(const float* z, int positions, int features, float* widths) {
  const int padded = whole_lanes(features);
  const float all = positions == 1 ? spread(z, features) : 0.0f;
  for (int j = 0; j < features; ++j)
    widths[j] = positions == 1 ? all : spread(z + j, positions, padded);
}

// The half-widths k width, padded with ones.
inline void half_widths(float k, const float* widths, int features, float* d) {
  for (int j = 0; j < whole_lanes(features); ++j) d[j] = j < features ? k * widths[j] : 1.0f;
}

// From scratch.image[l] to `out`. widths: the row's, from this layer's on.
void convolve(const PackedLayer& layer, const Scratch& scratch, int l, float* dh, float k,
              float* widths, bool measure, const Place& out) {
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
  if (measure) measure_features(scratch.z, positions, layer.features, widths);
  if (k > 0.0f && has_smoothed_form(layer.activation)) {
    half_widths(k, widths, layer.features, scratch.half_width);
    activate_features(layer.activation, layer.slope, scratch.half_width, padded, scratch.z, dh, n);
  } else {
    activate(layer.activation, layer.slope, 0.0f, scratch.z, scratch.z, dh, n);
  }
  float* const pooled = widths ? widths + layer.features : nullptr;
  if (measure && c.pooling == Pooling::max)
    measure_features(scratch.z, positions, layer.features, pooled);
  const bool smooth = k > 0.0f && c.pooling == Pooling::max;
  if (smooth) half_widths(k, pooled, layer.features, scratch.half_width);
  if (c.pooling != Pooling::none)
    return pool(c, layer.features, smooth ? scratch.half_width : nullptr, scratch.z, dh, out);
  each_window(c, layer.features, scratch.z, dh, out,
              [](const float* at, const float*, int) { return load(at, 0); });
}

// Gradient at `out` to that at scratch.image[l], padding included.
void convolve_back(const PackedLayer& layer, const Scratch& scratch, int l, const float* dh,
                   const Place& out) {
  const Convolution& c = *layer.convolution;
  const int padded = whole_lanes(layer.features), piece = c.kernel.x * c.channels;
  const size_t patch = static_cast<size_t>(whole_lanes(c.depth()));
  float* const image = scratch.image[l];
  for (size_t i = 0; i < image_floats(c); ++i) image[i] = 0.0f;
  const Size positions = c.positions(), pooled = c.pooled();
  int waiting = 0;
  float* into[kPatchRows];  // where the patches that wait belong
  const auto add = [&] {
    gemm(scratch.read, waiting, {layer.features}, layer.backward, c.depth(), nullptr,
         scratch.written);
    for (int i = 0; i < waiting; ++i)
      for (int y = 0; y < c.kernel.y; ++y) {
        float* __restrict const to = into[i] + static_cast<size_t>(y) * row_floats(c);
        const float* __restrict const from = scratch.written[i] + y * piece;
        for (int j = 0; j < piece; ++j) to[j] += from[j];
      }
    waiting = 0;
  };
  // No gradient reaches what the pooling drops at the ends.
  for (int y = 0; y < pooled.y * c.window.y; ++y)
    for (int x = 0; x < pooled.x * c.window.x; ++x) {
      const size_t at = static_cast<size_t>((y * positions.x + x) * padded);
      float* const dz = scratch.z + static_cast<size_t>(waiting * padded);
      const float* const dout = out.at(y / c.window.y, x / c.window.x);
      for (int j = 0; j < padded; j += kLanes) store(dz, j, load_any(dout + j) * load(dh + at, j));
      scratch.read[waiting] = dz;
      scratch.written[waiting] = scratch.patches + static_cast<size_t>(waiting) * patch;
      into[waiting] = position(c, image, y, x);
      if (++waiting == kPatchRows) add();
    }
  if (waiting > 0) add();
}

// Where convolution l leaves its values for the next layer: in the next image, or in `row`.
inline Place place_after(const PackedNetwork& net, const Scratch& scratch, int l, float* row) {
  const PackedLayer& layer = net.layer[l];
  if (l + 1 < net.convolutions) {
    const Convolution& next = *net.layer[l + 1].convolution;
    return {interior(next, scratch.image[l + 1]), row_floats(next), layer.features};
  }
  const size_t step = static_cast<size_t>(layer.convolution->pooled().x * layer.features);
  return {row, step, layer.features};
}

// Row r through all convolutions; the last one's values to `row`.
void convolutions(const PackedNetwork& net, const Scratch& scratch, int r, const float* x, float k,
                  float* widths, bool measure, float* row) {
  transpose_image<true>(*net.layer[0].convolution, scratch.image[0], const_cast<float*>(x));
  for (int l = 0; l < net.convolutions; ++l) {
    surround(net.layer[l], scratch.image[l]);
    float* const dh = scratch.derivative[static_cast<size_t>(l * scratch.max_rows + r)];
    convolve(net.layer[l], scratch, l, dh, k, widths ? widths + net.layer[l].width : nullptr,
             measure, place_after(net, scratch, l, row));
  }
}

// The gradient at `row`, that of the last convolution's values, to dx.
void convolutions_back(const PackedNetwork& net, const Scratch& scratch, int r, const float* row,
                       float* dx) {
  for (int l = net.convolutions - 1; l >= 0; --l)
    convolve_back(net.layer[l], scratch, l,
                  scratch.derivative[static_cast<size_t>(l * scratch.max_rows + r)],
                  place_after(net, scratch, l, const_cast<float*>(row)));
  transpose_image<false>(*net.layer[0].convolution, scratch.image[0], dx);
}

}  // namespace
}  // namespace ADVCORE_NS

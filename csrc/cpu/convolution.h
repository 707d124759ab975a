// Forward and input gradient of the layers of images, one image at a time: one image has hundreds
// of positions that share the weights, and what lies between its layers stays in L2.
//
// Inside, an image is (y, x, channel) with its padding around it. What a position of the kernel
// sees is then, for each row of the kernel, one piece of memory, and the positions are the rows of
// a product with the weights, packed once (gemm.h). Backward: a product with the same weights gives
// the gradient of what each position saw, which is added where it saw it; any kernel and stride.
//
// Several layers may take one image. It has the widest padding that any of them needs, and their
// gradients add up in it: the last of them, which is the first on the way back, finds it zeroed.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "cpu/activation.h"
#include "cpu/gemm.h"
#include "cpu/lanes.h"
#include "cpu/packed_network.h"
#include "cpu/pooling.h"

namespace ADVCORE_NS {
namespace {

// Positions whose patches of the gradient are computed together, in L2, before they are added.
constexpr int kPatchRows = 4 * kBlockRows;

// The values that the kernel sees at a position.
inline float* position(const Convolution& c, const Image& image, float* values, int y, int x) {
  return values + image.offset(y * c.stride.y - c.padding.y, x * c.stride.x - c.padding.x);
}

// Fills the padding around an image, which a backward overwrites.
void fill_border(const Image& image, float* values) {
  const size_t channels = static_cast<size_t>(image.channels), row = image.row();
  const auto fill = [&](float* pixel, size_t pixels) {
    for (size_t i = 0; i < pixels * channels; ++i) pixel[i] = image.padding_value[i % channels];
  };
  const size_t border_columns = static_cast<size_t>(image.padding.x);
  const size_t border_rows = static_cast<size_t>(image.padding.y) * (row / channels);
  fill(values, border_rows);
  fill(values + image.floats() - border_rows * channels, border_rows);
  for (int y = 0; border_columns > 0 && y < image.size.y; ++y) {
    float* const line = values + static_cast<size_t>(image.padding.y + y) * row;
    fill(line, border_columns);
    fill(line + row - border_columns * channels, border_columns);
  }
}

// Copies x (channel, y, x) to an image inside its padding, or the image to x.
template <bool to_image>
void transpose_image(const Image& image, float* values, float* x) {
  for (int channel = 0; channel < image.channels; ++channel)
    for (int i = 0; i < image.size.y; ++i) {
      float* const row = values + image.offset(i, 0) + channel;
      for (int j = 0; j < image.size.x; ++j, ++x) {
        float& value = row[static_cast<size_t>(j * image.channels)];
        to_image ? value = *x : * x = value;
      }
    }
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

// The product of a convolution: z (positions, features).
void multiply_positions(const PackedNetwork& net, const PackedLayer& layer,
                        const Scratch& scratch) {
  const Convolution& c = *layer.convolution;
  const Image& image = net.image[layer.sources[0]];
  float* const values = scratch.image[layer.sources[0]];
  const int padded = whole_lanes(layer.features);
  for (int i = 0, y = 0; y < c.positions().y; ++y)
    for (int x = 0; x < c.positions().x; ++x, ++i) {
      scratch.read[i] = position(c, image, values, y, x);
      scratch.written[i] = scratch.z + static_cast<size_t>(i * padded);
    }
  gemm(scratch.read, c.positions().area(), {c.kernel.x * c.channels, c.kernel.y, image.row()},
       layer.forward, layer.features, layer.bias, scratch.written);
}

// The sum or the concatenation of a merge with the map of its channels: z (positions, features).
void merge_images(const PackedNetwork& net, const PackedLayer& layer, const Scratch& scratch) {
  const Size size = layer.convolution->size;
  const int padded = whole_lanes(layer.features);
  float* z = scratch.z;
  for (int y = 0; y < size.y; ++y)
    for (int x = 0; x < size.x; ++x, z += padded) {
      store(z, padded - kLanes, Lane{});
      int first = 0;  // The channel of z that the source begins at.
      for (int s = 0; s < layer.source_count; ++s) {
        const Image& image = net.image[layer.sources[s]];
        const float* const from = scratch.image[layer.sources[s]] + image.offset(y, x);
        const bool adds = s > 0 && layer.merge == Merge::sum;
        for (int j = 0; j < image.channels; j += kLanes) {
          const Lane v = load_any(from + j);
          store_any(z + first + j, adds ? load_any(z + first + j) + v : v, image.channels - j);
        }
        if (layer.merge == Merge::concatenate) first += image.channels;
      }
      for (int j = 0; layer.scale && j < padded; j += kLanes)
        store(z, j, load(layer.scale, j) * load(z, j) + load(layer.bias, j));
    }
}

// The forward pass of a layer of images, from those that it takes to `out`. `scales` are the row's,
// from those of this layer on.
void forward_image(const PackedNetwork& net, const PackedLayer& layer, const Scratch& scratch,
                   float* dh, float k, float* scales, bool record_scales, const OutputView& out) {
  const Convolution& c = *layer.convolution;
  const int positions = c.positions().area(), padded = whole_lanes(layer.features);
  const int n = positions * padded;
  if (layer.merge == Merge::none)
    multiply_positions(net, layer, scratch);
  else
    merge_images(net, layer, scratch);
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
  const float* const d = smooth ? scratch.half_width : nullptr;
  if (c.pooling == Pooling::none) {
    const float* h = scratch.z;
    for (int y = 0; y < c.positions().y; ++y)
      for (int x = 0; x < c.positions().x; ++x, h += padded)
        for (int j = 0; j < layer.features; j += kLanes)
          store_any(out.at(y, x) + j, load(h, j), layer.features - j);
  } else if (c.side_by_side()) {
    pool<true>(c, layer.features, d, scratch.z, dh, scratch.z, dh, out);
  } else {
    pool<false>(c, layer.features, d, scratch.z, dh, dh + n, dh + n, out);
  }
}

// Calls f(y, x, dz) with the gradient at each position before the activation, from that at `out`.
// kPatchRows such rows stay. No gradient reaches what the pooling drops at the ends.
template <class F>
void each_gradient(const PackedLayer& layer, const Scratch& scratch, const float* dh,
                   const OutputView& out, F f) {
  const Convolution& c = *layer.convolution;
  const Size positions = c.positions(), pooled = c.pooled();
  const int padded = whole_lanes(layer.features);
  if (!c.side_by_side()) {
    float* dz = scratch.z;
    spread_windows(c, layer.features, dh + positions.area() * padded, out, dz);
    for (int y = 0; y < positions.y; ++y)
      for (int x = 0; x < positions.x; ++x, dz += padded) f(y, x, dz);
    return;
  }
  int slot = 0;
  for (int y = 0; y < pooled.y * c.window.y; ++y)
    for (int x = 0; x < pooled.x * c.window.x; ++x) {
      const size_t offset = static_cast<size_t>((y * positions.x + x) * padded);
      float* const dz = scratch.z + static_cast<size_t>(slot * padded);
      const float* const dout = out.at(y / c.window.y, x / c.window.x);
      for (int j = 0; j < padded; j += kLanes)
        store(dz, j, load_any(dout + j) * load(dh + offset, j));
      if (++slot == kPatchRows) slot = 0;
      f(y, x, dz);
    }
}

// The backward pass of a convolution: the gradient at `out` to that at its image, padding included.
void convolve_back(const PackedNetwork& net, const PackedLayer& layer, const Scratch& scratch,
                   const float* dh, const OutputView& out) {
  const Convolution& c = *layer.convolution;
  const Image& image = net.image[layer.sources[0]];
  float* const values = scratch.image[layer.sources[0]];
  const int piece = c.kernel.x * c.channels;
  const size_t patch = static_cast<size_t>(whole_lanes(c.depth()));
  int patches = 0;
  float* targets[kPatchRows];  // The places that the patches are added to.
  const auto add = [&] {
    gemm(scratch.read, patches, {layer.features}, layer.backward, c.depth(), nullptr,
         scratch.written);
    for (int i = 0; i < patches; ++i)
      for (int y = 0; y < c.kernel.y; ++y) {
        float* __restrict const target = targets[i] + static_cast<size_t>(y) * image.row();
        const float* __restrict const patch_row = scratch.written[i] + y * piece;
        for (int j = 0; j < piece; ++j) target[j] += patch_row[j];
      }
    patches = 0;
  };
  each_gradient(layer, scratch, dh, out, [&](int y, int x, const float* dz) {
    scratch.read[patches] = dz;
    scratch.written[patches] = scratch.patches + static_cast<size_t>(patches) * patch;
    targets[patches] = position(c, image, values, y, x);
    if (++patches == kPatchRows) add();
  });
  if (patches > 0) add();
}

// The backward pass of a merge: the gradient at `out` is added to those at its images.
void merge_back(const PackedNetwork& net, const PackedLayer& layer, const Scratch& scratch,
                const float* dh, const OutputView& out) {
  const int padded = whole_lanes(layer.features);
  each_gradient(layer, scratch, dh, out, [&](int y, int x, float* dz) {
    for (int j = 0; layer.scale && j < padded; j += kLanes)
      store(dz, j, load(layer.scale, j) * load(dz, j));
    const float* from = dz;
    for (int s = 0; s < layer.source_count; ++s) {
      const Image& image = net.image[layer.sources[s]];
      float* const to = scratch.image[layer.sources[s]] + image.offset(y, x);
      for (int j = 0; j < image.channels; j += kLanes)
        store_any(to + j, load_any(to + j) + load_any(from + j), image.channels - j);
      if (layer.merge == Merge::concatenate) from += image.channels;
    }
  });
}

// The output of layer l of images: an image, or `row`.
inline OutputView output_of(const PackedNetwork& net, const Scratch& scratch, int l, float* row) {
  const PackedLayer& layer = net.layer[l];
  if (l + 1 < net.maps) {
    const Image& image = net.image[l + 1];
    return {scratch.image[l + 1] + image.offset(0, 0), image.row(), layer.features};
  }
  const size_t step = static_cast<size_t>(layer.convolution->pooled().x * layer.features);
  return {row, step, layer.features};
}

// The forward pass of row r through all layers of images; the values of the last go to `row`.
void forward_images(const PackedNetwork& net, const Scratch& scratch, int r, const float* x,
                    float k, float* scales, bool record_scales, float* row) {
  transpose_image<true>(net.image[0], scratch.image[0], const_cast<float*>(x));
  for (int l = 0; l < net.maps; ++l) {
    fill_border(net.image[l], scratch.image[l]);
    float* const dh = scratch.derivative[static_cast<size_t>(l * scratch.max_rows + r)];
    forward_image(net, net.layer[l], scratch, dh, k,
                  scales ? scales + net.layer[l].scale_offset : nullptr, record_scales,
                  output_of(net, scratch, l, row));
  }
}

// The backward pass, from the gradient at the last layer's values, in `row`, to dx.
void backward_images(const PackedNetwork& net, const Scratch& scratch, int r, const float* row,
                     float* dx) {
  for (int l = net.maps - 1; l >= 0; --l) {
    const PackedLayer& layer = net.layer[l];
    for (int s = 0; s < layer.source_count; ++s) {
      const Image& image = net.image[layer.sources[s]];
      float* const values = scratch.image[layer.sources[s]];
      for (size_t i = 0; image.last_reader == l && i < image.floats(); ++i) values[i] = 0.0f;
    }
    const float* const dh = scratch.derivative[static_cast<size_t>(l * scratch.max_rows + r)];
    const OutputView out = output_of(net, scratch, l, const_cast<float*>(row));
    if (layer.merge == Merge::none)
      convolve_back(net, layer, scratch, dh, out);
    else
      merge_back(net, layer, scratch, dh, out);
  }
  transpose_image<false>(net.image[0], scratch.image[0], dx);
}

}  // namespace
}  // namespace ADVCORE_NS

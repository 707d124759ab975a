// Forward and input gradient of the layers of images, one image at a time while it has many
// positions, which share the weights: what lies between its layers stays in L2. Layers of few
// positions, where weights are read for few rows, take the positions of several images together.
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
// Positions of several images in a product, and images that go through the layers together. With
// weights from memory a product of depth 4,608 ran at 54 Gflop/s at 4 rows, 98 at 16, 108 at 64
// and 110 at 128 (v4, one core of an AMD EPYC 9004).
constexpr int kGroupPositions = 64;
constexpr int kGroup = 16;

// The first of the layers of images, up to the last, that all have few positions.
inline int first_together(const PackedNetwork& net) {
  int first = net.maps;
  while (first > 0 && 2 * net.layer[first - 1].convolution->positions().area() <= kGroupPositions)
    --first;
  return first;
}

// Images that go through the layers together.
inline int group_size(const PackedNetwork& net, int max_rows) {
  return first_together(net) == net.maps ? 1 : max_rows < kGroup ? max_rows : kGroup;
}

// Image l of the i-th image of a group.
inline float* image_of(const Scratch& scratch, int l, int i) {
  return scratch.image[l * scratch.group + i];
}

// The z of the i-th of several images in a product.
inline float* z_of(const PackedLayer& layer, const Scratch& scratch, int i) {
  return scratch.z + static_cast<size_t>(i * layer.convolution->positions().area() *
                                         whole_lanes(layer.features));
}

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

// The product of a convolution for images first, ..., first + count - 1 of a group: z (count,
// positions, features).
void multiply_positions(const PackedNetwork& net, const PackedLayer& layer, const Scratch& scratch,
                        int first, int count) {
  const Convolution& c = *layer.convolution;
  const Image& image = net.image[layer.sources[0]];
  const int padded = whole_lanes(layer.features);
  int rows = 0;
  for (int i = first; i < first + count; ++i) {
    float* const values = image_of(scratch, layer.sources[0], i);
    for (int y = 0; y < c.positions().y; ++y)
      for (int x = 0; x < c.positions().x; ++x, ++rows) {
        scratch.read[rows] = position(c, image, values, y, x);
        scratch.written[rows] = scratch.z + static_cast<size_t>(rows * padded);
      }
  }
  gemm(scratch.read, rows, {c.kernel.x * c.channels, c.kernel.y, image.row()}, layer.forward,
       layer.features, layer.bias, scratch.written);
}

// The sum or the concatenation of a merge with the map of its channels, of image `index`
// of a group: z (positions, features).
void merge_images(const PackedNetwork& net, const PackedLayer& layer, const Scratch& scratch,
                  int index, float* z) {
  const Size size = layer.convolution->size;
  const int padded = whole_lanes(layer.features);
  for (int y = 0; y < size.y; ++y)
    for (int x = 0; x < size.x; ++x, z += padded) {
      store(z, padded - kLanes, Lane{});
      int first = 0;  // The channel of z that the source begins at.
      for (int s = 0; s < layer.source_count; ++s) {
        const Image& image = net.image[layer.sources[s]];
        const float* const from = image_of(scratch, layer.sources[s], index) + image.offset(y, x);
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

// What follows z (positions, features) in a layer of images: its activation and its pooling, to
// `out`. `scales` are the row's, from those of this layer on.
void finish_layer(const PackedLayer& layer, const Scratch& scratch, float* z, float* dh, float k,
                  float* scales, bool record_scales, const OutputView& out) {
  const Convolution& c = *layer.convolution;
  const int positions = c.positions().area(), padded = whole_lanes(layer.features);
  const int n = positions * padded;
  if (record_scales) record_feature_scales(z, positions, layer.features, scales);
  if (k > 0.0f && has_smoothed_form(layer.activation)) {
    half_widths(k, scales, layer.features, scratch.half_width);
    activate_features(layer.activation, layer.slope, scratch.half_width, padded, z, dh, n);
  } else {
    activate(layer.activation, layer.slope, 0.0f, z, z, dh, n);
  }
  float* const pooled = scales ? scales + layer.features : nullptr;
  if (record_scales && c.pooling == Pooling::max)
    record_feature_scales(z, positions, layer.features, pooled);
  const bool smooth = k > 0.0f && c.pooling == Pooling::max;
  if (smooth) half_widths(k, pooled, layer.features, scratch.half_width);
  const float* const d = smooth ? scratch.half_width : nullptr;
  if (c.pooling == Pooling::none) {
    const float* h = z;
    for (int y = 0; y < c.positions().y; ++y)
      for (int x = 0; x < c.positions().x; ++x, h += padded)
        for (int j = 0; j < layer.features; j += kLanes)
          store_any(out.at(y, x) + j, load(h, j), layer.features - j);
  } else if (c.side_by_side()) {
    pool<true>(c, layer.features, d, z, dh, z, dh, out);
  } else {
    pool<false>(c, layer.features, d, z, dh, dh + n, dh + n, out);
  }
}

// Calls f(y, x, dz) with the gradient at each position before the activation, from that at `out`.
// kPatchRows such rows stay, or all where windows are not side by side; `slot` is the place of the
// next. No gradient reaches what the pooling drops at the ends.
template <class F>
void each_gradient(const PackedLayer& layer, const Scratch& scratch, const float* dh,
                   const OutputView& out, int& slot, F f) {
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

// The backward pass of a merge: the gradient at `out` is added to those at its images.
void merge_back(const PackedNetwork& net, const PackedLayer& layer, const Scratch& scratch,
                int index, const float* dh, const OutputView& out) {
  const int padded = whole_lanes(layer.features);
  int slot = 0;
  each_gradient(layer, scratch, dh, out, slot, [&](int y, int x, float* dz) {
    for (int j = 0; layer.scale && j < padded; j += kLanes)
      store(dz, j, load(layer.scale, j) * load(dz, j));
    const float* from = dz;
    for (int s = 0; s < layer.source_count; ++s) {
      const Image& image = net.image[layer.sources[s]];
      float* const to = image_of(scratch, layer.sources[s], index) + image.offset(y, x);
      for (int j = 0; j < image.channels; j += kLanes)
        store_any(to + j, load_any(to + j) + load_any(from + j), image.channels - j);
      if (layer.merge == Merge::concatenate) from += image.channels;
    }
  });
}

// The output of layer l of images: image `index` of a group, or `row`.
inline OutputView output_of(const PackedNetwork& net, const Scratch& scratch, int l, int index,
                            float* row) {
  const PackedLayer& layer = net.layer[l];
  if (l + 1 < net.maps) {
    const Image& image = net.image[l + 1];
    return {image_of(scratch, l + 1, index) + image.offset(0, 0), image.row(), layer.features};
  }
  const size_t step = static_cast<size_t>(layer.convolution->pooled().x * layer.features);
  return {row, step, layer.features};
}

inline float* derivative_of(const Scratch& scratch, int l, int r) {
  return scratch.derivative[static_cast<size_t>(l * scratch.max_rows + r)];
}

// The rows of a forward (isa.h); the values of the last layer of images go to `out`.
struct ImageRows {
  const float* const* x;
  const float* k;
  float* const* scales;
  const uint8_t* record_scales;
  float* const* out;
};

// The forward pass of layer l for images first, ..., first + count - 1 of the group of rows that
// begins at `row`. They are few enough for one product.
void forward_layer(const PackedNetwork& net, const Scratch& scratch, int l, int row, int first,
                   int count, const ImageRows& rows) {
  const PackedLayer& layer = net.layer[l];
  for (int i = first; i < first + count; ++i) fill_border(net.image[l], image_of(scratch, l, i));
  if (layer.merge == Merge::none) multiply_positions(net, layer, scratch, first, count);
  for (int i = first; i < first + count; ++i) {
    const int r = row + i;
    float* const z = z_of(layer, scratch, i - first);
    if (layer.merge != Merge::none) merge_images(net, layer, scratch, i, z);
    float* const scales =
        rows.scales && rows.scales[r] ? rows.scales[r] + layer.scale_offset : nullptr;
    finish_layer(layer, scratch, z, derivative_of(scratch, l, r), rows.k ? rows.k[r] : 0.0f, scales,
                 rows.record_scales && rows.record_scales[r],
                 output_of(net, scratch, l, i, rows.out[r]));
  }
}

// The forward pass of rows row, ..., row + count - 1, at most a group, through all layers of
// images.
void forward_images(const PackedNetwork& net, const Scratch& scratch, int row, int count,
                    const ImageRows& rows) {
  for (int i = 0; i < count; ++i) {
    transpose_image<true>(net.image[0], image_of(scratch, 0, i),
                          const_cast<float*>(rows.x[row + i]));
    for (int l = 0; l < scratch.together; ++l) forward_layer(net, scratch, l, row, i, 1, rows);
  }
  for (int l = scratch.together; l < net.maps; ++l) {
    const int most = kGroupPositions / net.layer[l].convolution->positions().area();
    for (int i = 0; i < count; i += most)
      forward_layer(net, scratch, l, row, i, count - i < most ? count - i : most, rows);
  }
}

// The backward pass of convolution l for images first, ..., first + count - 1 of a group: those of
// the given rows, whose gradients at the last layer's values are in `row`. From the gradient at its
// output to that at its image, padding included. Patches are of positions of one image or several.
void convolve_back(const PackedNetwork& net, const Scratch& scratch, int l, const int* rows,
                   int first, int count, const float* const* row) {
  const PackedLayer& layer = net.layer[l];
  const Convolution& c = *layer.convolution;
  const Image& image = net.image[layer.sources[0]];
  const int piece = c.kernel.x * c.channels;
  const size_t patch = static_cast<size_t>(whole_lanes(c.depth()));
  int patches = 0, slot = 0;
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
  for (int i = first; i < first + count; ++i) {
    float* const values = image_of(scratch, layer.sources[0], i);
    const OutputView out = output_of(net, scratch, l, i, const_cast<float*>(row[rows[i]]));
    each_gradient(layer, scratch, derivative_of(scratch, l, rows[i]), out, slot,
                  [&](int y, int x, const float* dz) {
                    scratch.read[patches] = dz;
                    scratch.written[patches] =
                        scratch.patches + static_cast<size_t>(patches) * patch;
                    targets[patches] = position(c, image, values, y, x);
                    if (++patches == kPatchRows) add();
                  });
    const bool stay = c.side_by_side() && i + 1 < first + count;  // Or the next dz overwrite them.
    if (patches > 0 && !stay) add();
  }
}

// The backward pass of layer l, as of `convolve_back`.
void backward_layer(const PackedNetwork& net, const Scratch& scratch, int l, const int* rows,
                    int first, int count, const float* const* row) {
  const PackedLayer& layer = net.layer[l];
  for (int i = first; i < first + count; ++i)
    for (int s = 0; s < layer.source_count; ++s) {
      const Image& image = net.image[layer.sources[s]];
      float* const values = image_of(scratch, layer.sources[s], i);
      for (size_t j = 0; image.last_reader == l && j < image.floats(); ++j) values[j] = 0.0f;
    }
  if (layer.merge == Merge::none) return convolve_back(net, scratch, l, rows, first, count, row);
  for (int i = first; i < first + count; ++i)
    merge_back(net, layer, scratch, i, derivative_of(scratch, l, rows[i]),
               output_of(net, scratch, l, i, const_cast<float*>(row[rows[i]])));
}

// The backward pass of the given rows, at most a group, from the gradients at the last layer's
// values, in `row`, to dx.
void backward_images(const PackedNetwork& net, const Scratch& scratch, const int* rows, int count,
                     const float* const* row, float* const* dx) {
  for (int l = net.maps - 1; l >= scratch.together; --l)
    backward_layer(net, scratch, l, rows, 0, count, row);
  for (int i = 0; i < count; ++i) {
    for (int l = scratch.together - 1; l >= 0; --l)
      backward_layer(net, scratch, l, rows, i, 1, row);
    transpose_image<false>(net.image[0], image_of(scratch, 0, i), dx[rows[i]]);
  }
}

}  // namespace
}  // namespace ADVCORE_NS

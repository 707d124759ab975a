// The forward pass and the input gradient of a batch of rows; isa.h has the contracts.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "cpu/activation.h"
#include "cpu/convolution.h"
#include "cpu/denormals.h"
#include "cpu/gemm.h"
#include "cpu/lanes.h"
#include "cpu/packed_network.h"
#include "problem.h"

namespace ADVCORE_NS {
namespace {

inline size_t larger(size_t a, size_t b) { return a > b ? a : b; }

// The floats of a row's derivatives in a layer.
size_t derivative_floats(const PackedLayer& layer) {
  const Convolution* const c = layer.convolution;
  if (!c) return static_cast<size_t>(row_stride(layer.outputs));
  int values = c->positions().area();
  if (!c->side_by_side()) values += c->pooled().area() * c->window.area();
  return static_cast<size_t>(values) * static_cast<size_t>(whole_lanes(layer.features));
}

// Returns the bytes of a scratch, and fills it where there is memory.
size_t layout(const PackedNetwork& net, int max_rows, char* memory) {
  const size_t rows = static_cast<size_t>(max_rows), layers = static_cast<size_t>(net.layers);
  size_t used = 0;
  const auto take = [&](size_t bytes) {
    char* const start = memory ? memory + used : nullptr;
    used += (bytes + 63) / 64 * 64;
    return start;
  };
  // Lanes at the end of a row may be read and written beyond it.
  const auto floats = [&](size_t n) {
    return reinterpret_cast<float*>(take((n + kPad) * sizeof(float)));
  };
  const auto pointers = [&](size_t n) {
    return reinterpret_cast<float**>(take(n * sizeof(float*)));
  };
  const int together = first_together(net);
  const int group = group_size(net, max_rows);
  size_t pointers_needed = rows, z = 0, patches = 0, features = 0;
  for (int l = 0; l < net.maps; ++l) {
    const PackedLayer& layer = net.layer[l];
    const size_t padded = static_cast<size_t>(whole_lanes(layer.features));
    const size_t positions = larger(layer.convolution->positions().area(), kGroupPositions);
    const size_t patch = static_cast<size_t>(whole_lanes(layer.convolution->depth()));
    pointers_needed = larger(pointers_needed, positions);
    z = larger(z, positions * padded);
    patches = larger(patches, kPatchRows * patch);
    features = larger(features, padded);
  }
  Scratch* const s = reinterpret_cast<Scratch*>(take(sizeof(Scratch)));
  const Scratch parts{max_rows,
                      group,
                      together,
                      pointers(layers * rows),
                      pointers(layers * rows),
                      const_cast<const float**>(pointers(pointers_needed)),
                      pointers(pointers_needed),
                      pointers(static_cast<size_t>(net.maps * group)),
                      floats(z),
                      floats(patches),
                      floats(features)};
  if (s) *s = parts;
  for (int l = 0; l < net.maps; ++l) {
    float* image = nullptr;
    for (int i = 0; i < group; ++i) {
      if (i == 0 || net.image[l].last_reader >= together) image = floats(net.image[l].floats());
      if (s) parts.image[l * group + i] = image;
    }
  }
  for (size_t l = 0; l < layers; ++l) {
    const PackedLayer& layer = net.layer[l];
    const size_t outputs = static_cast<size_t>(row_stride(layer.outputs));
    const bool inside = static_cast<int>(l) + 1 < net.maps;  // The values are in an image.
    for (size_t i = l * rows; i < (l + 1) * rows; ++i) {
      float* const h = inside ? nullptr : floats(outputs);
      float* const dh = floats(derivative_floats(layer));
      if (s) parts.value[i] = h, parts.derivative[i] = dh;
    }
  }
  return used;
}

size_t scratch_bytes(const PackedNetwork& net, int max_rows) {
  return layout(net, max_rows, nullptr);
}

Scratch* carve_scratch(const PackedNetwork& net, int max_rows, void* memory) {
  layout(net, max_rows, static_cast<char*>(memory));
  return static_cast<Scratch*>(memory);
}

inline void fill_padding(float* row, int n, float value) {
  for (int i = n; i % kPad != 0; ++i) row[i] = value;
}

// out = a * b
inline void times(const float* a, const float* b, float* out, int n) {
  for (int i = 0; i < n; i += kLanes) store(out, i, load(a, i) * load(b, i));
}

void forward(const PackedNetwork& net, Scratch& scratch, const float* const* x, int rows,
             const float* k, float* const* scales, const uint8_t* record_scales,
             float* const* logits) {
  const FlushDenormals flush;
  const auto values = [&](int l) {  // The rows of layer l.
    return l + 1 == net.layers ? logits : scratch.value + static_cast<size_t>(l) * scratch.max_rows;
  };
  if (net.maps > 0) {
    float* const* const h = values(net.maps - 1);
    const ImageRows all{x, k, scales, record_scales, h};
    for (int r = 0; r < rows; r += scratch.group)
      forward_images(net, scratch, r, rows - r < scratch.group ? rows - r : scratch.group, all);
    x = h;
  }
  for (int l = net.maps; l < net.layers; ++l) {
    const PackedLayer& layer = net.layer[l];
    float* const* const dh = scratch.derivative + static_cast<size_t>(l) * scratch.max_rows;
    float* const* const h = values(l);
    gemm(x, rows, {layer.inputs}, layer.forward, layer.outputs, layer.bias, h);
    for (int r = 0; r < rows; ++r) {
      if (record_scales && record_scales[r])
        scales[r][layer.scale_offset] = standard_deviation(h[r], layer.outputs);
      if (layer.activation == Activation::identity) continue;
      const bool smooth = k && k[r] > 0.0f && has_smoothed_form(layer.activation);
      activate(layer.activation, layer.slope, smooth ? k[r] * scales[r][layer.scale_offset] : 0.0f,
               h[r], h[r], dh[r], layer.outputs);
    }
    x = h;
  }
  for (int r = 0; r < rows; ++r) fill_padding(logits[r], net.classes, kPadLogit);
}

void backward(const PackedNetwork& net, Scratch& scratch, const int* rows, int count,
              const float* const* dlogits, float* const* dx) {
  const FlushDenormals flush;
  for (int i = 0; i < count; ++i) scratch.read[i] = dlogits[rows[i]];
  for (int l = net.layers - 1; l >= net.maps; --l) {
    const PackedLayer& layer = net.layer[l];
    const size_t first = static_cast<size_t>(l) * scratch.max_rows;
    if (layer.activation != Activation::identity)  // dh -> dz
      for (int i = 0; i < count; ++i) {
        float* const dz = scratch.value[first + rows[i]];
        times(scratch.read[i], scratch.derivative[first + rows[i]], dz, layer.outputs);
        scratch.read[i] = dz;
      }
    for (int i = 0; i < count; ++i)
      scratch.written[i] = l > 0 ? scratch.value[first - scratch.max_rows + rows[i]] : dx[rows[i]];
    gemm(scratch.read, count, {layer.outputs}, layer.backward, layer.inputs, nullptr,
         scratch.written);
    for (int i = 0; i < count; ++i) scratch.read[i] = scratch.written[i];
  }
  const size_t last = static_cast<size_t>((net.maps - 1) * scratch.max_rows);
  const float* const* const dh = net.maps == net.layers ? dlogits : scratch.value + last;
  for (int i = 0; net.maps > 0 && i < count; i += scratch.group)
    backward_images(net, scratch, rows + i, count - i < scratch.group ? count - i : scratch.group,
                    dh, dx);
  for (int i = 0; i < count; ++i) fill_padding(dx[rows[i]], net.inputs, 0.0f);
}

}  // namespace
}  // namespace ADVCORE_NS

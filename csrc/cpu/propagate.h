// Forward and input gradient of a tile of rows. Contracts: isa.h.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "cpu/activation.h"
#include "cpu/denormals.h"
#include "cpu/gemm.h"
#include "cpu/lanes.h"
#include "cpu/packed_network.h"
#include "problem.h"

namespace ADVCORE_NS {
namespace {

// Bytes of a scratch; fills it where there is memory.
size_t layout(const PackedNetwork& net, int max_rows, char* memory) {
  const size_t rows = static_cast<size_t>(max_rows), layers = static_cast<size_t>(net.layers);
  size_t used = 0;
  const auto take = [&](size_t bytes) {
    char* const start = memory ? memory + used : nullptr;
    used += (bytes + 63) / 64 * 64;
    return start;
  };
  Scratch* const s = reinterpret_cast<Scratch*>(take(sizeof(Scratch)));
  float** const value = reinterpret_cast<float**>(take(layers * rows * sizeof(float*)));
  float** const derivative = reinterpret_cast<float**>(take(layers * rows * sizeof(float*)));
  const float** const read = reinterpret_cast<const float**>(take(rows * sizeof(float*)));
  float** const written = reinterpret_cast<float**>(take(rows * sizeof(float*)));
  if (s) *s = {max_rows, value, derivative, read, written};
  for (size_t l = 0; l < layers; ++l) {
    const size_t bytes = static_cast<size_t>(row_stride(net.layer[l].outputs)) * sizeof(float);
    for (size_t i = l * rows; i < (l + 1) * rows; ++i) {
      float* const h = reinterpret_cast<float*>(take(bytes));
      float* const dh = reinterpret_cast<float*>(take(bytes));
      if (s) value[i] = h, derivative[i] = dh;
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

// Standard deviation of z (n) around its mean, at least 1e-3 of its rms.
float spread(const float* z, int n) {
  double sum = 0, squares = 0, deviations = 0;
  for (int i = 0; i < n; ++i) {
    sum += z[i];
    squares += static_cast<double>(z[i]) * z[i];
  }
  const double mean = sum / n;
  for (int i = 0; i < n; ++i) deviations += (z[i] - mean) * (z[i] - mean);
  const double floor = 1e-3 * __builtin_sqrt(squares / n), width = __builtin_sqrt(deviations / n);
  return max(static_cast<float>(width > floor ? width : floor), 1e-30f);
}

inline void fill_padding(float* row, int n, float value) {
  for (int i = n; i % kPad != 0; ++i) row[i] = value;
}

// out = a * b
inline void times(const float* a, const float* b, float* out, int n) {
  for (int i = 0; i < n; i += kLanes) store(out, i, load(a, i) * load(b, i));
}

void forward(const PackedNetwork& net, Scratch& scratch, const float* const* x, int rows,
             const float* k, float* const* widths, const uint8_t* measure, float* const* logits) {
  const FlushDenormals flush;
  for (int l = 0; l < net.layers; ++l) {
    const PackedLayer& layer = net.layer[l];
    float* const* const dh = scratch.derivative + static_cast<size_t>(l) * scratch.max_rows;
    float* const* const h =
        l + 1 == net.layers ? logits : scratch.value + static_cast<size_t>(l) * scratch.max_rows;
    gemm(x, rows, layer.inputs, layer.forward, layer.outputs, layer.bias, h);
    for (int r = 0; r < rows; ++r) {
      if (measure && measure[r]) widths[r][l] = spread(h[r], layer.outputs);
      if (layer.activation == Activation::identity) continue;
      const bool smooth = k && k[r] > 0.0f && has_smoothed_form(layer.activation);
      activate(layer.activation, layer.slope, smooth ? k[r] * widths[r][l] : 0.0f, h[r], h[r],
               dh[r], layer.outputs);
    }
    x = h;
  }
  for (int r = 0; r < rows; ++r) fill_padding(logits[r], net.classes, kPadLogit);
}

void backward(const PackedNetwork& net, Scratch& scratch, const int* which, int count,
              const float* const* dlogits, float* const* dx) {
  const FlushDenormals flush;
  for (int i = 0; i < count; ++i) scratch.read[i] = dlogits[which[i]];
  for (int l = net.layers - 1; l >= 0; --l) {
    const PackedLayer& layer = net.layer[l];
    const size_t first = static_cast<size_t>(l) * scratch.max_rows;
    if (layer.activation != Activation::identity)  // dh -> dz
      for (int i = 0; i < count; ++i) {
        float* const dz = scratch.value[first + which[i]];
        times(scratch.read[i], scratch.derivative[first + which[i]], dz, layer.outputs);
        scratch.read[i] = dz;
      }
    for (int i = 0; i < count; ++i)
      scratch.written[i] =
          l > 0 ? scratch.value[first - scratch.max_rows + which[i]] : dx[which[i]];
    gemm(scratch.read, count, layer.outputs, layer.backward, layer.inputs, nullptr,
         scratch.written);
    for (int i = 0; i < count; ++i) scratch.read[i] = scratch.written[i];
  }
  for (int i = 0; i < count; ++i) fill_padding(dx[which[i]], net.inputs, 0.0f);
}

}  // namespace
}  // namespace ADVCORE_NS

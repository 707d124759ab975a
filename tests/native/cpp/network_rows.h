// A network with the rows and the scratch of one batch, for the check programs.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "network.h"
#include "problem.h"

using advcore::Activation;
using advcore::IsaTable;
using advcore::kPad;
using advcore::LayerSpec;
using advcore::Network;

struct AlignedFree {
  void operator()(void* p) const { std::free(p); }
};

// `rows` padded rows in aligned memory, filled with a value that shows where nothing was written.
struct Rows {
  Rows(int rows, int n, float fill = 7.0f)
      : stride((n + kPad - 1) / kPad * kPad),
        memory(static_cast<float*>(std::aligned_alloc(64, sizeof(float) * stride * rows))) {
    for (size_t i = 0; i < stride * rows; ++i) memory.get()[i] = fill;
    for (int r = 0; r < rows; ++r) row.push_back(memory.get() + stride * r);
  }
  size_t stride;
  std::unique_ptr<float, AlignedFree> memory;
  std::vector<float*> row;
};

struct NetworkRows {
  NetworkRows(const Network& network, int rows)
      : net(network),
        rows(rows),
        memory(static_cast<char*>(
            std::aligned_alloc(64, net.isa().scratch_bytes(net.packed(), rows)))),
        x(rows, net.inputs()),
        logits(rows, net.classes()),
        dlogits(rows, net.classes()),
        dx(rows, net.inputs()),
        scales(rows, net.scales(), 0.0f),
        k(rows, 0.0f),
        record_scales(rows, 0) {
    // NaN: a kernel that read what was never written would show it
    std::memset(memory.get(), 0xff, net.isa().scratch_bytes(net.packed(), rows));
    scratch = net.isa().carve_scratch(net.packed(), rows, memory.get());
    for (int r = 0; r < rows; ++r) all.push_back(r);
  }
  void forward() {
    net.isa().forward(net.packed(), *scratch, x.row.data(), rows, k.data(), scales.row.data(),
                      record_scales.data(), logits.row.data());
  }
  void backward(const std::vector<int>& which) {
    net.isa().backward(net.packed(), *scratch, which.data(), static_cast<int>(which.size()),
                       dlogits.row.data(), dx.row.data());
  }

  const Network& net;
  int rows;
  std::unique_ptr<char, AlignedFree> memory;
  advcore::Scratch* scratch;
  Rows x, logits, dlogits, dx, scales;
  std::vector<float> k;
  std::vector<uint8_t> record_scales;
  std::vector<int> all;
};

inline std::vector<LayerSpec> random_layers(const std::vector<int>& sizes, Activation activation,
                                            std::mt19937& rng, bool last_too = false) {
  std::normal_distribution<float> normal;
  std::vector<LayerSpec> layers;
  for (size_t l = 0; l + 1 < sizes.size(); ++l) {
    const bool last = l + 2 == sizes.size();
    LayerSpec layer{sizes[l], sizes[l + 1], last && !last_too ? Activation::identity : activation,
                    0.1f,     {},           {}};
    for (int i = 0; i < layer.inputs * layer.outputs; ++i)
      layer.weight.push_back(1.5f * normal(rng) / std::sqrt(static_cast<float>(layer.inputs)));
    for (int i = 0; i < layer.outputs; ++i) layer.bias.push_back(0.3f * normal(rng));
    layers.push_back(layer);
  }
  return layers;
}

inline void fill_random(NetworkRows& batch, std::mt19937& rng) {
  std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
  std::normal_distribution<float> normal;
  for (int r = 0; r < batch.rows; ++r) {
    for (int i = 0; i < batch.net.inputs(); ++i) batch.x.row[r][i] = uniform(rng);
    for (int i = 0; i < batch.net.classes(); ++i) batch.dlogits.row[r][i] = normal(rng);
  }
}

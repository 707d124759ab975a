// Checks of the convolutions: against the same layer as a fully connected one, which the other
// checks compare with double, and rows on their own against rows of a batch. Pooling, smoothing and
// whole networks are compared with torch in tests/network/test_convolution.py.
#pragma once

#include <numeric>

#include "network_rows.h"

using advcore::Convolution;
using advcore::Pooling;
using advcore::Size;

inline LayerSpec random_convolution(const Convolution& c, int features, Activation activation,
                                    std::mt19937& rng) {
  std::normal_distribution<float> normal;
  LayerSpec layer{
      c.channels * c.size.area(), features * c.pooled().area(), activation, 0.1f, {}, {}, c, {}};
  for (int i = 0; i < features * c.depth(); ++i)
    layer.weight.push_back(1.5f * normal(rng) / std::sqrt(static_cast<float>(c.depth())));
  for (int i = 0; i < features; ++i) layer.bias.push_back(0.3f * normal(rng));
  for (int i = 0; i < c.channels; ++i) layer.padding_value.push_back(0.2f * normal(rng));
  return layer;
}

// The same function, without pooling, as a matrix (feature, y, x) by (channel, y, x).
inline LayerSpec dense_of(const LayerSpec& layer) {
  const Convolution& c = *layer.convolution;
  const Size out = c.positions();
  LayerSpec dense{
      layer.inputs, layer.features() * out.area(), layer.activation, layer.slope, {}, {}};
  dense.weight.assign(static_cast<size_t>(dense.inputs) * dense.outputs, 0.0f);
  for (int row = 0; row < dense.outputs; ++row) {
    const int feature = row / out.area(), y = row % out.area() / out.x, x = row % out.x;
    double bias = layer.bias[feature];
    for (int channel = 0; channel < c.channels; ++channel)
      for (int i = 0; i < c.kernel.y; ++i)
        for (int j = 0; j < c.kernel.x; ++j) {
          const float w =
              layer.weight[((feature * c.channels + channel) * c.kernel.y + i) * c.kernel.x + j];
          const int down = y * c.stride.y + i - c.padding.y;
          const int right = x * c.stride.x + j - c.padding.x;
          if (down < 0 || down >= c.size.y || right < 0 || right >= c.size.x)
            bias += static_cast<double>(w) * layer.padding_value[channel];
          else
            dense.weight[static_cast<size_t>(row) * dense.inputs +
                         (channel * c.size.y + down) * c.size.x + right] = w;
        }
    dense.bias.push_back(static_cast<float>(bias));
  }
  return dense;
}

// Convolutions of many shapes: features beside, at and beyond whole vectors and panels of them, a
// depth of more than one chunk.
inline std::vector<std::pair<Convolution, int>> convolution_shapes() {
  return {{{1, {6, 6}, {3, 3}}, 1},
          {{3, {9, 7}, {3, 2}, {2, 1}, {1, 2}}, 5},
          {{2, {8, 5}, {4, 4}, {2, 2}, {1, 1}}, 16},
          {{5, {4, 4}, {1, 1}}, 33},
          {{20, {5, 5}, {3, 3}, {1, 1}, {1, 1}}, 50},
          {{130, {4, 4}, {3, 3}}, 7},
          {{7, {3, 3}, {3, 3}}, 18}};
}

inline void check_convolutions(const IsaTable& isa) {
  std::mt19937 rng(4);
  for (const auto& [c, features] : convolution_shapes()) {
    const LayerSpec layer = random_convolution(c, features, Activation::gelu, rng);
    std::vector<LayerSpec> rest = random_layers({layer.outputs, 6, 3}, Activation::tanh, rng);
    const Network net({layer, rest[0], rest[1]}, isa);
    const Network dense({dense_of(layer), rest[0], rest[1]}, isa);
    NetworkRows batch(net, 3), expected(dense, 3);
    fill_random(batch, rng);
    for (int r = 0; r < 3; ++r) {
      std::copy_n(batch.x.row[r], net.inputs(), expected.x.row[r]);
      std::copy_n(batch.dlogits.row[r], 3, expected.dlogits.row[r]);
    }
    for (NetworkRows* one : {&batch, &expected}) {
      one->forward();
      one->backward(one->all);
    }
    double logits = 0, dx = 0, largest = 1e-30;
    for (int r = 0; r < 3; ++r) {
      for (int i = 0; i < 3; ++i)
        logits = std::fmax(logits, std::fabs(batch.logits.row[r][i] - expected.logits.row[r][i]));
      for (int i = 0; i < net.inputs(); ++i) {
        dx = std::fmax(dx, std::fabs(batch.dx.row[r][i] - expected.dx.row[r][i]));
        largest = std::fmax(largest, std::fabs(expected.dx.row[r][i]));
      }
    }
    expect(logits < 1e-5, "%s %d features: logits off by %.2e", isa.name, features, logits);
    expect(dx < 1e-5 * largest, "%s %d features: dx off by %.2e of %.2e", isa.name, features, dx,
           largest);
  }
}

// Two convolutions with padding, kinks and pooling of both kinds, and two layers after them.
inline std::vector<LayerSpec> random_convolutional(std::mt19937& rng) {
  Convolution first{3, {11, 9}, {3, 2}, {1, 1}, {1, 1}, Pooling::max, {2, 3}};
  const Size mid = first.pooled();
  Convolution second{18, mid, {2, 2}, {1, 1}, {1, 0}, Pooling::mean, {2, 1}};
  std::vector<LayerSpec> layers{random_convolution(first, 18, Activation::relu, rng),
                                random_convolution(second, 5, Activation::sigmoid, rng)};
  for (LayerSpec& layer : random_layers({layers.back().outputs, 9, 4}, Activation::relu, rng))
    layers.push_back(layer);
  return layers;
}

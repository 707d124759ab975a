// A network as the kernels read it: plain pointers and sizes, no ownership, no function. Network
// (network.h) fills it; every thread reads the same one. Convolutions come first, then fully
// connected layers.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace advcore {

enum class Activation : int {
  identity,
  relu,
  leaky_relu,
  sigmoid,
  tanh,
  softplus,
  gelu,
  gelu_tanh
};
constexpr const char* kActivationNames[] = {"identity", "relu",     "leaky_relu", "sigmoid",
                                            "tanh",     "softplus", "gelu",       "gelu_tanh"};
constexpr int kActivations = sizeof(kActivationNames) / sizeof(*kActivationNames);

static constexpr bool has_kink(Activation a) {
  return a == Activation::relu || a == Activation::leaky_relu;
}
static constexpr bool has_smoothed_form(Activation a) {
  return has_kink(a) || a == Activation::sigmoid || a == Activation::tanh;
}

enum class Pooling : int { none, max, mean };
constexpr const char* kPoolingNames[] = {"none", "max", "mean"};
constexpr int kPoolings = sizeof(kPoolingNames) / sizeof(*kPoolingNames);

struct Size {
  int y, x;
  constexpr int area() const { return y * x; }
};

// A convolution of an image (channels, size), its activation, and pooling by windows side by side.
struct Convolution {
  int channels = 0;  // Channels of the input.
  Size size{}, kernel{}, stride{1, 1}, padding{};
  Pooling pooling = Pooling::none;
  // The window of the pooling, and its stride. Values that no window covers are dropped.
  Size window{1, 1};

  Size padded() const { return {size.y + 2 * padding.y, size.x + 2 * padding.x}; }
  Size positions() const {  // Positions of the kernel.
    return {(padded().y - kernel.y) / stride.y + 1, (padded().x - kernel.x) / stride.x + 1};
  }
  Size pooled() const { return {positions().y / window.y, positions().x / window.x}; }
  // Values that a position of the kernel sees: (y, x, channel).
  int depth() const { return kernel.area() * channels; }
};

// One layer. Inside a network an image is (y, x, channel); at both ends it is (channel, y, x), as
// the caller has it.
struct PackedLayer {
  int inputs, outputs;  // Values; of a convolution after the pooling.
  Activation activation;
  float slope;                     // The slope of leaky_relu at z < 0.
  const float* forward;            // (inputs, outputs) in panels (gemm.h); (depth, features)
  const float* backward;           // (outputs, inputs) in panels; (features, depth)
  const float* bias;               // (outputs) or (features), padded with zeros to kPad
  int scale_offset;                // The first of its scales among those of a row.
  int features;                    // Channels that a convolution gives.
  const Convolution* convolution;  // Null where fully connected.
  const float* padding_value;      // (channels) around the image
};

// A layer has one scale, or one a feature, for its activation, and then the same for max-pooling.
struct PackedNetwork {
  int inputs, classes, layers;
  int convolutions;          // The number of them; they come first.
  int scales;                // Scales of a row, over all layers.
  const PackedLayer* layer;  // (layers)
};

// The memory that one thread needs between a forward and its backward; the caller owns it.
struct Scratch {
  int max_rows;
  // (layers, max_rows) rows (outputs): h, then the gradient at z. Null where it is in an image.
  float** value;
  float** derivative;  // (layers, max_rows) rows (outputs) or (positions, features): dh/dz.
  const float** read;  // Rows of A in a product: max_rows, or a convolution's positions.
  float** written;     // Rows of C.
  // For one image at a time:
  float** image;      // (convolutions) the input with its padding, (y, x, channel); its gradient.
  float* z;           // (positions, features) of the largest convolution.
  float* patches;     // Gradients of some positions, (depth) each.
  float* half_width;  // (features) half-widths.
};

}  // namespace advcore

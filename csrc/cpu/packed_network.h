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
constexpr int kActivations = 8;

static constexpr bool has_kink(Activation a) {
  return a == Activation::relu || a == Activation::leaky_relu;
}
static constexpr bool has_smoothed_form(Activation a) {
  return has_kink(a) || a == Activation::sigmoid || a == Activation::tanh;
}

enum class Pooling : int { none, max, mean };
constexpr int kPoolings = 3;

struct Size {
  int y, x;
  constexpr int area() const { return y * x; }
};

// A convolution of an image (channels, size), activation, and pooling by windows side by side.
struct Convolution {
  int channels = 0;  // of the input
  Size size{}, kernel{}, stride{1, 1}, padding{};
  Pooling pooling = Pooling::none;
  Size window{1, 1};  // of the pooling, and its stride; what is left over at the end is dropped

  Size padded() const { return {size.y + 2 * padding.y, size.x + 2 * padding.x}; }
  Size positions() const {  // of the kernel
    return {(padded().y - kernel.y) / stride.y + 1, (padded().x - kernel.x) / stride.x + 1};
  }
  Size pooled() const { return {positions().y / window.y, positions().x / window.x}; }
  int depth() const { return kernel.area() * channels; }  // of a position: (y, x, channel)
};

// Images inside are (y, x, channel); at both ends of a network values are as the caller's, which
// for an image is (channel, y, x).
struct PackedLayer {
  int inputs, outputs;  // values; of a convolution after the pooling
  Activation activation;
  float slope;                     // of leaky_relu at z < 0
  const float* forward;            // (inputs, outputs) in panels, see gemm.h; (depth, features)
  const float* backward;           // (outputs, inputs) in panels; (features, depth)
  const float* bias;               // (outputs) or (features), padded with zeros to kPad
  int width;                       // where its half-widths begin among a row's widths
  int features;                    // of a convolution: channels that it gives
  const Convolution* convolution;  // null: fully connected
  const float* padding_value;      // (channels) around the image
};

// Half-widths of a layer: one, or one a feature, for the activation, then for max-pooling.
struct PackedNetwork {
  int inputs, classes, layers;
  int convolutions;  // layers that are
  int widths;
  const PackedLayer* layer;  // (layers)
};

// What one thread needs between a forward and its backward, in memory of the caller.
struct Scratch {
  int max_rows;
  float** value;  // (layers, max_rows) rows (outputs): h, then the gradient at z; null: see image
  float** derivative;  // (layers, max_rows) rows (outputs), (positions, features): dh/dz
  const float** read;  // rows of A in a product: max_rows, or the positions of a convolution
  float** written;     // rows of C
  // Of one image at a time:
  float** image;      // (convolutions) input with its padding, (y, x, channel); its gradient
  float* z;           // (positions, features) of the largest convolution
  float* patches;     // gradients of some positions (depth)
  float* half_width;  // (features), then e.g. a scale of them
};

}  // namespace advcore

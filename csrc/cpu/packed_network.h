// A network as the kernels read it: plain pointers and sizes, no ownership, no function. Network
// (network.h) fills it; every thread reads the same one. Layers of images (convolutions and merges)
// come first, in topological order, then a chain of fully connected layers.
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

// What a layer of images does before its activation: a convolution (none), or a merge.
enum class Merge : int { none, sum, concatenate };
constexpr const char* kMergeNames[] = {"", "sum", "concatenate"};
constexpr int kMerges = sizeof(kMergeNames) / sizeof(*kMergeNames);

// The number of windows along a dimension, as torch counts them; below 1 where none fits.
static constexpr int count_windows(int size, int window, int step, int padding, bool ceil_mode) {
  const int span = size + 2 * padding - window;
  if (span < 0) return 0;
  const int count = (ceil_mode ? span + step - 1 : span) / step + 1;
  return ceil_mode && (count - 1) * step >= size + padding ? count - 1 : count;
}

struct Size {
  int y, x;
  constexpr int area() const { return y * x; }
};

// A convolution of an image (channels, size), its activation, and pooling; a merge, whose result
// has that shape, has a kernel of 1.
struct Convolution {
  int channels = 0;  // Channels of the input.
  Size size{}, kernel{}, stride{1, 1}, padding{};
  Pooling pooling = Pooling::none;
  Size window{1, 1};       // Of the pooling. Values that no window covers are dropped.
  Size pooling_stride{};   // From one window to the next; 0: side by side.
  Size pooling_padding{};  // What windows may reach beyond the image.
  bool ceil_mode = false;  // Whether a last window may reach beyond the end.

  Size padded() const { return {size.y + 2 * padding.y, size.x + 2 * padding.x}; }
  Size positions() const {  // Positions of the kernel.
    return {(padded().y - kernel.y) / stride.y + 1, (padded().x - kernel.x) / stride.x + 1};
  }
  Size window_step() const {
    return {pooling_stride.y ? pooling_stride.y : window.y,
            pooling_stride.x ? pooling_stride.x : window.x};
  }
  Size pooled() const {
    const Size n = positions(), step = window_step();
    return {count_windows(n.y, window.y, step.y, pooling_padding.y, ceil_mode),
            count_windows(n.x, window.x, step.x, pooling_padding.x, ceil_mode)};
  }
  // Whether no value is in two windows, between two, or missing in one.
  bool side_by_side() const {
    const Size n = positions(), step = window_step(), count = pooled();
    return step.y == window.y && step.x == window.x && pooling_padding.y == 0 &&
           pooling_padding.x == 0 && count.y * window.y <= n.y && count.x * window.x <= n.x;
  }
  // Values that a position of the kernel sees: (y, x, channel).
  int depth() const { return kernel.area() * channels; }
};

// What lies between two layers of images, with the padding of its readers around it.
struct Image {
  int channels;
  Size size, padding;
  const float* padding_value;  // (channels)
  int last_reader;             // The last layer that takes it.

  // The floats from one row to the next.
  size_t row() const {
    return static_cast<size_t>(size.x + 2 * padding.x) * static_cast<size_t>(channels);
  }
  size_t floats() const { return row() * static_cast<size_t>(size.y + 2 * padding.y); }
  // From the first float to that of (y, x), which may be in the padding.
  size_t offset(int y, int x) const {
    return static_cast<size_t>(y + padding.y) * row() +
           static_cast<size_t>((x + padding.x) * channels);
  }
};

// One layer. Inside a network an image is (y, x, channel); at both ends it is (channel, y, x), as
// the caller has it.
struct PackedLayer {
  int inputs, outputs;  // Values; of a convolution after the pooling.
  Activation activation;
  float slope;                     // The slope of leaky_relu at z < 0.
  const float* forward;            // (inputs, outputs) in panels (gemm.h); (depth, features)
  const float* backward;           // (outputs, inputs) in panels; (features, depth)
  const float* bias;               // (outputs) or (features), padded with zeros to kPad; a merge's
                                   // shift, null as its scale where neither does anything
  int scale_offset;                // The first of its scales among those of a row.
  int features;                    // Channels that a convolution gives.
  const Convolution* convolution;  // Null where fully connected.
  const float* scale;              // (features) of a merge, padded with zeros
  Merge merge;
  const int* sources;  // The images that it takes.
  int source_count;
};

// A layer has one scale, or one a feature, for its activation, and then the same for max-pooling.
struct PackedNetwork {
  int inputs, classes, layers;
  int maps;                  // The number of layers of images, which come first.
  int scales;                // Scales of a row, over all layers.
  const PackedLayer* layer;  // (layers)
  const Image* image;        // (maps) The network's own, then what all of them but the last give.
};

// The memory that one thread needs between a forward and its backward; the caller owns it.
struct Scratch {
  int max_rows;
  int group;     // Images that go through the layers together,
  int together;  // from this layer of images on; through those before it one by one.
  // (layers, max_rows) rows (outputs): h, then the gradient at z. Null where it is in an image.
  float** value;
  // (layers, max_rows) rows (outputs) or (positions, features): dh/dz. Where the windows of a
  // pooling are not side by side, (windows, values of a window, features) follow: those of pooled
  // values.
  float** derivative;
  const float** read;  // Rows of A in a product: max_rows, or a convolution's positions.
  float** written;     // Rows of C.
  // (maps, group) with its padding, (y, x, channel); then its gradient. One for all of a group
  // where no layer from `together` on reads it.
  float** image;
  float* z;           // (positions, features) of a product, of one or several images.
  float* patches;     // Gradients of some positions, (depth) each.
  float* half_width;  // (features) half-widths.
};

}  // namespace advcore

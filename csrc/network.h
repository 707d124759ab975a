// A network: layers of images, then fully connected ones; checked, packed for one instruction set,
// then immutable, so that threads share it.
#pragma once

#include <optional>
#include <vector>

#include "cpu/isa.h"
#include "cpu/packed_network.h"
#include "workspace.h"

namespace advcore {

// h = activation(weight x + bias), then pooling where the product is a convolution
struct LayerSpec {
  int inputs = 0, outputs = 0;  // Values; of a convolution after the pooling.
  Activation activation = Activation::identity;
  float slope = 0.01f;        // The slope of leaky_relu at z < 0.
  std::vector<float> weight;  // (outputs, inputs), row major; (features, channels, y, x)
  std::vector<float> bias;    // (outputs); (features)
  std::optional<Convolution> convolution{};
  std::vector<float> padding_value{};  // (channels) of a convolution.
  // The layers whose outputs it takes, -1 for the image; empty: the layer before it.
  std::vector<int> sources{};
  // A merge takes several, which have the shape of `convolution` together; `weight` is its scale
  // and `bias` its shift.
  Merge merge = Merge::none;

  int features() const { return static_cast<int>(bias.size()); }
};

const char* activation_name(Activation activation);
Activation activation_from_name(const char* name);  // Throws std::invalid_argument.
Pooling pooling_from_name(const char* name);
Merge merge_from_name(const char* name);

class Network {
 public:
  // Throws std::invalid_argument naming the layer, what was expected and what came.
  explicit Network(const std::vector<LayerSpec>& layers, const IsaTable& table = advcore::isa());
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  int inputs() const { return packed_.inputs; }
  int classes() const { return packed_.classes; }
  int layers() const { return packed_.layers; }
  int scales() const { return packed_.scales; }
  size_t row_bytes() const;  // Memory of a row between a forward and its backward.
  // Whether it has any relu, leaky_relu, sigmoid, tanh or max-pooling.
  bool smoothable() const { return smoothable_; }
  const PackedNetwork& packed() const { return packed_; }
  const IsaTable& isa() const { return isa_; }  // The one that it is packed for.

 private:
  // Fills images_ and sources_, once the layers are packed.
  void place_images(const std::vector<LayerSpec>& layers,
                    const std::vector<const float*>& padding_values);

  const IsaTable& isa_;
  AlignedFloats storage_;  // Packed weights and biases.
  std::vector<PackedLayer> layers_;
  std::vector<Convolution> convolutions_;
  std::vector<std::vector<int>> sources_;  // The images that each layer of images takes.
  std::vector<Image> images_;
  PackedNetwork packed_{};
  bool smoothable_ = false;
};

// Forward and backward of a network on dense arrays, any number of rows; remembers the last
// forward.
class Propagation {
 public:
  explicit Propagation(const Network& network) : network_(network) {}

  // x (rows, inputs) -> logits (rows, classes). k (rows) or null. scales (rows, scales()) are
  // written with `record_scales` and read where k > 0.
  void forward(const float* x, int rows, const float* k, float* scales, bool record_scales,
               float* logits);
  // dlogits (rows, classes) -> dx (rows, inputs)
  void backward(const float* dlogits, float* dx);
  int rows() const { return rows_; }

 private:
  const Network& network_;
  int rows_ = 0;
  int memory_rows_ = -1;  // The rows that the memory is laid out for.
  AlignedFloats memory_;
  Scratch* scratch_ = nullptr;
  std::vector<float*> x_, logits_, dlogits_;
};

}  // namespace advcore

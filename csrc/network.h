// A fully connected network: checked, packed for one instruction set, then immutable, so that
// threads share it.
#pragma once

#include <vector>

#include "cpu/isa.h"
#include "cpu/packed_network.h"
#include "workspace.h"

namespace advcore {

// h = activation(weight x + bias)
struct LayerSpec {
  int inputs = 0, outputs = 0;
  Activation activation = Activation::identity;
  float slope = 0.01f;        // of leaky_relu at z < 0
  std::vector<float> weight;  // (outputs, inputs), row major
  std::vector<float> bias;    // (outputs)
};

const char* activation_name(Activation activation);
Activation activation_from_name(const char* name);  // std::invalid_argument if unknown

class Network {
 public:
  // Throws std::invalid_argument naming the layer, what was expected and what came.
  explicit Network(const std::vector<LayerSpec>& layers, const IsaTable& table = advcore::isa());
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  int inputs() const { return packed_.inputs; }
  int classes() const { return packed_.classes; }
  int layers() const { return packed_.layers; }
  bool smoothable() const { return smoothable_; }  // any relu, leaky_relu, sigmoid, tanh
  const PackedNetwork& packed() const { return packed_; }
  const IsaTable& isa() const { return isa_; }  // the one that it is packed for

 private:
  const IsaTable& isa_;
  AlignedFloats storage_;  // packed weights and biases
  std::vector<PackedLayer> layers_;
  PackedNetwork packed_{};
  bool smoothable_ = false;
};

// Forward and backward of a network on dense arrays, any number of rows; remembers the last
// forward.
class Propagation {
 public:
  explicit Propagation(const Network& network) : network_(network) {}

  // x (rows, inputs) -> logits (rows, classes). k (rows) or null; widths (rows, layers) are
  // written where `measure`, read where k > 0.
  void forward(const float* x, int rows, const float* k, float* widths, bool measure,
               float* logits);
  // dlogits (rows, classes) -> dx (rows, inputs)
  void backward(const float* dlogits, float* dx);
  int rows() const { return rows_; }

 private:
  const Network& network_;
  int rows_ = 0;
  AlignedFloats memory_;
  Scratch* scratch_ = nullptr;
  std::vector<float*> x_, logits_, seed_;
};

}  // namespace advcore

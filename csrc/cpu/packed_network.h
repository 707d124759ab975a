// A fully connected network as the kernels read it: plain pointers and sizes, no ownership, no
// function. Network (network.h) fills it; every thread reads the same one.
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

struct PackedLayer {
  int inputs, outputs;
  Activation activation;
  float slope;            // of leaky_relu at z < 0
  const float* forward;   // (inputs, outputs) in panels, see gemm.h
  const float* backward;  // (outputs, inputs) in panels
  const float* bias;      // (outputs) padded with zeros to kPad
};

struct PackedNetwork {
  int inputs, classes, layers;
  const PackedLayer* layer;  // (layers)
};

// What one thread needs between a forward and its backward, in memory of the caller.
struct Scratch {
  int max_rows;
  float** value;       // (layers, max_rows) rows (outputs): h, then the gradient at z
  float** derivative;  // (layers, max_rows) rows (outputs): dh/dz
  const float** read;  // (max_rows) rows of A in a product
  float** written;     // (max_rows) rows of C
};

}  // namespace advcore

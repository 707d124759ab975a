#include "network.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "problem.h"
#include "workspace.h"

namespace advcore {
namespace {

constexpr const char* kNames[kActivations] = {"identity", "relu",     "leaky_relu", "sigmoid",
                                              "tanh",     "softplus", "gelu",       "gelu_tanh"};

[[noreturn]] void refuse(const std::string& text) { throw std::invalid_argument(text); }

void check_values(const std::string& where, const char* what, const std::vector<float>& values,
                  size_t expected) {
  if (values.size() != expected)
    refuse(where + what + " must have " + std::to_string(expected) + " values, not " +
           std::to_string(values.size()));
  for (size_t i = 0; i < values.size(); ++i)
    if (!std::isfinite(values[i]))
      refuse(where + what + " must be finite, but value " + std::to_string(i) + " is " +
             std::to_string(values[i]));
}

void check(const std::vector<LayerSpec>& layers) {
  if (layers.empty()) refuse("layers must not be empty");
  for (size_t l = 0; l < layers.size(); ++l) {
    const LayerSpec& layer = layers[l];
    const std::string where = "layers[" + std::to_string(l) + "]: ";
    const int kind = static_cast<int>(layer.activation);
    if (layer.inputs < 1)
      refuse(where + "inputs must be >= 1, not " + std::to_string(layer.inputs));
    if (layer.outputs < 1)
      refuse(where + "outputs must be >= 1, not " + std::to_string(layer.outputs));
    if (l > 0 && layer.inputs != layers[l - 1].outputs)
      refuse(where + "inputs must be the " + std::to_string(layers[l - 1].outputs) +
             " outputs of the layer before, not " + std::to_string(layer.inputs));
    if (kind < 0 || kind >= kActivations)
      refuse(where + "activation must be in [0, " + std::to_string(kActivations) + "), not " +
             std::to_string(kind));
    if (!std::isfinite(layer.slope))
      refuse(where + "slope must be finite, not " + std::to_string(layer.slope));
    check_values(where, "weight", layer.weight,
                 static_cast<size_t>(layer.inputs) * static_cast<size_t>(layer.outputs));
    check_values(where, "bias", layer.bias, static_cast<size_t>(layer.outputs));
  }
}

size_t whole_lines(size_t n) { return (n + kPad - 1) / kPad * kPad; }

}  // namespace

const char* activation_name(Activation activation) { return kNames[static_cast<int>(activation)]; }

Activation activation_from_name(const char* name) {
  std::string known;
  for (int i = 0; i < kActivations; ++i) {
    if (std::strcmp(name, kNames[i]) == 0) return static_cast<Activation>(i);
    known += (i ? ", " : "") + std::string(kNames[i]);
  }
  refuse("activation must be one of " + known + ", not " + name);
}

Network::Network(const std::vector<LayerSpec>& layers, const IsaTable& table) : isa_(table) {
  check(layers);
  size_t total = 0;
  for (const LayerSpec& layer : layers)
    total += whole_lines(table.packed_floats(layer.inputs, layer.outputs)) +
             whole_lines(table.packed_floats(layer.outputs, layer.inputs)) +
             whole_lines(static_cast<size_t>(layer.outputs));
  storage_ = allocate(total);

  float* next = storage_.get();
  const auto take = [&next](size_t floats) {
    float* const start = next;
    next += whole_lines(floats);
    return start;
  };
  for (const LayerSpec& layer : layers) {
    const size_t width = static_cast<size_t>(layer.inputs);
    float* const forward = take(table.packed_floats(layer.inputs, layer.outputs));
    float* const backward = take(table.packed_floats(layer.outputs, layer.inputs));
    float* const bias = take(static_cast<size_t>(layer.outputs));
    table.pack(layer.weight.data(), layer.inputs, layer.outputs, 1, width, forward);
    table.pack(layer.weight.data(), layer.outputs, layer.inputs, width, 1, backward);
    std::memset(bias, 0, whole_lines(layer.bias.size()) * sizeof(float));
    std::memcpy(bias, layer.bias.data(), layer.bias.size() * sizeof(float));
    layers_.push_back(
        {layer.inputs, layer.outputs, layer.activation, layer.slope, forward, backward, bias});
    smoothable_ = smoothable_ || has_smoothed_form(layer.activation);
  }
  packed_ = {layers.front().inputs, layers.back().outputs, static_cast<int>(layers_.size()),
             layers_.data()};
}

void Propagation::forward(const float* x, int rows, const float* k, float* widths, bool measure,
                          float* logits) {
  rows_ = rows;
  const size_t count = static_cast<size_t>(rows), layers = static_cast<size_t>(network_.layers());
  const size_t inputs = static_cast<size_t>(network_.inputs());
  const size_t classes = static_cast<size_t>(network_.classes());
  const size_t in = static_cast<size_t>(row_stride(network_.inputs()));
  const size_t out = static_cast<size_t>(row_stride(network_.classes()));
  const int slots = std::max(rows, 1);
  const size_t scratch = network_.isa().scratch_bytes(network_.packed(), slots) / sizeof(float);
  memory_ = allocate(scratch + count * (in + 2 * out));
  float* memory = memory_.get();
  scratch_ = network_.isa().carve_scratch(network_.packed(), slots, memory);
  memory += scratch;
  x_.resize(count), logits_.resize(count), seed_.resize(count);
  std::vector<float*> width(count);
  const std::vector<uint8_t> flags(count, measure);
  for (size_t r = 0; r < count; ++r, memory += in + 2 * out) {
    x_[r] = memory, logits_[r] = memory + in, seed_[r] = memory + in + out;
    std::copy_n(x + r * inputs, inputs, x_[r]);
    if (widths) width[r] = widths + r * layers;
  }
  network_.isa().forward(network_.packed(), *scratch_, x_.data(), rows, k, width.data(),
                         flags.data(), logits_.data());
  for (size_t r = 0; r < count; ++r) std::copy_n(logits_[r], classes, logits + r * classes);
}

void Propagation::backward(const float* dlogits, float* dx) {
  const size_t count = static_cast<size_t>(rows_);
  const size_t inputs = static_cast<size_t>(network_.inputs());
  const size_t classes = static_cast<size_t>(network_.classes());
  std::vector<int> which(count);
  for (size_t r = 0; r < count; ++r) {
    which[r] = static_cast<int>(r);
    std::copy_n(dlogits + r * classes, classes, seed_[r]);
  }
  if (rows_ > 0)
    network_.isa().backward(network_.packed(), *scratch_, which.data(), rows_, seed_.data(),
                            x_.data());
  for (size_t r = 0; r < count; ++r) std::copy_n(x_[r], inputs, dx + r * inputs);
}

}  // namespace advcore

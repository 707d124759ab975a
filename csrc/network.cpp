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

void check_convolution(const std::string& where, const LayerSpec& layer, const LayerSpec* before,
                       bool last) {
  const Convolution& c = *layer.convolution;
  const auto positive = [](Size size) { return size.y >= 1 && size.x >= 1; };
  if (before && !before->convolution)
    refuse(where + "a convolution must not follow a fully connected layer");
  if (c.channels < 1 || !positive(c.size) || !positive(c.kernel) || !positive(c.stride) ||
      !positive(c.window) || c.padding.y < 0 || c.padding.x < 0)
    refuse(where + "sizes of a convolution must be >= 1, its padding >= 0");
  if (c.padded().y < c.kernel.y || c.padded().x < c.kernel.x || !positive(c.pooled()))
    refuse(where + "the kernel and the window must fit the image");
  if (static_cast<int>(c.pooling) < 0 || static_cast<int>(c.pooling) >= kPoolings ||
      (c.pooling == Pooling::none && c.window.area() != 1))
    refuse(where + "pooling must be none, with a window of 1, max or mean");
  if (layer.inputs != c.channels * c.size.area() ||
      layer.outputs != layer.features() * c.pooled().area())
    refuse(where + "inputs and outputs must be those of the convolution");
  if (before) {
    const Size size = before->convolution->pooled();
    if (c.channels != before->features() || c.size.y != size.y || c.size.x != size.x)
      refuse(where + "the image must be what the convolution before gives");
  }
  if (last && c.pooled().area() != 1)
    refuse(where + "a convolution that gives the logits must end at one position");
  check_values(where, "padding_value", layer.padding_value, static_cast<size_t>(c.channels));
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
    if (layer.convolution)
      check_convolution(where, layer, l == 0 ? nullptr : &layers[l - 1], l + 1 == layers.size());
    const int depth = layer.convolution ? layer.convolution->depth() : layer.inputs;
    const int features = layer.convolution ? layer.features() : layer.outputs;
    check_values(where, "weight", layer.weight,
                 static_cast<size_t>(depth) * static_cast<size_t>(features));
    check_values(where, "bias", layer.bias, static_cast<size_t>(features));
  }
}

// Rows of (channels, positions) as rows of (positions, channels).
std::vector<float> channels_last(const std::vector<float>& weight, int channels, int positions) {
  std::vector<float> out(weight.size());
  const size_t row = static_cast<size_t>(channels * positions);
  for (size_t first = 0; first < weight.size(); first += row)
    for (int c = 0; c < channels; ++c)
      for (int i = 0; i < positions; ++i)
        out[first + static_cast<size_t>(i * channels + c)] =
            weight[first + static_cast<size_t>(c * positions + i)];
  return out;
}

size_t whole_lines(size_t n) { return (n + kPad - 1) / kPad * kPad; }

}  // namespace

const char* activation_name(Activation activation) {
  return kActivationNames[static_cast<int>(activation)];
}

Activation activation_from_name(const char* name) {
  std::string known;
  for (int i = 0; i < kActivations; ++i) {
    if (std::strcmp(name, kActivationNames[i]) == 0) return static_cast<Activation>(i);
    known += (i ? ", " : "") + std::string(kActivationNames[i]);
  }
  refuse("activation must be one of " + known + ", not " + name);
}

Pooling pooling_from_name(const char* name) {
  for (int i = 0; i < kPoolings; ++i)
    if (std::strcmp(name, kPoolingNames[i]) == 0) return static_cast<Pooling>(i);
  refuse(std::string("pooling must be one of none, max, mean, not ") + name);
}

Network::Network(const std::vector<LayerSpec>& layers, const IsaTable& table) : isa_(table) {
  check(layers);
  size_t total = 0;
  for (const LayerSpec& layer : layers) {
    const int depth = layer.convolution ? layer.convolution->depth() : layer.inputs;
    total += whole_lines(table.packed_floats(depth, layer.features())) +
             whole_lines(table.packed_floats(layer.features(), depth)) +
             whole_lines(layer.bias.size()) + whole_lines(layer.padding_value.size());
  }
  storage_ = allocate(total);
  convolutions_.reserve(layers.size());  // The layers point at them.

  float* next = storage_.get();
  const auto take = [&next](size_t floats) {
    float* const start = next;
    next += whole_lines(floats);
    return start;
  };
  const auto keep = [&take](const std::vector<float>& values) {
    float* const start = take(values.size());
    std::copy(values.begin(), values.end(), start);
    return start;
  };
  int scales = 0;
  for (const LayerSpec& layer : layers) {
    const int features = layer.features();
    const bool follows_convolution = !convolutions_.empty();
    const Convolution* convolution = nullptr;
    std::vector<float> reordered;  // The weights with the channels last.
    int depth = layer.inputs;
    if (layer.convolution) {
      convolution = &convolutions_.emplace_back(*layer.convolution);
      depth = convolution->depth();
      reordered = channels_last(layer.weight, convolution->channels, convolution->kernel.area());
    } else if (follows_convolution && layers_.back().convolution) {
      const int channels = layers_.back().features;
      reordered = channels_last(layer.weight, channels, layer.inputs / channels);
    }
    const float* const weight = reordered.empty() ? layer.weight.data() : reordered.data();
    float* const forward = take(table.packed_floats(depth, features));
    float* const backward = take(table.packed_floats(features, depth));
    const size_t row = static_cast<size_t>(depth);
    table.pack(weight, depth, features, 1, row, forward);
    table.pack(weight, features, depth, row, 1, backward);
    const float* const bias = keep(layer.bias);
    const float* const padding_value = keep(layer.padding_value);
    layers_.push_back({layer.inputs, layer.outputs, layer.activation, layer.slope, forward,
                       backward, bias, scales, features, convolution, padding_value});
    const bool pooled = convolution && convolution->pooling == Pooling::max;
    scales += convolution ? (pooled ? 2 : 1) * features : 1;
    smoothable_ = smoothable_ || has_smoothed_form(layer.activation) || pooled;
  }
  packed_ = {layers.front().inputs,
             layers.back().outputs,
             static_cast<int>(layers_.size()),
             static_cast<int>(convolutions_.size()),
             scales,
             layers_.data()};
}

size_t Network::row_bytes() const {
  return isa_.scratch_bytes(packed_, 2) - isa_.scratch_bytes(packed_, 1);
}

void Propagation::forward(const float* x, int rows, const float* k, float* scales,
                          bool record_scales, float* logits) {
  rows_ = 0;  // Until there is memory.
  const size_t count = static_cast<size_t>(rows), per_row = static_cast<size_t>(network_.scales());
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
  x_.resize(count), logits_.resize(count), dlogits_.resize(count);
  std::vector<float*> scale_rows(count);
  const std::vector<uint8_t> flags(count, record_scales);
  for (size_t r = 0; r < count; ++r, memory += in + 2 * out) {
    x_[r] = memory, logits_[r] = memory + in, dlogits_[r] = memory + in + out;
    std::copy_n(x + r * inputs, inputs, x_[r]);
    if (scales) scale_rows[r] = scales + r * per_row;
  }
  network_.isa().forward(network_.packed(), *scratch_, x_.data(), rows, k, scale_rows.data(),
                         flags.data(), logits_.data());
  for (size_t r = 0; r < count; ++r) std::copy_n(logits_[r], classes, logits + r * classes);
  rows_ = rows;
}

void Propagation::backward(const float* dlogits, float* dx) {
  const size_t count = static_cast<size_t>(rows_);
  const size_t inputs = static_cast<size_t>(network_.inputs());
  const size_t classes = static_cast<size_t>(network_.classes());
  std::vector<int> all_rows(count);
  for (size_t r = 0; r < count; ++r) {
    all_rows[r] = static_cast<int>(r);
    std::copy_n(dlogits + r * classes, classes, dlogits_[r]);
  }
  if (rows_ > 0)
    network_.isa().backward(network_.packed(), *scratch_, all_rows.data(), rows_, dlogits_.data(),
                            x_.data());
  for (size_t r = 0; r < count; ++r) std::copy_n(x_[r], inputs, dx + r * inputs);
}

}  // namespace advcore

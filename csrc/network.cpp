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

// The layers that layer l takes.
std::vector<int> sources_of(const std::vector<LayerSpec>& layers, size_t l) {
  if (layers[l].sources.empty()) return {static_cast<int>(l) - 1};
  return layers[l].sources;
}

// The network's own image, as the first layer takes it.
Convolution own_image(const std::vector<LayerSpec>& layers) {
  Convolution image = *layers[0].convolution;
  if (layers[0].merge == Merge::concatenate)
    image.channels /= static_cast<int>(sources_of(layers, 0).size());
  return image;
}

int inputs_of(const std::vector<LayerSpec>& layers) {
  if (!layers[0].convolution) return layers[0].inputs;
  return own_image(layers).channels * layers[0].convolution->size.area();
}

// Checks that the images that a layer takes have its shape; `image` is the network's own.
void check_sources(const std::string& where, const std::vector<LayerSpec>& layers, size_t l,
                   const Convolution& image) {
  const LayerSpec& layer = layers[l];
  const Convolution& c = *layer.convolution;
  const std::vector<int> sources = sources_of(layers, l);
  int channels = 0;
  for (const int source : sources) {
    if (source < -1 || source >= static_cast<int>(l))
      refuse(where + "sources must be layers before it, not " + std::to_string(source));
    const LayerSpec* const before = source < 0 ? nullptr : &layers[static_cast<size_t>(source)];
    if (before && !before->convolution)
      refuse(where + "a convolution must not follow a fully connected layer");
    const Size size = before ? before->convolution->pooled() : image.size;
    const int given = before ? before->features() : image.channels;
    if (c.size.y != size.y || c.size.x != size.x ||
        (layer.merge != Merge::concatenate && c.channels != given))
      refuse(where + "the image must be what the layers that it takes give");
    channels += given;
  }
  if (layer.merge == Merge::none && sources.size() != 1)
    refuse(where + "a convolution must take one layer");
  if (layer.merge == Merge::concatenate && channels != c.channels)
    refuse(where + "the image must be what the layers that it takes give");
}

void check_convolution(const std::string& where, const LayerSpec& layer, bool last) {
  const Convolution& c = *layer.convolution;
  const auto positive = [](Size size) { return size.y >= 1 && size.x >= 1; };
  const auto not_negative = [](Size size) { return size.y >= 0 && size.x >= 0; };
  if (c.channels < 1 || !positive(c.size) || !positive(c.kernel) || !positive(c.stride) ||
      !positive(c.window) || !not_negative(c.padding) || !not_negative(c.pooling_stride))
    refuse(where + "sizes of a convolution must be >= 1, its padding >= 0");
  if (!not_negative(c.pooling_padding) || 2 * c.pooling_padding.y > c.window.y ||
      2 * c.pooling_padding.x > c.window.x)
    refuse(where + "the padding of a pooling must be >= 0 and at most half of its window");
  if (c.padded().y < c.kernel.y || c.padded().x < c.kernel.x || !positive(c.pooled()))
    refuse(where + "the kernel and the window must fit the image");
  if (static_cast<int>(c.pooling) < 0 || static_cast<int>(c.pooling) >= kPoolings ||
      (c.pooling == Pooling::none && (c.window.area() != 1 || !c.side_by_side())) ||
      (c.ceil_mode && c.pooling != Pooling::max))
    refuse(where + "pooling must be none, with a window of 1, max or mean");
  if (layer.merge != Merge::none &&
      (c.kernel.area() != 1 || c.stride.area() != 1 || c.padding.y != 0 || c.padding.x != 0 ||
       c.channels != layer.features() || last))
    refuse(where + "a merge must have a kernel of 1, no padding, and a layer after it");
  if (layer.inputs != c.channels * c.size.area() ||
      layer.outputs != layer.features() * c.pooled().area())
    refuse(where + "inputs and outputs must be those of the convolution");
  if (last && c.pooled().area() != 1)
    refuse(where + "a convolution that gives the logits must end at one position");
  check_values(where, "padding_value", layer.padding_value,
               layer.merge == Merge::none ? static_cast<size_t>(c.channels) : 0);
}

// Checks that every layer is taken, and that what is taken has one value around it.
void check_readers(const std::vector<LayerSpec>& layers) {
  std::vector<const std::vector<float>*> borders(layers.size() + 1);
  std::vector<bool> taken(layers.size() + 1);
  for (size_t l = 0; l < layers.size(); ++l)
    for (const int source : sources_of(layers, l)) {
      const std::string where = "layers[" + std::to_string(l) + "]: ";
      const LayerSpec& layer = layers[l];
      const size_t image = static_cast<size_t>(source + 1);
      taken[image] = true;
      if (!layer.convolution || (!layer.convolution->padding.y && !layer.convolution->padding.x))
        continue;
      if (borders[image] && *borders[image] != layer.padding_value)
        refuse(where + "padding_value must be that of the other layers that take the same");
      borders[image] = &layer.padding_value;
    }
  for (size_t l = 0; l < layers.size(); ++l)
    if (!taken[l] && l > 0)
      refuse("layers[" + std::to_string(l - 1) + "] must be taken by another");
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
    if (l > 0 && !layer.convolution && layer.inputs != layers[l - 1].outputs)
      refuse(where + "inputs must be the " + std::to_string(layers[l - 1].outputs) +
             " outputs of the layer before, not " + std::to_string(layer.inputs));
    if (kind < 0 || kind >= kActivations)
      refuse(where + "activation must be in [0, " + std::to_string(kActivations) + "), not " +
             std::to_string(kind));
    if (!std::isfinite(layer.slope))
      refuse(where + "slope must be finite, not " + std::to_string(layer.slope));
    if (!layer.convolution && (layer.merge != Merge::none || !layer.sources.empty()))
      refuse(where + "a fully connected layer must take the layer before it");
    int depth = layer.inputs;
    if (layer.convolution) {
      check_convolution(where, layer, l + 1 == layers.size());
      if (!layers[0].convolution)
        refuse(where + "a convolution must not follow a fully connected layer");
      check_sources(where, layers, l, own_image(layers));
      depth = layer.merge == Merge::none ? layer.convolution->depth() : 1;
    }
    const int features = layer.convolution ? layer.features() : layer.outputs;
    check_values(where, "weight", layer.weight,
                 static_cast<size_t>(depth) * static_cast<size_t>(features));
    check_values(where, "bias", layer.bias, static_cast<size_t>(features));
  }
  check_readers(layers);
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

int depth_of(const LayerSpec& layer) {
  return layer.convolution ? layer.convolution->depth() : layer.inputs;
}

// The weights with the channels last; `channels` are those of an image before a fully connected
// layer, 0 where there is none.
std::vector<float> inner_weight(const LayerSpec& layer, int channels) {
  if (layer.convolution)
    return channels_last(layer.weight, layer.convolution->channels,
                         layer.convolution->kernel.area());
  if (channels > 0) return channels_last(layer.weight, channels, layer.inputs / channels);
  return layer.weight;
}

// The floats of all packed layers.
size_t packed_size(const std::vector<LayerSpec>& layers, const IsaTable& table) {
  size_t total = 0;
  for (const LayerSpec& layer : layers) {
    const int depth = depth_of(layer);
    total += whole_lines(layer.bias.size()) + whole_lines(layer.padding_value.size());
    total += layer.merge != Merge::none
                 ? whole_lines(layer.weight.size())
                 : whole_lines(table.packed_floats(depth, layer.features())) +
                       whole_lines(table.packed_floats(layer.features(), depth));
  }
  return total;
}

// Whether a merge maps its channels.
bool has_map(const LayerSpec& layer) {
  return std::any_of(layer.weight.begin(), layer.weight.end(), [](float s) { return s != 1.0f; }) ||
         std::any_of(layer.bias.begin(), layer.bias.end(), [](float s) { return s != 0.0f; });
}

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

Merge merge_from_name(const char* name) {
  for (int i = 0; i < kMerges; ++i)
    if (std::strcmp(name, kMergeNames[i]) == 0) return static_cast<Merge>(i);
  refuse(std::string("a merge must be sum or concatenate, not ") + name);
}

void Network::place_images(const std::vector<LayerSpec>& layers,
                           const std::vector<const float*>& padding_values) {
  for (size_t l = 0; l < convolutions_.size(); ++l) {
    const Convolution& c = convolutions_[l];
    sources_.push_back(sources_of(layers, l));
    if (l == 0)
      images_.push_back({own_image(layers).channels, c.size, {0, 0}, nullptr, 0});
    else
      images_.push_back(
          {layers_[l - 1].features, convolutions_[l - 1].pooled(), {0, 0}, nullptr, 0});
  }
  for (size_t l = 0; l < sources_.size(); ++l) {
    const Size padding = convolutions_[l].padding;
    for (int& source : sources_[l]) {
      Image& image = images_[static_cast<size_t>(++source)];
      image.last_reader = static_cast<int>(l);
      if (padding.y || padding.x) image.padding_value = padding_values[l];
      image.padding = {std::max(image.padding.y, padding.y), std::max(image.padding.x, padding.x)};
    }
    layers_[l].sources = sources_[l].data();
    layers_[l].source_count = static_cast<int>(sources_[l].size());
  }
}

Network::Network(const std::vector<LayerSpec>& layers, const IsaTable& table) : isa_(table) {
  check(layers);
  storage_ = allocate(packed_size(layers, table));
  convolutions_.reserve(layers.size());  // The layers point at them.
  sources_.reserve(layers.size());

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
  std::vector<const float*> padding_values;
  for (const LayerSpec& layer : layers) {
    const int features = layer.features();
    PackedLayer packed{};
    packed.inputs = layer.inputs, packed.outputs = layer.outputs;
    packed.activation = layer.activation, packed.slope = layer.slope;
    packed.scale_offset = scales, packed.features = features, packed.merge = layer.merge;
    if (layer.convolution) packed.convolution = &convolutions_.emplace_back(*layer.convolution);
    if (layer.merge == Merge::none) {
      const bool follows_image = !layers_.empty() && layers_.back().convolution;
      const std::vector<float> weight =
          inner_weight(layer, follows_image ? layers_.back().features : 0);
      const int depth = depth_of(layer);
      float* const forward = take(table.packed_floats(depth, features));
      float* const backward = take(table.packed_floats(features, depth));
      const size_t row = static_cast<size_t>(depth);
      table.pack(weight.data(), depth, features, 1, row, forward);
      table.pack(weight.data(), features, depth, row, 1, backward);
      packed.forward = forward, packed.backward = backward;
    } else if (has_map(layer)) {
      packed.scale = keep(layer.weight);
    }
    packed.bias = keep(layer.bias);
    padding_values.push_back(keep(layer.padding_value));
    layers_.push_back(packed);
    const bool pooled = packed.convolution && packed.convolution->pooling == Pooling::max;
    scales += packed.convolution ? (pooled ? 2 : 1) * features : 1;
    smoothable_ = smoothable_ || has_smoothed_form(layer.activation) || pooled;
  }
  place_images(layers, padding_values);
  packed_ = {inputs_of(layers),
             layers.back().outputs,
             static_cast<int>(layers_.size()),
             static_cast<int>(convolutions_.size()),
             scales,
             layers_.data(),
             images_.data()};
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
  if (rows != memory_rows_) {
    memory_rows_ = -1;  // Until there is memory.
    memory_ = allocate(scratch + count * (in + 2 * out));
    memory_rows_ = rows;
  }
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

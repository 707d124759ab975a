// A fixed job for counting instructions: count_check IMAGES solves that many problems of a
// 784-100-100-10 network with sigmoids (random weights and images, always the same) on one thread
// and prints the evaluations. Under a simulator, the difference between two numbers of images is
// the work of the engine alone.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "engine.h"

using namespace advcore;

namespace {

// The distributions of the standard library differ between its versions; these bits do not.
float uniform(std::mt19937& random) { return static_cast<float>(random() >> 8) * 0x1p-24f; }

std::vector<LayerSpec> random_layers(std::mt19937& random) {
  std::vector<LayerSpec> layers;
  const int widths[] = {784, 100, 100, 10};
  for (int l = 0; l < 3; ++l) {
    const int inputs = widths[l], outputs = widths[l + 1];
    const float scale = (l == 0 ? 20.0f : 10.0f) / std::sqrt(static_cast<float>(inputs));
    LayerSpec layer{inputs, outputs, l < 2 ? Activation::sigmoid : Activation::identity, 0, {}, {}};
    layer.weight.resize(static_cast<size_t>(inputs) * static_cast<size_t>(outputs));
    layer.bias.resize(static_cast<size_t>(outputs));
    const float mean = l == 0 ? 0.25f : 0.5f;  // of the inputs; the bias takes their part away
    for (size_t i = 0; i < layer.weight.size(); ++i) {
      layer.weight[i] = scale * (uniform(random) - 0.5f);
      layer.bias[i / static_cast<size_t>(inputs)] -= mean * layer.weight[i];
    }
    layers.push_back(layer);
  }
  return layers;
}

}  // namespace

int main(int arguments, char** argument) {
  const int count = arguments > 1 ? std::atoi(argument[1]) : 24;
  std::mt19937 random(1);
  const Network network(random_layers(random));
  Params params;
  params.n = network.inputs(), params.stride = row_stride(params.n);
  params.classes = network.classes();
  params.smoothable = true;
  Schedule& schedule = params.schedule[0];
  schedule.patience = 2, schedule.polish_tolerance = 7e-4f;
  schedule.stages = 3;
  for (int i = 0; i < 3; ++i) {
    const float smoothing[] = {0.3f, 0.1f, 0}, temperature[] = {0.1f, 0.05f, 0.03f};
    schedule.smoothing[i] = smoothing[i], schedule.temperature[i] = temperature[i];
    schedule.budget[i] = 30;
  }
  const size_t n = static_cast<size_t>(params.n), images = static_cast<size_t>(count);
  std::vector<float> x(images * n), adversarial(images * n), lo(n, 0.0f), hi(n, 1.0f);
  // Most pixels of a digit are 0, some 1.
  for (float& v : x) v = std::fmin(1.0f, std::fmax(0.0f, 4 * uniform(random) - 2.5f));
  std::vector<int32_t> labels(images), prediction(images), evaluations(images), forwards(images),
      iterations(images), rescues(images);
  for (size_t i = 0; i < images; ++i) labels[i] = static_cast<int32_t>(i % 10);
  std::vector<uint8_t> success(images);
  std::vector<int8_t> status(images);
  std::vector<float> distortion(images), margin(images), c(images), penalty(images);
  Job job;
  job.count = count;
  job.images = x.data(), job.labels = labels.data(), job.lo = lo.data(), job.hi = hi.data();
  job.adversarial = adversarial.data(), job.success = success.data();
  job.distortion = distortion.data(), job.margin = margin.data(), job.c = c.data();
  job.penalty = penalty.data(), job.prediction = prediction.data(), job.status = status.data();
  job.evaluations = evaluations.data(), job.forwards = forwards.data();
  job.iterations = iterations.data(), job.rescues = rescues.data();
  WorkQueue work;
  solve(network, params, job, 1, 24, work, [](const Counts&) { return true; });
  int total = 0, found = 0, probes = 0;
  for (size_t i = 0; i < images; ++i)
    total += evaluations[i], probes += forwards[i], found += success[i];
  std::printf("%s %d images %d found %d evaluations %d forwards\n", network.isa().name, count,
              found, total, probes);
  return found > 0 ? 0 : 1;
}

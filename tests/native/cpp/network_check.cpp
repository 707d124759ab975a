// Checks of the network kernels against a plain double implementation, for every instruction set
// that this CPU has (or ADVCORE_ISA alone). `network_check bench` prints their speed instead.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "check_convolution.h"
#include "fma_peak.h"
#include "network.h"
#include "network_rows.h"
#include "problem.h"

namespace {

// h(z) and dh/dz in double.
void plain_activation(Activation kind, double slope, double d, double z, double& h, double& dh) {
  if (d > 0 && (kind == Activation::sigmoid || kind == Activation::tanh)) {
    const double stretch = std::sqrt(1 + M_PI * d * d / (kind == Activation::sigmoid ? 8 : 2));
    plain_activation(kind, slope, 0, z / stretch, h, dh);
    dh /= stretch;
    return;
  }
  const double s = 1 / (1 + std::exp(-z)), phi = 0.5 * std::erfc(-z * std::sqrt(0.5));
  const double u = std::sqrt(2 / M_PI) * (z + 0.044715 * z * z * z), t = std::tanh(u);
  switch (kind) {
    case Activation::identity:
      h = z, dh = 1;
      return;
    case Activation::relu:
      slope = 0;
      [[fallthrough]];
    case Activation::leaky_relu: {
      double relu_d = z > 0 ? z : 0, step = z > 0;
      if (d > 0 && std::fabs(z) < d) relu_d = (z + d) * (z + d) / (4 * d), step = (z + d) / (2 * d);
      h = slope * z + (1 - slope) * relu_d, dh = slope + (1 - slope) * step;
      return;
    }
    case Activation::sigmoid:
      h = s, dh = s / (1 + std::exp(z));
      return;
    case Activation::tanh:
      h = std::tanh(z), dh = 1 / (std::cosh(z) * std::cosh(z));
      return;
    case Activation::softplus:
      h = z > 0 ? z + std::log1p(std::exp(-z)) : std::log1p(std::exp(z)), dh = s;
      return;
    case Activation::gelu:
      h = z * phi, dh = phi + z * std::exp(-z * z / 2) / std::sqrt(2 * M_PI);
      return;
    case Activation::gelu_tanh:
      h = z * (1 + t) / 2;
      dh = (1 + t) / 2 + z * (1 - t * t) / 2 * std::sqrt(2 / M_PI) * (1 + 0.134145 * z * z);
      return;
  }
}

// One row in double, and the scales of its rounding errors: the sums behind the logits and dx with
// every term positive. Not smooth: a unit lies so close to an exact kink that rounding decides.
struct Plain {
  std::vector<double> logits, dx, scales;
  double logits_scale = 1e-30, dx_scale = 1e-30;
  bool smooth = true;
};

Plain plain_pass(const std::vector<LayerSpec>& layers, const float* x, double k,
                 const float* scales, const float* dlogits) {
  Plain out;
  std::vector<double> h(x, x + layers.front().inputs);
  std::vector<std::vector<double>> derivatives;
  for (size_t l = 0; l < layers.size(); ++l) {
    const LayerSpec& layer = layers[l];
    std::vector<double> z(layer.outputs), dh(layer.outputs);
    double mean = 0, rms = 0, deviation = 0;
    for (int o = 0; o < layer.outputs; ++o) {
      z[o] = layer.bias[o];
      double scale = std::fabs(z[o]);
      for (int i = 0; i < layer.inputs; ++i) {
        const double term = layer.weight[o * layer.inputs + i] * h[i];
        z[o] += term, scale += std::fabs(term);
      }
      out.logits_scale = std::max(out.logits_scale, scale);
      mean += z[o] / layer.outputs, rms += z[o] * z[o] / layer.outputs;
    }
    for (double v : z) deviation += (v - mean) * (v - mean) / layer.outputs;
    out.scales.push_back(std::max({std::sqrt(deviation), 1e-3 * std::sqrt(rms), 1e-30}));
    const bool kinked =
        layer.activation == Activation::relu || layer.activation == Activation::leaky_relu;
    for (int o = 0; o < layer.outputs; ++o) {
      if (kinked && k == 0 && std::fabs(z[o]) < 1e-5) out.smooth = false;
      plain_activation(layer.activation, layer.slope, k * scales[l], z[o], z[o], dh[o]);
    }
    h = z;
    derivatives.push_back(dh);
  }
  out.logits = h;
  std::vector<double> g(dlogits, dlogits + layers.back().outputs), magnitudes;
  for (double v : g) magnitudes.push_back(std::fabs(v));
  for (size_t l = layers.size(); l-- > 0;) {
    const LayerSpec& layer = layers[l];
    std::vector<double> dh(layer.inputs), positive(layer.inputs);
    for (int o = 0; o < layer.outputs; ++o)
      for (int i = 0; i < layer.inputs; ++i) {
        const double slope = derivatives[l][o] * layer.weight[o * layer.inputs + i];
        dh[i] += slope * g[o], positive[i] += std::fabs(slope) * magnitudes[o];
      }
    g = dh, magnitudes = positive;
  }
  out.dx = g;
  for (double magnitude : magnitudes) out.dx_scale = std::max(out.dx_scale, magnitude);
  return out;
}

// Largest difference relative to the scale.
double row_error(const float* got, const std::vector<double>& expected, double scale) {
  double error = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!std::isfinite(got[i])) return std::numeric_limits<double>::infinity();
    error = std::max(error, std::fabs(got[i] - expected[i]));
  }
  return error / scale;
}

struct Worst {
  double logits = 0, dx = 0, scales = 0;
};

void check_against_plain(const IsaTable& isa, const std::vector<int>& sizes, Activation activation,
                         bool last_too, Worst& worst) {
  std::mt19937 rng(1);
  const std::vector<LayerSpec> layers = random_layers(sizes, activation, rng, last_too);
  const Network net(layers, isa);
  std::string shape;
  for (int size : sizes) shape.append(std::to_string(size)).append(" ");
  shape.append(advcore::activation_name(activation));
  NetworkRows batch(net, 5);
  fill_random(batch, rng);
  for (float k : {0.0f, 0.8f, 0.05f}) {  // the pass with k = 0 records the scales
    batch.k.assign(batch.rows, k);
    batch.record_scales.assign(batch.rows, k == 0.0f);
    batch.forward();
    batch.backward(batch.all);
    for (int r = 0; r < batch.rows; ++r) {
      const Plain plain =
          plain_pass(layers, batch.x.row[r], k, batch.scales.row[r], batch.dlogits.row[r]);
      const double logits = row_error(batch.logits.row[r], plain.logits, plain.logits_scale);
      const double dx = plain.smooth ? row_error(batch.dx.row[r], plain.dx, plain.dx_scale) : 0;
      expect(logits < 2e-6, "%s %s k %g row %d: logits off by %.2e", isa.name, shape.c_str(), k, r,
             logits);
      expect(dx < 2e-5, "%s %s k %g row %d: dx off by %.2e", isa.name, shape.c_str(), k, r, dx);
      worst.logits = std::max(worst.logits, logits), worst.dx = std::max(worst.dx, dx);
      for (int l = 0; k == 0.0f && l < net.layers(); ++l) {
        const double error = std::fabs(batch.scales.row[r][l] / plain.scales[l] - 1);
        expect(error < 2e-5, "%s %s row %d layer %d: scale %g, expected %g", isa.name,
               shape.c_str(), r, l, batch.scales.row[r][l], plain.scales[l]);
        worst.scales = std::max(worst.scales, error);
      }
      for (size_t i = net.classes(); i < batch.logits.stride; ++i)
        expect(batch.logits.row[r][i] == advcore::kPadLogit, "%s %s: logit padding %zu is %g",
               isa.name, shape.c_str(), i, batch.logits.row[r][i]);
      for (size_t i = net.inputs(); i < batch.dx.stride; ++i)
        expect(batch.dx.row[r][i] == 0.0f, "%s %s: dx padding %zu is %g", isa.name, shape.c_str(),
               i, batch.dx.row[r][i]);
    }
  }
}

// Values and derivatives one by one: a layer with the identity as weight shows both.
void check_activations(const IsaTable& isa) {
  constexpr int n = 512;
  std::printf("%s activations, largest |error| / max(1, |h|) and of dh:", isa.name);
  for (int a = 0; a < advcore::kActivations; ++a) {
    LayerSpec layer{
        n, n, static_cast<Activation>(a), 0.1f, std::vector<float>(n * n), std::vector<float>(n)};
    for (int i = 0; i < n; ++i) layer.weight[i * n + i] = 1.0f;
    const Network net({layer}, isa);
    NetworkRows batch(net, 1);
    std::fill_n(batch.dlogits.row[0], n, 1.0f);
    double worst = 0, worst_d = 0;
    for (int part = 0; part < 800; ++part) {
      const float scale = part < 700 ? 12.0f : 120.0f, k = part % 2 ? 0.5f : 0.0f;
      for (int i = 0; i < n; ++i)
        batch.x.row[0][i] = scale * (2.0f * (i * 800 + part) / (n * 800.0f) - 1.0f) + 1e-4f;
      batch.k[0] = k, batch.scales.row[0][0] = 3.0f;
      batch.forward();
      batch.backward({0});
      for (int i = 0; i < n; ++i) {
        double h, dh;
        plain_activation(layer.activation, layer.slope, k * 3.0, batch.x.row[0][i], h, dh);
        const double error = std::fabs(batch.logits.row[0][i] - h) / std::max(1.0, std::fabs(h));
        const double error_d = std::fabs(batch.dx.row[0][i] - dh);
        worst = std::max(worst, std::isnan(error) ? 1.0 : error);
        worst_d = std::max(worst_d, std::isnan(error_d) ? 1.0 : error_d);
      }
    }
    std::printf(" %s %.1e %.1e", advcore::activation_name(layer.activation), worst, worst_d);
    expect(worst < 3e-7, "%s %s: h off by %.2e", isa.name,
           advcore::activation_name(layer.activation), worst);
    expect(worst_d < 1e-6, "%s %s: dh off by %.2e", isa.name,
           advcore::activation_name(layer.activation), worst_d);
    batch.k[0] = 0.0f;
    for (float bad : {NAN, INFINITY, -INFINITY}) {
      batch.x.row[0][0] = bad;
      batch.forward();
      expect(std::isnan(batch.logits.row[0][1]), "%s %s: %g was swallowed", isa.name,
             advcore::activation_name(layer.activation), bad);
    }
  }
  std::printf("\n");
}

bool same_bits(const float* a, const float* b, size_t n) {
  return std::memcmp(a, b, n * sizeof(float)) == 0;
}

// A row alone, in tiles of 1 to 24 rows at any place, and in any subset of the backward.
void check_row_independence(const IsaTable& isa, const std::vector<LayerSpec>& layers) {
  std::mt19937 rng(2);
  const Network net(layers, isa);
  NetworkRows whole(net, 24);
  fill_random(whole, rng);
  NetworkRows alone(net, 1);
  for (int r = 0; r < whole.rows; ++r) {  // expected: every row on its own
    whole.k[r] = r % 3 ? 0.4f : 0.0f;
    std::memcpy(alone.x.row[0], whole.x.row[r], alone.x.stride * sizeof(float));
    std::memcpy(alone.dlogits.row[0], whole.dlogits.row[r], alone.dlogits.stride * sizeof(float));
    alone.k[0] = 0.0f, alone.record_scales[0] = 1;
    alone.forward();
    std::memcpy(whole.scales.row[r], alone.scales.row[0], net.scales() * sizeof(float));
    alone.k[0] = whole.k[r], alone.record_scales[0] = 0;
    alone.forward();
    alone.backward({0});
    std::memcpy(whole.logits.row[r], alone.logits.row[0], whole.logits.stride * sizeof(float));
    std::memcpy(whole.dx.row[r], alone.dx.row[0], whole.dx.stride * sizeof(float));
  }
  for (int rows = 1; rows <= 24; ++rows) {
    NetworkRows batch(net, rows);
    std::vector<int> source(24);
    for (int r = 0; r < 24; ++r) source[r] = r;
    std::shuffle(source.begin(), source.end(), rng);
    for (int r = 0; r < rows; ++r) {
      std::memcpy(batch.x.row[r], whole.x.row[source[r]], batch.x.stride * sizeof(float));
      std::memcpy(batch.dlogits.row[r], whole.dlogits.row[source[r]],
                  batch.dlogits.stride * sizeof(float));
      batch.record_scales[r] = 1;
    }
    batch.forward();
    for (int r = 0; r < rows; ++r) {
      expect(same_bits(batch.scales.row[r], whole.scales.row[source[r]], net.scales()),
             "%s batch of %d: scales of row %d depend on the batch", isa.name, rows, r);
      batch.k[r] = whole.k[source[r]], batch.record_scales[r] = 0;
    }
    batch.forward();
    for (int count = rows; count >= 1; count = count > 5 ? count - 5 : count - 1) {
      std::vector<int> which = batch.all;
      std::shuffle(which.begin(), which.end(), rng);
      which.resize(count);
      for (float* row : batch.dx.row) std::fill_n(row, batch.dx.stride, 7.0f);
      batch.backward(which);
      for (int r = 0; r < rows; ++r) {
        const bool listed = std::find(which.begin(), which.end(), r) != which.end();
        expect(same_bits(batch.logits.row[r], whole.logits.row[source[r]], batch.logits.stride),
               "%s batch of %d: logits of row %d depend on the batch", isa.name, rows, r);
        if (listed)
          expect(same_bits(batch.dx.row[r], whole.dx.row[source[r]], batch.dx.stride),
                 "%s batch of %d, %d in the backward: dx of row %d depends on the batch", isa.name,
                 rows, count, r);
        else
          expect(batch.dx.row[r][0] == 7.0f, "%s: dx of row %d was written unasked", isa.name, r);
      }
    }
  }
}

// k, scales and record_scales left out mean the exact network; denormals survive in the caller's
// mode.
void check_nulls_and_mode(const IsaTable& isa) {
  std::mt19937 rng(5);
  const Network net(random_layers({20, 30, 3}, Activation::relu, rng), isa);
  NetworkRows batch(net, 3);
  fill_random(batch, rng);
  batch.forward();
  std::vector<float> expected;
  for (float* row : batch.logits.row) expected.insert(expected.end(), row, row + 3);
  isa.forward(net.packed(), *batch.scratch, batch.x.row.data(), 3, nullptr, nullptr, nullptr,
              batch.logits.row.data());
  batch.backward(batch.all);
  batch.backward({});
  for (int r = 0; r < 3; ++r)
    expect(same_bits(batch.logits.row[r], &expected[3 * r], 3), "%s: k = null is not k = 0",
           isa.name);
  volatile float denormal = 1e-40f;
  expect(denormal * 1.0f != 0.0f, "%s: flushing of denormals was left on", isa.name);
}

template <class F>
void expect_refused(F f, const char* part) {
  try {
    f();
    expect(false, "accepted: %s", part);
  } catch (const std::invalid_argument& error) {
    expect(std::strstr(error.what(), part) != nullptr, "message '%s' lacks '%s'", error.what(),
           part);
  }
}

void check_misuse() {
  std::mt19937 rng(3);
  const auto broken = [&rng](auto change) {
    return [&rng, change] {
      std::vector<LayerSpec> layers = random_layers({3, 4, 2}, Activation::relu, rng);
      change(layers);
      const Network net(layers);
    };
  };
  using Layers = std::vector<LayerSpec>;
  expect_refused(broken([](Layers& l) { l.clear(); }), "layers must not be empty");
  expect_refused(broken([](Layers& l) { l[1].inputs = 5; }), "layers[1]: inputs must be the 4");
  expect_refused(broken([](Layers& l) { l[0].outputs = 0; }), "layers[0]: outputs must be >= 1");
  expect_refused(broken([](Layers& l) { l[0].weight.pop_back(); }), "must have 12 values, not 11");
  expect_refused(broken([](Layers& l) { l[1].bias[1] = NAN; }), "bias must be finite");
  expect_refused(broken([](Layers& l) { l[0].slope = INFINITY; }), "slope must be finite");
  expect_refused([] { advcore::activation_from_name("swish"); }, "not swish");
  for (int a = 0; a < advcore::kActivations; ++a)
    expect(static_cast<int>(advcore::activation_from_name(
               advcore::activation_name(static_cast<Activation>(a)))) == a,
           "name of activation %d does not come back", a);
}

void check(const IsaTable& isa) {
  std::mt19937 rng(2);
  const std::vector<std::vector<int>> shapes = {
      {1, 1, 1},    {1, 2},       {7, 10, 2},      {784, 100, 100, 10}, {784, 10},
      {7, 130, 10}, {33, 1, 130}, {130, 10, 1000}, {784, 130, 2},       {2100, 20, 3}};
  for (int a = 0; a < advcore::kActivations; ++a) {
    const Activation activation = static_cast<Activation>(a);
    Worst worst;
    for (const std::vector<int>& shape : shapes)
      for (bool last_too : {false, true})
        check_against_plain(isa, shape, activation, last_too, worst);
    std::printf("%s %-10s largest relative error: logits %.1e, dx %.1e, scales %.1e\n", isa.name,
                advcore::activation_name(activation), worst.logits, worst.dx, worst.scales);
    check_row_independence(isa, random_layers({131, 100, 33, 10}, activation, rng));
  }
  check_row_independence(isa, random_layers({784, 100, 100, 10}, Activation::relu, rng));
  check_row_independence(isa, random_layers({2100, 20, 3}, Activation::tanh, rng));
  check_convolutions(isa);
  check_row_independence(isa, random_convolutional(rng));
  check_nulls_and_mode(isa);
  check_activations(isa);
}

void bench(const IsaTable& isa) {
  std::mt19937 rng(4);
  const double bound = peak(isa);
  std::printf("%s peak %.1f GFLOP/s (784-100-100-10, forward + backward)\n", isa.name, bound);
  for (Activation activation : {Activation::relu, Activation::sigmoid}) {
    const Network net(random_layers({784, 100, 100, 10}, activation, rng), isa);
    for (int rows : {1, 4, 8, 16, 24, 32, 48, 64}) {
      NetworkRows batch(net, rows);
      fill_random(batch, rng);
      const double flop = 4.0 * (784 * 100 + 100 * 100 + 100 * 10) * rows;
      std::vector<double> rate, forward;
      for (int repeat = 0; repeat < 400; ++repeat) {
        const auto start = std::chrono::steady_clock::now();
        for (int i = 0; i < 4; ++i) batch.forward();
        const auto middle = std::chrono::steady_clock::now();
        for (int i = 0; i < 4; ++i) batch.forward(), batch.backward(batch.all);
        const auto end = std::chrono::steady_clock::now();
        rate.push_back(4 * flop / std::chrono::duration<double>(end - middle).count() / 1e9);
        forward.push_back(2 * flop / std::chrono::duration<double>(middle - start).count() / 1e9);
      }
      std::sort(rate.begin(), rate.end());
      std::sort(forward.begin(), forward.end());
      const double median = rate[rate.size() / 2];
      std::printf(
          "  %-8s %2d rows: best %6.1f, median %6.1f (%2.0f%% of peak), forward alone best "
          "%6.1f GFLOP/s, %.2f us a row\n",
          advcore::activation_name(activation), rows, rate.back(), median, 100 * median / bound,
          forward.back(), flop / rows / median / 1e3);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const bool speed = argc > 1 && std::strcmp(argv[1], "bench") == 0;
  check_misuse();
  for (const char* name : {"base", "v3", "v4"}) {
    const IsaTable* const table = advcore::find_isa(name);
    if (!table || (std::getenv("ADVCORE_ISA") && table != &advcore::isa())) continue;
    speed ? bench(*table) : check(*table);
  }
  if (failures) std::printf("%d checks failed\n", failures);
  return failures ? 1 : 0;
}

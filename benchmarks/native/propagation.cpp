// Rate of the propagation alone beside the peak of this core, as one JSON object.
//
//   propagation SECONDS ROWS WIDTH WIDTH ...      e.g. propagation 1 24 784 100 100 10
//
// peak: independent chains of multiply-adds in registers, for the instruction set that the engine
// has chosen (ADVCORE_ISA caps it). forward, backward, both: 2 x weights flops a row and direction,
// no padding and no activation counted, on ROWS rows, sigmoids between the layers. Gflop/s of the
// thread's CPU time: the best and the median of repeats of about a millisecond, taken in turn.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>
#include <vector>

#include "network.h"

using namespace advcore;

namespace {

double seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

#define ADVCORE_HOLD_ZMM(lane) asm volatile("" : "+v"(lane))  // all 32 registers
#if defined(__x86_64__)
#define ADVCORE_HOLD(lane) asm volatile("" : "+x"(lane))
#else
#define ADVCORE_HOLD(lane) asm volatile("" : "+w"(lane))
#endif

// Flops of `turns` turns of independent chains of multiply-adds. The empty asm keeps every chain
// alive and in a register.
#define ADVCORE_CHAINS(NAME, LANES, CHAINS, HOLD)                                        \
  double NAME(long turns) {                                                              \
    typedef float Lane __attribute__((vector_size(LANES * 4)));                          \
    Lane acc[CHAINS] = {}, a = Lane{} + 0.999f, b = Lane{} + 0.001f;                     \
    HOLD(a);                                                                             \
    HOLD(b);                                                                             \
    for (long turn = 0; turn < turns; ++turn) {                                          \
      _Pragma("GCC unroll 32") for (int i = 0; i < CHAINS; ++i) acc[i] = acc[i] * a + b; \
      _Pragma("GCC unroll 32") for (int i = 0; i < CHAINS; ++i) HOLD(acc[i]);            \
    }                                                                                    \
    return 2.0 * LANES * CHAINS * static_cast<double>(turns);                            \
  }                                                                                      \
  static_assert(true)
#if defined(__x86_64__)
__attribute__((target("avx512f,prefer-vector-width=512"))) ADVCORE_CHAINS(chains_v4, 16, 24,
                                                                          ADVCORE_HOLD_ZMM);
__attribute__((target("avx2,fma"))) ADVCORE_CHAINS(chains_v3, 8, 12, ADVCORE_HOLD);
ADVCORE_CHAINS(chains_base, 4, 12, ADVCORE_HOLD);
#else
ADVCORE_CHAINS(chains_base, 4, 24, ADVCORE_HOLD);
#endif

struct Rate {
  double best, median;
};

// `work()` returns its flops.
template <class F>
double rate_once(F work) {
  const double begin = seconds(), flops = work();
  return 1e-9 * flops / (seconds() - begin);
}

Rate summary(std::vector<double> rates) {
  std::sort(rates.begin(), rates.end());
  return {rates.back(), rates[rates.size() / 2]};
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 5) {
    std::fprintf(stderr, "usage: propagation SECONDS ROWS WIDTH WIDTH ...\n");
    return 2;
  }
  const double duration = std::atof(arguments[1]);
  const int rows = std::atoi(arguments[2]);
  std::mt19937 random(0);
  std::vector<LayerSpec> layers;
  double weights = 0;
  for (int i = 4; i < count; ++i) {
    LayerSpec layer;
    layer.inputs = std::atoi(arguments[i - 1]);
    layer.outputs = std::atoi(arguments[i]);
    layer.activation = i + 1 < count ? Activation::sigmoid : Activation::identity;
    const size_t inputs = static_cast<size_t>(layer.inputs),
                 outputs = static_cast<size_t>(layer.outputs);
    std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(inputs)));
    layer.weight.resize(inputs * outputs);
    layer.bias.resize(outputs);
    for (float& w : layer.weight) w = normal(random);
    weights += static_cast<double>(inputs * outputs);
    layers.push_back(layer);
  }
  const Network network(layers);
  const IsaTable& isa = network.isa();

  const size_t n = static_cast<size_t>(rows),
               in = static_cast<size_t>(row_stride(network.inputs()));
  const size_t out = static_cast<size_t>(row_stride(network.classes()));
  const size_t scratch_floats = isa.scratch_bytes(network.packed(), rows) / sizeof(float);
  const AlignedFloats memory = allocate(scratch_floats + n * (2 * in + 2 * out));
  Scratch& scratch = *isa.carve_scratch(network.packed(), rows, memory.get());
  std::vector<const float*> x(n);
  std::vector<float*> logits(n), dlogits(n), dx(n);
  std::vector<int> which(n);
  float* next = memory.get() + scratch_floats;
  std::uniform_real_distribution<float> uniform(0, 1);
  for (size_t r = 0; r < n; ++r, next += 2 * in + 2 * out) {
    for (int i = 0; i < network.inputs(); ++i) next[i] = uniform(random);
    x[r] = next, dx[r] = next + in, logits[r] = dx[r] + in, dlogits[r] = logits[r] + out;
    dlogits[r][0] = 1, dlogits[r][1] = -1;
    which[r] = static_cast<int>(r);
  }
  const double flops = 2 * weights * rows;
  const auto forward = [&] {
    isa.forward(network.packed(), scratch, x.data(), rows, nullptr, nullptr, nullptr,
                logits.data());
    return flops;
  };
  const auto backward = [&] {
    isa.backward(network.packed(), scratch, which.data(), rows, dlogits.data(), dx.data());
    return flops;
  };
  const auto peak = [&] {
    const long turns = 20000;
#if defined(__x86_64__)
    if (std::strcmp(isa.name, "v4") == 0) return chains_v4(turns);
    if (std::strcmp(isa.name, "v3") == 0) return chains_v3(turns);
#endif
    return chains_base(turns);
  };
  const int repeats = std::max(1, static_cast<int>(1e8 / flops));  // about a millisecond
  const auto times = [&](auto work) {
    return [&, work] {
      double total = 0;
      for (int i = 0; i < repeats; ++i) total += work();
      return total;
    };
  };
  std::vector<double> rates[4];
  for (const double begin = seconds(); seconds() - begin < duration;) {
    rates[0].push_back(rate_once(peak));
    rates[1].push_back(rate_once(times(forward)));
    rates[2].push_back(rate_once(times(backward)));
    rates[3].push_back(rate_once(times([&] { return forward() + backward(); })));
  }
  std::printf("{\"isa\": \"%s\", \"rows\": %d", isa.name, rows);
  const char* const names[] = {"peak", "forward", "backward", "both"};
  for (int i = 0; i < 4; ++i) {
    const Rate rate = summary(rates[i]);
    std::printf(", \"%s\": [%.1f, %.1f]", names[i], rate.best, rate.median);
  }
  std::printf("}\n");
  return 0;
}

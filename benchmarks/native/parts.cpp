// Time of the parts of one round of the search, for one instruction set: microseconds an image, the
// smallest and the median of 400 repeats, in the thread's CPU time. n = 784, 5 pairs, 24 images one
// after the other, as in a tile, so that their vectors come from L2 and beyond.
//
//   parts_v4 (AVX-512), parts_v3 (AVX2)
#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <random>
#include <vector>

#include "cpu/lanes.h"
#include "workspace.h"

#include "solver/team.h"

#include "solver/solver.h"

using namespace advcore;
namespace isa = ADVCORE_NS;

namespace {

constexpr int kImages = 24, kLength = 784, kPairs = 5;

double seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// f(i): image i
template <class F>
void report(const char* name, F f) {
  std::vector<double> times;
  for (int repeat = 0; repeat < 400; ++repeat) {
    const double begin = seconds();
    for (size_t i = 0; i < kImages; ++i) f(i);
    times.push_back(1e6 * (seconds() - begin) / kImages);
  }
  std::sort(times.begin(), times.end());
  std::printf("%-28s %7.3f %7.3f\n", name, times.front(), times[times.size() / 2]);
}

using Team = isa::SerialTeam;
using Machine = isa::Machine<Team>;

// An image in the middle of a search on a quadratic: about half of its variables on a bound.
void begin_search(const Params& params, Problem& p, std::mt19937& random) {
  std::uniform_real_distribution<float> uniform(-0.5f, 0.5f);
  State& s = p.state;
  s.request.class_index = 3, s.phase = Phase::stage, s.request.want_gradient = true;
  s.request.T = 0.1f, s.search.c = s.search.first_c = s.search.last_c = 0.5f,
  s.search.target_margin = 0.01f;
  s.point.sigma = 0.5f, s.point.margin = -0.1f;
  for (int i = 0; i < params.n; ++i) {
    p.x0[i] = std::max(0.0f, 2 * uniform(random));
    p.x[i] = std::clamp(p.x0[i] + 0.1f * uniform(random), 0.0f, 1.0f);
    p.gradient[i] = 0.3f * uniform(random);
  }
  for (int pair = 0; pair <= kPairs; ++pair) {
    float ss = 0, sy = 0;
    for (int i = 0; i < params.n; ++i) {
      const float step = 0.1f * uniform(random), curvature = 1 + 0.5f * static_cast<float>(i % 7);
      p.trial[i] = p.x[i] + step;
      p.trial_gradient[i] = p.gradient[i] - curvature * (p.trial[i] - p.x[i]);
      ss += step * step, sy += s.point.sigma * curvature * step * step;
    }
    isa::push_pair(Team{}, params, p, s.pairs, p.x, p.gradient, s.point.sigma, p.trial,
                   p.trial_gradient, s.point.sigma, ss, sy);
  }
}

}  // namespace

int main() {
  Params params;
  params.n = kLength, params.stride = row_stride(kLength);
  params.classes = 10, params.history = kPairs;
  const size_t floats = slot_floats(params, false), length = static_cast<size_t>(params.stride);
  const AlignedFloats arena = allocate(floats * kImages), bounds = allocate(2 * length);
  std::fill_n(bounds.get() + length, kLength, 1.0f);
  std::vector<Problem> images(kImages);
  std::mt19937 random(0);
  for (size_t i = 0; i < kImages; ++i) {
    carve_slot(params, false, arena.get() + i * floats, images[i]);
    images[i].lo = bounds.get(), images[i].hi = bounds.get() + length;
    begin_search(params, images[i], random);
  }
  std::vector<State> states;
  for (const Problem& p : images) states.push_back(p.state);
  isa::Work work;

  std::printf("%-28s %7s %7s us an image\n", ADVCORE_ISA_NAME, "least", "median");
  report("move: products of a step", [&](size_t i) {
    const isa::Step step =
        Machine{Team{}, params, images[i], images[i].state, work}.step_products();
    asm volatile("" : : "r"(&step) : "memory");
  });
  report("push_pair", [&](size_t i) {
    Problem& p = images[i];
    isa::push_pair(Team{}, params, p, p.state.pairs, p.x, p.gradient, 0.5f, p.trial,
                   p.trial_gradient, 0.5f, 1, 1);
    p.state = states[i];
  });
  report("masked_gram of 12 vectors", [&](size_t i) {
    const Problem& p = images[i];
    const float* v[kMaxHistory * 2 + 2];
    for (int j = 0; j < kPairs; ++j) {
      v[j] = isa::ring_y(params, p, j);
      v[kPairs + j] = isa::ring_s(params, p, j);
    }
    v[2 * kPairs] = p.gradient, v[2 * kPairs + 1] = p.x;
    isa::masked_gram(Team{}, params.stride, p.trial, v, 2 * kPairs + 2, work.model.gram);
  });
  report("propose: all of a proposal", [&](size_t i) {
    images[i].state = states[i];
    Machine{Team{}, params, images[i], images[i].state, work}.propose();
  });
  report("  assemble", [&](size_t i) { isa::assemble(params, states[i].pairs, work.model); });
  report("  choose_c", [&](size_t i) {
    volatile float c = isa::choose_c(Team{}, states[i].search, work);
    static_cast<void>(c);
  });
  report("  solution for the c chosen", [&](size_t) {
    double* const K = reinterpret_cast<double*>(work.trials.K);
    const auto at = isa::solve_model<double>(work.model, 0.5, K, work.q);
    volatile double slope = isa::model_slope(work.model, at, work.q);
    static_cast<void>(slope);
  });
  report("head", [&](size_t i) {
    alignas(64) float logits[16], dlogits[16];
    for (int k = 0; k < 16; ++k) logits[k] = k < 10 ? 0.1f * static_cast<float>(k) : kPadLogit;
    isa::margin_loss(Team{}, params, images[i].state, logits, dlogits);
    asm volatile("" : : "r"(dlogits) : "memory");
  });
  return 0;
}

// The verbs in which the algorithm is written. A team works on one image; its lanes share the
// n variables. The serial team is one CPU thread that walks the lanes of its instruction set; a
// CUDA block implements the same verbs with one thread a lane (fork_team.h).
//
// Contract: n is the padded length (a multiple of kPad). A sum is taken in a fixed order: the
// result does not depend on the batch, the slot or the thread.
#pragma once

#include "problem.h"

namespace ADVCORE_NS {
namespace {

struct SerialTeam {
  static constexpr int kTile = kTileRows;

  // f(i): i is the first index of a lane group.
  template <class F>
  static void each(int n, F f) {
    for (int i = 0; i < n; i += kLanes) f(i);
  }

  // A row of the caller's memory, n floats without padding.
  static void copy_row(int n, const float* from, float* to) {
    __builtin_memcpy(to, from, sizeof(float) * (size_t)n);
  }

  // f(i, acc): add the terms of K sums to acc[0..K).
  template <int K, class F>
  static void sums(int n, float* out, F f) {
    Lane acc[K];
    ADVCORE_UNROLL
    for (int k = 0; k < K; ++k) acc[k] = Lane{};
    for (int i = 0; i < n; i += kLanes) f(i, acc);
    sum_lanes<K>(acc, out);
  }

  // f(i): on the trial values from i on, a vector at a time.
  template <class F>
  static void solve(F f) {
    for (int i = 0; i < kTrialCs; i += kTrialLanes) f(i);
  }

  // The smallest i < n for which f(i) holds, n if there is none.
  template <class F>
  static int first(int n, F f) {
    int i = 0;
    while (i < n && !f(i)) ++i;
    return i;
  }

  // f(i) -> Lane
  template <class F>
  static float maximum(int n, F f) {
    Lane best = broadcast(-3.0e38f);
    for (int i = 0; i < n; i += kLanes) best = max(best, f(i));
    return max_lanes(best);
  }
};

}  // namespace
}  // namespace ADVCORE_NS

// The team: the vector loops in which the algorithm is written, its verbs. A team works on one
// image; its lanes share the n variables. The serial team is one CPU thread that goes through the
// vectors of its instruction set; a CUDA block has the same verbs with one thread a lane
// (fork_team.h).
//
// n is the padded length, a multiple of kPad. A sum is taken in a fixed order, so that the result
// does not depend on the batch, the slot or the thread.
#pragma once

#include "problem.h"

namespace ADVCORE_NS {
namespace {

struct SerialTeam {
  // Rows and columns of a tile of a Gram matrix.
  static constexpr int kTile = kTileRows;

  // Calls f(i) with the first index of each vector.
  template <class F>
  static void each(int n, F f) {
    for (int i = 0; i < n; i += kLanes) f(i);
  }

  // Copies a row of the caller's memory, n floats without padding.
  static void copy_row(int n, const float* source, float* target) {
    __builtin_memcpy(target, source, sizeof(float) * (size_t)n);
  }

  // K sums, whose terms f(i, acc) adds to acc[0..K).
  template <int K, class F>
  static void sums(int n, float* out, F f) {
    Lane acc[K];
    ADVCORE_UNROLL
    for (int k = 0; k < K; ++k) acc[k] = Lane{};
    for (int i = 0; i < n; i += kLanes) f(i, acc);
    sum_lanes<K>(acc, out);
  }

  // Calls f(i) for the trial values of c from i on, a vector at a time.
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

  // The largest value of f(i) -> Lane.
  template <class F>
  static float maximum(int n, F f) {
    Lane best = broadcast(-3.0e38f);
    for (int i = 0; i < n; i += kLanes) best = max(best, f(i));
    return max_lanes(best);
  }
};

}  // namespace
}  // namespace ADVCORE_NS

// The team of many threads: one leader and its workers. The leader alone runs the algorithm, so its
// scalars belong to one thread, as in the serial team. A verb hands its function object to the
// workers, who share the indices in strides, and waits for them. The threads, of a CUDA block or of
// the host, are the Fabric:
//
//   call()                 the work of the workers, in memory that all see
//   fork(), join()         barriers of leader and workers, before and after the work
//   lane(), lanes()        number of the calling worker, from 0; how many there are
//   fold<K>(acc, op)       called by all workers: combines K values of each, in a fixed order
//   result(k, op)          called by the leader: the k-th combined value
//
// A function object travels as bytes, so it captures by value. It must not refer to the leader's
// stack, which no worker sees, nor to the problem: in a loop that stores, the compiler reads its
// pointers again every time. The function object of `solve` may refer to problem and machine.
#pragma once

#include "problem.h"

namespace ADVCORE_NS {
namespace {

// Bytes of a function object, at most.
constexpr int kMaxCapture = 272;
// Values that one fold combines, at most.
constexpr int kMaxFold = 36;

struct Add {
  ADVCORE_INLINE float operator()(float a, float b) const { return a + b; }
};
struct Larger {
  ADVCORE_INLINE float operator()(float a, float b) const { return max(a, b); }
};

template <class Fabric>
struct Call {
  void (*serve)(const Fabric& fabric);  // Null at the end.
  int n;
  alignas(16) unsigned char captured[kMaxCapture];
};

template <class F, class Fabric>
ADVCORE_INLINE const F& captured(const Fabric& fabric) {
  return reinterpret_cast<const F&>(fabric.call().captured);
}

template <class F, class Fabric>
ADVCORE_FN void serve_each(const Fabric& fabric) {
  const F& f = captured<F>(fabric);
  const int n = fabric.call().n;
  for (int i = fabric.lane(); i < n; i += fabric.lanes()) f(i);
}

template <int K, class F, class Fabric>
ADVCORE_FN void serve_sums(const Fabric& fabric) {
  const F& f = captured<F>(fabric);
  const int n = fabric.call().n;
  float acc[K] = {};
  for (int i = fabric.lane(); i < n; i += fabric.lanes()) f(i, acc);
  fabric.template fold<K>(acc, Add{});
}

template <class F, class Fabric>
ADVCORE_FN void serve_maximum(const Fabric& fabric) {
  const F& f = captured<F>(fabric);
  const int n = fabric.call().n;
  float best = -3.0e38f;
  for (int i = fabric.lane(); i < n; i += fabric.lanes()) best = max(best, f(i));
  fabric.template fold<1>(&best, Larger{});
}

template <class F, class Fabric>
ADVCORE_FN void serve_solve(const Fabric& fabric) {
  if (fabric.lane() < kTrialCs) captured<F>(fabric)(0);
}

// The loop of a worker, from the first verb to the last.
template <class Fabric>
ADVCORE_INLINE void serve_verbs(const Fabric& fabric) {
  for (;;) {
    fabric.fork();
    const auto serve = fabric.call().serve;
    if (serve) serve(fabric);
    fabric.join();
    if (!serve) return;
  }
}

template <class Fabric>
struct ForkTeam {
  // 36 sums and 12 rows are what 96 registers hold.
  static constexpr int kTile = 6;

  Fabric fabric;

  template <class F>
  ADVCORE_INLINE void each(int n, F f) const {
    run(serve_each<F, Fabric>, n, f);
  }
  template <int K, class F>
  ADVCORE_INLINE void sums(int n, float* out, F f) const {
    static_assert(K <= kMaxFold);
    run(serve_sums<K, F, Fabric>, n, f);
    for (int k = 0; k < K; ++k) out[k] = fabric.result(k, Add{});
  }
  template <class F>
  ADVCORE_INLINE float maximum(int n, F f) const {
    run(serve_maximum<F, Fabric>, n, f);
    return fabric.result(0, Larger{});
  }
  template <class F>
  ADVCORE_INLINE int first(int n, F f) const {  // n - i is exact up to 16 million.
    return n - (int)max(maximum(n, [=](int i) { return f(i) ? (float)(n - i) : 0.0f; }), 0.0f);
  }
  template <class F>
  ADVCORE_INLINE void solve(F f) const {
    run(serve_solve<F, Fabric>, kTrialCs, f);
  }
  ADVCORE_INLINE void copy_row(int n, const float* source, float* target) const {
    each(n, [=](int i) { target[i] = source[i]; });
  }
  // Ends the loops of the workers.
  ADVCORE_INLINE void end() const {
    fabric.call().serve = nullptr;
    fabric.fork();
    fabric.join();
  }

 private:
  template <class F>
  ADVCORE_INLINE void run(void (*serve)(const Fabric&), int n, const F& f) const {
    static_assert(sizeof(F) <= kMaxCapture && __is_trivially_copyable(F));
    Call<Fabric>& call = fabric.call();
    __builtin_memcpy(call.captured, &f, sizeof f);
    call.n = n;
    call.serve = serve;
    fabric.fork();
    fabric.join();
  }
};

}  // namespace
}  // namespace ADVCORE_NS

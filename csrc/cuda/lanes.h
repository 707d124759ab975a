// The lane type of a team of threads: one float a thread. As cpu/lanes.h, for any thread: a CUDA
// one, or one of the host in the tests.
#pragma once

namespace ADVCORE_NS {
namespace {

using Lane = float;
using Mask = int;
constexpr bool kMaskedSums = false;

// Rows are in the device's memory. Told so, the compiler loads without asking which memory it is,
// and keeps what it has read of the captured values across a store.
ADVCORE_INLINE void assume_row([[maybe_unused]] const float* p) {
#ifdef __CUDA_ARCH__
  __builtin_assume(__isGlobal(p));
#endif
}
ADVCORE_INLINE Lane load(const float* p, int i) {
  assume_row(p);
  return p[i];
}
ADVCORE_INLINE void store(float* p, int i, Lane v) {
  assume_row(p);
  p[i] = v;
}
ADVCORE_INLINE Lane broadcast(float v) { return v; }
ADVCORE_INLINE Lane select(Mask m, Lane a, Lane b) { return m ? a : b; }
ADVCORE_INLINE float min(float a, float b) { return a < b ? a : b; }
ADVCORE_INLINE float max(float a, float b) { return a > b ? a : b; }
ADVCORE_INLINE float abs(float a) { return __builtin_fabsf(a); }
ADVCORE_INLINE Lane exp(Lane x) { return __builtin_expf(x); }

// float64 values, one a worker; rows of them in memory that all see; and the worker's of an array.
constexpr int kTrialCs = 8;
using TrialC = double;

ADVCORE_INLINE int trial_index();  // of the calling worker

struct StoredTrialC {
  double value[kTrialCs];
  ADVCORE_INLINE double& operator[](int j) { return value[j]; }
};
struct TrialRow {
  StoredTrialC* row;
  ADVCORE_INLINE double& operator[](int i) const { return row[i].value[trial_index()]; }
  ADVCORE_INLINE double& operator*() const { return (*this)[0]; }
  ADVCORE_INLINE TrialRow operator+(int i) const { return {row + i}; }
};
ADVCORE_INLINE TrialRow trial_cs(StoredTrialC* row) { return {row}; }
ADVCORE_INLINE double& trial_cs(double* all, int) { return all[trial_index()]; }

}  // namespace
}  // namespace ADVCORE_NS

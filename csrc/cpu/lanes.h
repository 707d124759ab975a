// The lane type of one instruction set: `kLanes` floats that a core handles as one value.
//
// Compiled once per instruction set inside the namespace ADVCORE_NS (see isa.h). Everything has
// internal linkage and no standard header with functions is, so that no weak symbol built with wide
// instructions can replace one that an older CPU would run.
// Rows that lanes walk are padded to a multiple of kPad floats and aligned to 64 bytes.
#pragma once

#include <utility>  // index_sequence

namespace ADVCORE_NS {
namespace {

constexpr int kLanes = ADVCORE_LANES;  // 4 (baseline), 8 (AVX2), 16 (AVX-512)

using Lane = float __attribute__((vector_size(kLanes * 4)));
using Mask = int __attribute__((vector_size(kLanes * 4)));  // 0 or -1, what a comparison gives

// Whether a sum is masked at no cost (AVX-512).
constexpr bool kMaskedSums = kLanes == 16;
// The rows of a block of sums that the registers hold.
#if defined(__aarch64__)
constexpr int kTileRows = 4;
#else
constexpr int kTileRows = kLanes == 16 ? 4 : 3;  // Of 32 and 16 registers.
#endif

inline Lane load(const float* p, int i) { return *reinterpret_cast<const Lane*>(p + i); }
inline void store(float* p, int i, Lane v) { *reinterpret_cast<Lane*>(p + i) = v; }

// At any address; of the last, `count` lanes.
using Loose = float __attribute__((vector_size(kLanes * 4), aligned(4)));
inline Lane load_any(const float* p) { return *reinterpret_cast<const Loose*>(p); }
inline void store_any(float* p, Lane v, int count) {
  if (count >= kLanes)
    *reinterpret_cast<Loose*>(p) = v;
  else
    for (int i = 0; i < count; ++i) p[i] = v[i];
}

inline Lane broadcast(float v) { return v - Lane{}; }  // v + 0 would turn -0 into 0.
inline Lane select(Mask m, Lane a, Lane b) { return m ? a : b; }
inline Lane min(Lane a, Lane b) { return a < b ? a : b; }
inline Lane max(Lane a, Lane b) { return a > b ? a : b; }
inline Lane abs(Lane a) { return (Lane)((Mask)a & 0x7fffffff); }

// Trial values of c, for which small systems are solved together in float64.
constexpr int kTrialCs = 8;
// Trial values handled as one vector; all eight at once took three times as long on AVX2.
constexpr int kTrialLanes = kLanes / 2;
// A vector of trial values; rows of them in memory; and a group of the values of an array.
using TrialC = double __attribute__((vector_size(kTrialLanes * 8)));
using StoredTrialC = TrialC;
inline TrialC* trial_cs(StoredTrialC* row) { return row; }
inline TrialC& trial_cs(double* all, int i) { return *reinterpret_cast<TrialC*>(all + i); }

inline float min(float a, float b) { return a < b ? a : b; }
inline float max(float a, float b) { return a > b ? a : b; }
inline float abs(float a) { return a < 0 ? -a : a; }

// Each group of 2 W lanes of a, then each of b: its lower (upper: 0 or 1) half.
template <int W, int upper, size_t... i>
inline Lane halves(Lane a, Lane b, std::index_sequence<i...>) {
  return __builtin_shufflevector(a, b, (int)(i / W * 2 * W + upper * W + i % W)...);
}
template <int W, int upper>
inline Lane halves(Lane a, Lane b) {
  return halves<W, upper>(a, b, std::make_index_sequence<kLanes>());
}

// Folds the halves of K vectors onto each other, two vectors into one, until every sum has one
// lane. The order of the additions does not depend on K.
template <int K, int W = kLanes / 2>
inline Lane fold_lanes(const Lane* v) {
  constexpr int pairs = (K + 1) / 2;
  Lane folded[pairs];
#pragma GCC unroll 16
  for (int i = 0; i < pairs; ++i) {
    const Lane a = v[2 * i], b = v[2 * i + 1 < K ? 2 * i + 1 : 2 * i];
    folded[i] = halves<W, 0>(a, b) + halves<W, 1>(a, b);
  }
  if constexpr (W > 1)
    return fold_lanes<pairs, W / 2>(folded);
  else
    return folded[0];
}

// out[k] = sum of the lanes of v[k]. 45 instructions for 16 sums of 16 lanes, one by one 320.
template <int K>
inline void sum_lanes(const Lane* v, float* out) {
  constexpr int first = K < kLanes ? K : kLanes;
  const Lane sums = fold_lanes<first>(v);
  __builtin_memcpy(out, &sums, first * sizeof(float));
  if constexpr (K > kLanes) sum_lanes<K - kLanes>(v + kLanes, out + kLanes);
}
inline float max_lanes(Lane v) {
  float f[kLanes];
  __builtin_memcpy(f, &v, sizeof f);
  for (int w = kLanes / 2; w > 0; w /= 2)
    for (int i = 0; i < w; ++i) f[i] = max(f[i], f[i + w]);
  return f[0];
}

// exp(x) to 2 ulp: x = k ln2 + f, |f| <= ln2/2, degree-6 polynomial, scaled by 2^k. Arguments are
// clamped to [-87, 88]; exp(-inf) gives exp(-87) = 1.6e-38, which every sum here ignores.
inline Lane exp(Lane x) {
  x = min(max(x, broadcast(-87.0f)), broadcast(88.0f));
  const Lane shifter = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Lane k = (x * 1.44269504f + shifter) - shifter;
  const Lane f = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  Lane p = broadcast(1.9875691500e-4f);
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  const Mask e = (__builtin_convertvector(k, Mask) + 127) << 23;
  return p * (Lane)e;
}

// log(1 + t) for t in [0, 1], to 2e-7: 2 atanh(t / (2 + t)) as an odd series.
inline Lane log1p01(Lane t) {
  const Lane s = t / (2.0f + t), q = s * s;
  Lane p = broadcast(2.0f / 13);
  p = p * q + 2.0f / 11;
  p = p * q + 2.0f / 9;
  p = p * q + 2.0f / 7;
  p = p * q + 2.0f / 5;
  p = p * q + 2.0f / 3;
  p = p * q + 2.0f;
  return p * s;
}

// log(x) for normal x >= 1, to 2e-7 of 1 + log(x).
inline Lane log(Lane x) {
  const Mask bits = (Mask)x, e = (bits >> 23) - 127;
  const Lane f = (Lane)((bits & 0x7fffff) | 0x3f800000);  // x = 2^e f, f in [1, 2)
  return __builtin_convertvector(e, Lane) * 0.693147181f + log1p01(f - 1.0f);
}

}  // namespace
}  // namespace ADVCORE_NS

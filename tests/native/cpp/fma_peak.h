// The multiply-add peak of an instruction set on this core, in GFLOP/s.
#pragma once

#include <algorithm>
#include <chrono>

#include "cpu/isa.h"

// Independent chains in registers; base multiplies and adds.
#define ADVCORE_PEAK(NAME, TARGET, LANES, CHAINS)                                             \
  TARGET inline double NAME() {                                                               \
    using Lane = float __attribute__((vector_size(LANES * 4)));                               \
    Lane acc[CHAINS] = {}, factor = Lane{} + 0.999f, term = Lane{} + 0.001f;                  \
    asm volatile("" : "+m"(factor), "+m"(term));                                              \
    const Lane f = factor, t = term;                                                          \
    double best = 0;                                                                          \
    for (int repeat = 0; repeat < 50; ++repeat) {                                             \
      const auto start = std::chrono::steady_clock::now();                                    \
      for (int i = 0; i < 100000; ++i)                                                        \
        _Pragma("GCC unroll 32") for (int c = 0; c < CHAINS; ++c) acc[c] = acc[c] * f + t;    \
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start; \
      best = std::max(best, 2.0 * LANES * CHAINS * 100000 / seconds.count() / 1e9);           \
      asm volatile("" : : "m"(acc) : "memory");                                               \
    }                                                                                         \
    return best;                                                                              \
  }
ADVCORE_PEAK(peak_base, , 4, 12)
#if defined(__x86_64__)
ADVCORE_PEAK(peak_v3, __attribute__((target("avx2,fma"))), 8, 12)
ADVCORE_PEAK(peak_v4, __attribute__((target("avx512f"))), 16, 24)
#endif

inline double peak(const advcore::IsaTable& isa) {
#if defined(__x86_64__)
  if (isa.lanes == 8) return peak_v3();
  if (isa.lanes == 16) return peak_v4();
#endif
  (void)isa;
  return peak_base();
}

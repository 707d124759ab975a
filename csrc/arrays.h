// Passes over all images of a call, (count, n) float32, on several threads.
#pragma once

#include <cstdint>

namespace advcore {

// L2 distance of each row, (count). Differences are rounded to float32, but where they overflow;
// squares and sums are in double. A row's distance depends on that row alone.
void distances(const float* x, const float* clean, int64_t count, int64_t n, int threads,
               double* out);

struct ValueRange {
  float low, high;  // infinity and -infinity where there are no values
  bool finite;      // whether no value is NaN or infinite
};
ValueRange value_range(const float* x, int64_t count, int threads);

}  // namespace advcore

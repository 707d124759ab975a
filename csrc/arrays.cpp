#include "arrays.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <limits>
#include <mutex>

#include "threads.h"

namespace advcore {
namespace {

constexpr int kLanes = 16;  // sums of their own, which the compiler makes vectors of
constexpr int64_t kPart = int64_t{1} << 18;  // values that a thread takes at once

template <class Difference>
double squares(const float* x, const float* clean, int64_t n, Difference difference) {
  double sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) {
      const double r = difference(x[i + lane], clean[i + lane]);
      sums[lane] += r * r;
    }
  for (int lane = 0; i < n; ++i, ++lane) {
    const double r = difference(x[i], clean[i]);
    sums[lane] += r * r;
  }
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

double squared_distance(const float* x, const float* clean, int64_t n) {
  const double total = squares(x, clean, n, [](float a, float b) -> double { return a - b; });
  if (std::isfinite(total)) return total;
  return squares(x, clean, n,
                 [](float a, float b) { return static_cast<double>(a) - static_cast<double>(b); });
}

// Four floats at any address.
using Lane = float __attribute__((vector_size(16)));
using Loose = float __attribute__((vector_size(16), aligned(4)));
constexpr int kVectors = 4;  // that are at work beside one another

ValueRange range_of(const float* x, int64_t count) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr int step = 4 * kVectors;
  Lane low[kVectors], high[kVectors], zero[kVectors] = {};
  std::fill_n(low, kVectors, Lane{} + kInfinity);
  std::fill_n(high, kVectors, Lane{} - kInfinity);
  const auto take = [&](const float* at) {
    for (int k = 0; k < kVectors; ++k) {
      const Lane v = *reinterpret_cast<const Loose*>(at + 4 * k);
      low[k] = v < low[k] ? v : low[k];
      high[k] = v > high[k] ? v : high[k];
      zero[k] += v - v;  // NaN from the first value on that is not finite
    }
  };
  int64_t i = 0;
  for (; i + step <= count; i += step) take(x + i);
  if (i < count) {
    float rest[step];
    std::fill_n(std::copy(x + i, x + count, rest), step - (count - i), x[i]);
    take(rest);
  }
  ValueRange range{kInfinity, -kInfinity, true};
  for (int k = 0; k < kVectors; ++k)
    for (int lane = 0; lane < 4; ++lane) {
      range.low = std::min(range.low, low[k][lane]);
      range.high = std::max(range.high, high[k][lane]);
      range.finite = range.finite && zero[k][lane] == 0;
    }
  return range;
}

// Calls part(begin, end) for all parts of (count), on several threads.
template <class Part>
void in_parts(int64_t count, int64_t size, int threads, const Part& part) {
  const int64_t parts = (count + size - 1) / size;
  std::atomic<int64_t> next = 0;
  on_threads(static_cast<int>(std::min<int64_t>(threads, parts)), [&] {
    for (int64_t i; (i = next.fetch_add(1)) < parts;)
      part(i * size, std::min(count, (i + 1) * size));
  });
}

}  // namespace

void distances(const float* x, const float* clean, int64_t count, int64_t n, int threads,
               double* out) {
  const int64_t rows = std::max<int64_t>(1, kPart / std::max<int64_t>(n, 1));
  in_parts(count, rows, threads, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      out[row] = std::sqrt(squared_distance(x + row * n, clean + row * n, n));
  });
}

ValueRange value_range(const float* x, int64_t count, int threads) {
  ValueRange all = range_of(x, 0);
  std::mutex mutex;
  in_parts(count, kPart, threads, [&](int64_t begin, int64_t end) {
    const ValueRange part = range_of(x + begin, end - begin);
    const std::lock_guard lock(mutex);
    all = {std::min(all.low, part.low), std::max(all.high, part.high), all.finite && part.finite};
  });
  return all;
}

}  // namespace advcore

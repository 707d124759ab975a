#include "cuda/slot_pool.h"

namespace advcore {

CudaArena cuda_arena(const Params& params, bool own_bounds, int slots, int64_t images) {
  const size_t count = static_cast<size_t>(slots), length = static_cast<size_t>(params.stride);
  CudaArena at{};
  const auto take = [&at](size_t bytes) {
    const size_t start = at.bytes;
    at.bytes += (bytes + 255) / 256 * 256;
    return start;
  };
  at.problems = take(count * sizeof(Problem));
  at.rows = take(count * sizeof(int));
  at.done = take(2 * count);
  at.bounds = take(2 * length * sizeof(float));
  at.vectors =
      take(count * sizeof(float) *
           (slot_floats(params, own_bounds) + static_cast<size_t>(params.starts) * length));
  at.loss_rows = take(count * sizeof(float) * 2 * static_cast<size_t>(padded(params.classes)));
  at.queue_state = take(256);
  at.cleared = at.bytes;
  const size_t waiting = static_cast<size_t>(images);
  const size_t rows = waiting * sizeof(float) * static_cast<size_t>(params.n);
  at.images = take(rows);
  at.lo = take(own_bounds ? rows : 0);
  at.hi = take(own_bounds ? rows : 0);
  at.starts = take(rows * static_cast<size_t>(params.starts));
  at.labels = take(waiting * sizeof(int));
  at.adversarial = take(rows);
  at.outcomes = take(waiting * sizeof(Outcome));
  return at;
}

}  // namespace advcore

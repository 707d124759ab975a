#include "cuda/kernels.h"

namespace advcore::cuda {

static_assert(kThreads == kMaxThreads);

const Kernels& kernels() {
  static const Kernels all{begin_kernel, gather_kernel, margin_loss_kernel, advance_kernel,
                           collect_kernel};
  return all;
}

// The part of the shared memory that a run with this history uses.
size_t shared_bytes(const Params& params) {
  const int m = params.history, unused = kPacked - m * (2 * m + 1);
  return sizeof(Shared) - static_cast<size_t>(unused) * sizeof(StoredTrialC);
}

}  // namespace advcore::cuda

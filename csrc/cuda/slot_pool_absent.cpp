// The interface of a build without CUDA.
#include <stdexcept>

#include "cuda/slot_pool.h"

namespace advcore {

struct CudaSlotPool::Device {};

CudaStatus cuda_status() {
  return {false, 0,
          "this build of advcore has no CUDA: no CUDA compiler was found when it was made"};
}

CudaProbe cuda_probe(int) { return {0, cuda_status().reason}; }

CudaSlotPool::CudaSlotPool(const Params& params, const Job& job, WorkQueue& work, int slots, int,
                           void*, void*)
    : params_(params), job_(job), work_(work), slots_(slots) {
  throw std::runtime_error(cuda_status().reason);
}
CudaSlotPool::~CudaSlotPool() = default;
int CudaSlotPool::refill() { return 0; }
bool CudaSlotPool::waits_next() const { return false; }
void CudaSlotPool::abandon() {}
void CudaSlotPool::gather(float*, float*) {}
void CudaSlotPool::margin_losses(const float*, float*) {}
void CudaSlotPool::advance(const float*) {}
void CudaSlotPool::interrupt() {}

}  // namespace advcore

// The interface of a build without CUDA.
#include <stdexcept>

#include "cuda/queue.h"

namespace advcore {

struct CudaTile::Device {};

CudaStatus cuda_status() {
  return {false, 0,
          "this build of advcore has no CUDA: no CUDA compiler was found when it was made"};
}

CudaTile::CudaTile(const Params& params, const Job& job, Feed& feed, int slots, int, void*, void*)
    : params_(params), job_(job), feed_(feed), slots_(slots) {
  throw std::runtime_error(cuda_status().reason);
}
CudaTile::~CudaTile() = default;
int CudaTile::fill() { return 0; }
void CudaTile::gather(float*, float*) {}
void CudaTile::heads(const float*, float*) {}
void CudaTile::advance(const float*) {}
void CudaTile::interrupt() {}

struct CudaQueue::Loop {};

CudaQueue::CudaQueue(const Params& params, const Job& job, Feed& feed, int, int64_t, int, void*,
                     void*)
    : params_(params), job_(job), feed_(feed) {
  throw std::runtime_error(cuda_status().reason);
}
CudaQueue::~CudaQueue() = default;
SlotRows CudaQueue::slot_rows() const { return {}; }
const int* CudaQueue::rows() const { return nullptr; }
const int* CudaQueue::count() const { return nullptr; }
void CudaQueue::add(ForeignKernel) {}
bool CudaQueue::wait(double) { return true; }
void CudaQueue::stop() {}
int64_t CudaQueue::finished() const { return 0; }
int64_t CudaQueue::succeeded() const { return 0; }
int64_t CudaQueue::evaluations() const { return 0; }
int64_t CudaQueue::rounds() const { return 0; }
double CudaQueue::seconds() const { return 0; }
bool CudaQueue::looping() const { return false; }

}  // namespace advcore

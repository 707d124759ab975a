// The interface of a build without CUDA, or with one that is too old for it.
#include <stdexcept>

#include "cuda/queue.h"

namespace advcore {

std::string cuda_queue_missing() {
  const CudaStatus status = cuda_status();
  return status.built ? "this build of advcore was made with a CUDA older than 12.8"
                      : status.reason;
}

struct CudaQueue::Device {};

CudaQueue::CudaQueue(const Params& params, const Job& job, WorkQueue& work, int, int64_t, int,
                     void*, void*, size_t)
    : params_(params), job_(job), work_(work) {
  throw std::runtime_error(cuda_queue_missing());
}
CudaQueue::~CudaQueue() = default;
SlotRows CudaQueue::slot_rows() const { return {}; }
const int* CudaQueue::rows() const { return nullptr; }
const int* CudaQueue::count() const { return nullptr; }
void CudaQueue::add(ForeignKernel) {}
bool CudaQueue::wait(double) { return true; }
void CudaQueue::stop() {}
void CudaQueue::close() {}
void CudaQueue::abandon() {}
Counts CudaQueue::counts() const { return {}; }
int64_t CudaQueue::rounds() const { return 0; }
double CudaQueue::seconds() const { return 0; }
int CudaQueue::fillings() const { return 0; }

}  // namespace advcore

#include "cuda/slot_pool.h"

#include <algorithm>

#include "cuda/device.h"

namespace advcore {
namespace {

constexpr size_t kStagedBytes = size_t{32} << 20;  // pinned memory for images that come and go

}  // namespace

struct CudaSlotPool::Device : cuda::Device {
  using cuda::Device::Device;

  cuda::Staged staged{};
  int staged_rows = 0;
  cuda::Pinned<float> vectors;
  cuda::Pinned<int> labels, slot_list;
  cuda::Pinned<uint8_t> flags;
  cuda::Pinned<Problem> problems;

  // Names the slots of the next launches. The stream is waited for before the next call, which
  // changes the host's copy.
  void list_rows(const int* rows, int count) {
    std::copy_n(rows, count, slot_list.data);
    expect(cudaMemcpyAsync(list, slot_list.data, sizeof(int) * static_cast<size_t>(count),
                           cudaMemcpyHostToDevice, stream),
           "list of rows");
  }
};

CudaSlotPool::CudaSlotPool(const Params& params, const Job& job, WorkQueue& work, int slots,
                           int device, void* arena, void* stream)
    : params_(params),
      job_(job),
      work_(work),
      slots_(slots),
      device_(std::make_unique<Device>(params, job, cuda_arena(params, job.own_bounds, slots),
                                       slots, device, arena, stream)),
      index_(static_cast<size_t>(slots), -1),
      admitted_(static_cast<size_t>(slots), -1) {
  Device& d = *device_;
  const size_t count = static_cast<size_t>(slots), n = static_cast<size_t>(params.n);
  const size_t stride =
      n * (1 + 2 * static_cast<size_t>(job.own_bounds) + static_cast<size_t>(params.starts));
  d.staged_rows = static_cast<int>(std::clamp<size_t>(kStagedBytes / (4 * stride), 1, count));
  const size_t rows = static_cast<size_t>(d.staged_rows);
  d.vectors.allocate(rows * stride);
  d.labels.allocate(rows);
  d.problems.allocate(rows);
  d.slot_list.allocate(count);
  d.flags.allocate(2 * count);
  d.staged = {d.vectors.data, stride, d.labels.data, d.problems.data, job.own_bounds};
}

CudaSlotPool::~CudaSlotPool() = default;

bool CudaSlotPool::waits_next() const { return (round_ + 1) % kPollRounds == 0 || rows_.empty(); }

int CudaSlotPool::refill() {
  const bool waits = waits_next();
  ++round_;
  fresh_ = false;
  if (!waits) return static_cast<int>(rows_.size());
  device_->select();
  retire(false);
  admit();
  fresh_ = true;
  rows_.clear();
  smoothed_ = false;
  // The second evaluation of an image is on the first network of its search.
  const bool begins_smoothed = params_.schedule[0].smoothing[0] > 0;
  for (int slot = 0; slot < slots_; ++slot) {
    if (index_[static_cast<size_t>(slot)] < 0) continue;
    rows_.push_back(slot);
    smoothed_ = smoothed_ || (is_new(slot) ? begins_smoothed : device_->flags.data[slots_ + slot]);
  }
  device_->run.exact = !smoothed_;
  device_->wait("filling the slots");
  device_->list_rows(rows_.data(), static_cast<int>(rows_.size()));
  return static_cast<int>(rows_.size());
}

// Writes the results of the finished images and frees their slots; all: of the others too, as
// interrupted.
void CudaSlotPool::retire(bool all) {
  Device& d = *device_;
  d.expect(cudaMemcpyAsync(d.flags.data, d.run.done, 2 * static_cast<size_t>(slots_),
                           cudaMemcpyDeviceToHost, d.stream),
           "flags of the finished images");
  d.wait("a round");
  std::vector<int> ready;
  for (int slot = 0; slot < slots_; ++slot)
    if (index_[static_cast<size_t>(slot)] >= 0 && (all || d.flags.data[slot]))
      ready.push_back(slot);
  for (size_t first = 0; first < ready.size(); first += static_cast<size_t>(d.staged_rows)) {
    const int count = static_cast<int>(
        std::min<size_t>(ready.size() - first, static_cast<size_t>(d.staged_rows)));
    d.list_rows(ready.data() + first, count);
    d.launch("collect", cuda::kernels().collect, count, 0, d.run, d.staged);
    d.wait("collecting results");
    for (int row = 0; row < count; ++row) {
      const size_t slot = static_cast<size_t>(ready[first + static_cast<size_t>(row)]);
      State& state = d.problems.data[row].state;
      if (state.phase != Phase::done) state.status = Status::interrupted;
      write_result(params_, job_, work_, index_[slot], outcome_of(state),
                   d.staged.vectors + static_cast<size_t>(row) * d.staged.stride);
      index_[slot] = -1;
    }
  }
}

void CudaSlotPool::admit() {
  Device& d = *device_;
  const size_t n = static_cast<size_t>(params_.n);
  const size_t starts = n * static_cast<size_t>(params_.starts);
  int slot = 0;
  while (slot < slots_ && !work_.stop && work_.next < job_.count) {
    std::vector<int> admitted;
    for (; slot < slots_ && static_cast<int>(admitted.size()) < d.staged_rows; ++slot) {
      if (index_[static_cast<size_t>(slot)] >= 0) continue;
      const int64_t index = work_.next.fetch_add(1);
      if (index >= job_.count) break;
      const size_t image = static_cast<size_t>(index);
      float* target = d.vectors.data + admitted.size() * d.staged.stride;
      target = std::copy_n(job_.images + image * n, n, target);
      if (job_.own_bounds) {
        target = std::copy_n(job_.lo + image * n, n, target);
        target = std::copy_n(job_.hi + image * n, n, target);
      }
      if (starts > 0) std::copy_n(job_.starts + image * starts, starts, target);
      d.labels.data[admitted.size()] = job_.labels[index];
      index_[static_cast<size_t>(slot)] = index;
      admitted_[static_cast<size_t>(slot)] = round_;
      admitted.push_back(slot);
    }
    if (admitted.empty()) return;
    const int count = static_cast<int>(admitted.size());
    d.list_rows(admitted.data(), count);
    d.launch("begin", cuda::kernels().begin, count, cuda::shared_bytes(params_), d.run, d.staged);
    d.wait("beginning images");
  }
}

void CudaSlotPool::gather(float* x, float* k) {
  device_->select();
  device_->launch("gather", cuda::kernels().gather, static_cast<int>(rows_.size()), 0, device_->run,
                  x, k);
}

void CudaSlotPool::margin_losses(const float* logits, float* dlogits) {
  device_->select();
  device_->launch("margin_loss", cuda::kernels().margin_loss, static_cast<int>(rows_.size()),
                  cuda::shared_bytes(params_), device_->run, logits, dlogits);
}

void CudaSlotPool::advance(const float* gradients) {
  device_->select();
  device_->launch("advance", cuda::kernels().advance, static_cast<int>(rows_.size()),
                  cuda::shared_bytes(params_), device_->run, gradients);
}

void CudaSlotPool::abandon() { static_cast<void>(device_.release()); }

void CudaSlotPool::interrupt() {
  if (device_->failed) return;  // a failed context answers nothing
  device_->select();
  retire(true);
}

}  // namespace advcore

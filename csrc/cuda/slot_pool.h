// The solver on a GPU: a SlotPool whose slots are in device memory. Rounds are queued on the
// caller's stream; the host looks at them every kPollRounds. Without CUDA in the build
// (slot_pool_absent.cpp) or a device, CudaSlotPool throws and cuda_status() says why.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "engine.h"

namespace advcore {

constexpr int kPollRounds = 4;  // a finished image waits 1.5 rounds on average, of about 50

struct CudaStatus {
  bool built = false;
  int devices = 0;
  std::string reason;  // why there is no device
};
CudaStatus cuda_status();

struct CudaProbe {
  int driver = 0;       // version that the driver supports, 12080 for 12.8
  std::string missing;  // why the solver cannot run on the device; empty: it has code for it
};
CudaProbe cuda_probe(int device);

// Device memory of a run, one arena: where each part begins, in bytes from its start. What lies
// behind `cleared` is there for a CudaQueue whose device holds `images` at a time.
struct CudaArena {
  size_t problems, rows, done, bounds, vectors, loss_rows, queue_state, cleared;
  size_t images, lo, hi, starts, labels, adversarial, outcomes, bytes;
};
CudaArena cuda_arena(const Params& params, bool own_bounds, int slots, int64_t images = 0);

// Every call throws std::runtime_error with the CUDA error's text; results written before stay.
class CudaSlotPool {
 public:
  // arena: cuda_arena().bytes of memory of that device, aligned to 256 bytes. Arrays of the job are
  // the host's.
  CudaSlotPool(const Params& params, const Job& job, WorkQueue& work, int slots, int device,
               void* arena, void* stream);
  ~CudaSlotPool();
  CudaSlotPool(const CudaSlotPool&) = delete;
  CudaSlotPool& operator=(const CudaSlotPool&) = delete;

  // Rows of this round, 0 at the end. Every kPollRounds it retires the finished images, admits
  // waiting ones and leaves empty slots out. `fresh`: rows() may have changed.
  int refill();
  // Whether the next refill waits for the device.
  bool waits_next() const;
  bool fresh() const { return fresh_; }
  // Whether rows are evaluated on their smoothed networks until rows() changes. Otherwise all are
  // on the exact one: a row that comes to ask for another is evaluated in vain, and waits until
  // then.
  bool smoothed() const { return smoothed_; }
  const std::vector<int>& rows() const { return rows_; }  // the slots
  // Whether the slot's image was admitted in this round.
  bool is_new(int slot) const { return admitted_[static_cast<size_t>(slot)] == round_; }

  // Device arrays: trial points x (rows, n) and k (rows); logits (rows, K) to dlogits (rows, K),
  // zero where no gradient is wanted; gradients (rows, n).
  void gather(float* x, float* k);
  void margin_losses(const float* logits, float* dlogits);
  void advance(const float* gradients);

  void interrupt();  // writes what the unfinished images have, as interrupted
  // The device does not answer: from here on nothing waits for it, the memory of the run is not
  // freed, and only the destructor may be called.
  void abandon();

 private:
  struct Device;  // what only the CUDA compiler knows
  void retire(bool all);
  void admit();

  const Params params_;
  const Job job_;
  WorkQueue& work_;
  const int slots_;
  std::unique_ptr<Device> device_;
  std::vector<int64_t> index_;     // of the image in a slot; -1: none
  std::vector<int64_t> admitted_;  // the round in which it came
  std::vector<int> rows_;
  int64_t round_ = -1;
  bool fresh_ = false, smoothed_ = false;
};

}  // namespace advcore

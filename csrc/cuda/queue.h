// A whole run on a GPU without Python: the host launches graphs of rounds until no image is left,
// one graph ahead of the device. A round is the kernels of a native network, which the caller
// brings as machine code (add), then `advance`, then `refill` (refill.h), which retires finished
// images and admits waiting ones.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "cuda/slot_pool.h"

namespace advcore {

// One launch of a kernel that is not the engine's, for the rows of a round.
struct ForeignKernel {
  std::string code;  // cubin
  std::string name;  // of the entry in it
  std::array<unsigned, 3> grid;
  unsigned threads, shared;            // shared: bytes, dynamic
  std::vector<std::string> arguments;  // the bytes of each parameter
};

// Why this build has no queue; empty: it has.
std::string cuda_queue_missing();

// Every call throws std::runtime_error with the CUDA error's text; results written before stay.
class CudaQueue {
 public:
  // arena: cuda_arena(..., images).bytes of memory of that device, aligned to 256 bytes. The device
  // holds `images` of the job at a time; they are copied in pieces beside the rounds. Arrays of the
  // job are the host's.
  CudaQueue(const Params& params, const Job& job, WorkQueue& work, int slots, int64_t images,
            int device, void* arena, void* stream, size_t piece_bytes = size_t{16} << 20);
  ~CudaQueue();
  CudaQueue(const CudaQueue&) = delete;
  CudaQueue& operator=(const CudaQueue&) = delete;

  // What the kernels of a round read: problems[rows[i]] for i < *count, all on the device.
  SlotRows slot_rows() const;
  const int* rows() const;
  const int* count() const;

  // Kernels of a round in their order, before the first wait. They evaluate the rows: logits,
  // margin loss (Evaluation and T in the problem's state), gradient in the slot where one is
  // wanted.
  void add(ForeignKernel kernel);

  // Goes on for about so many seconds; whether all results are written. The first call begins.
  bool wait(double seconds);
  void stop();  // after the round; wait then writes the unfinished images as interrupted

  // Waits until nothing of this run is at work, whatever failed before; its memory may go then. The
  // destructor does it too.
  void close();
  // The device does not answer: the images that are not delivered are clean, and from here on
  // nothing waits for the device. The memory of the run is not freed.
  void abandon();

  // All of these are of the whole run, as far as the host knows.
  Counts counts() const;
  int64_t rounds() const;
  double seconds() const;  // time of the rounds, without the transfer of images and results
  int fillings() const;    // times that the device was filled with images

 private:
  struct Device;  // what only the CUDA compiler knows
  const Params params_;
  const Job job_;
  WorkQueue& work_;
  std::unique_ptr<Device> device_;
  bool closed_ = false, abandoned_ = false;
};

}  // namespace advcore

// The slots of a run in the memory of a GPU and launches for them; shared by slot_pool.cu, whose
// rounds the host evaluates, and queue.cu, whose rounds stay on the GPU.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/slot_pool.h"

namespace advcore::cuda {

// A kernel's parameter in constant memory, the same address for every thread.
struct Run {
  Params params;
  Problem* problems;  // (slots)
  const int* rows;    // slots of this launch
  const int* count;   // how many of them; null: a block each
  uint8_t* done;      // (slots)
  uint8_t* smoothed;  // (slots), behind done: whether it asks for a smoothed network
  float* loss_rows;   // (slots, 2, padded classes): logits, dlogits
  bool exact;         // This round is on the exact network: slots that ask for another wait.
};

// Arrays of images that come or go, in pinned memory of the host.
struct Staged {
  float* vectors;  // (rows, stride): image, own bounds, starts; or the best image
  size_t stride;
  const int* labels;  // (rows)
  Problem* problems;  // (rows)
  bool own_bounds;
};

constexpr int kThreads = 128;  // of a block

// The kernels of kernels.h, which are compiled once. Gradients of null are in the slots already.
struct Kernels {
  void (*begin)(Run, Staged);
  void (*gather)(Run, float* x, float* k);
  void (*margin_loss)(Run, const float* logits, float* dlogits);
  void (*advance)(Run, const float* gradients);
  void (*collect)(Run, Staged);
};
const Kernels& kernels();
size_t shared_bytes(const Params& params);  // of begin, margin_loss and advance

inline void check(cudaError_t code, const std::string& what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error("CUDA: " + what + ": " + cudaGetErrorString(code) + " (" +
                           std::to_string(static_cast<int>(code)) + ")");
}

// Why the current device cannot run the kernels; empty: it can.
std::string code_missing(int device);

// A device is this thread's current one, and the former is again when the owner ends: torch's
// current device is that of the thread too.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    if (cudaGetDevice(&before_) != cudaSuccess) before_ = device;
    check(cudaSetDevice(device), "selecting the device");
  }
  ~CurrentDevice() { cudaSetDevice(before_); }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
};

// An integer that the host, the device or a copy may write meanwhile. On the host what was written
// before it is seen by who reads it; on the device that takes a fence.
template <class T>
ADVCORE_BOTH T read_shared(const T* at) {
#ifdef __CUDA_ARCH__
  return *static_cast<const volatile T*>(at);
#else
  return __atomic_load_n(at, __ATOMIC_ACQUIRE);
#endif
}
template <class T>
ADVCORE_BOTH void write_shared(T* at, T value) {
#ifdef __CUDA_ARCH__
  *static_cast<volatile T*>(at) = value;
#else
  __atomic_store_n(at, value, __ATOMIC_RELEASE);
#endif
}

template <class T>
struct Pinned {
  Pinned() = default;
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  ~Pinned() { cudaFreeHost(data); }
  void allocate(size_t count, unsigned flags = cudaHostAllocDefault) {
    const size_t bytes = std::max<size_t>(count, 1) * sizeof(T);
    check(cudaHostAlloc(reinterpret_cast<void**>(&data), bytes, flags),
          std::to_string(bytes) + " bytes of pinned memory");
  }
  T* data = nullptr;
};

struct Device {
  // Fills the arena: problems with their vectors, bounds; waits for it. Bounds of the run, (n), may
  // be the host's or the device's.
  Device(const Params& params, const Job& job, const CudaArena& layout, int slots, int device,
         void* arena, void* caller_stream);

  void expect(cudaError_t code, const char* what) {
    failed = failed || code != cudaSuccess;
    check(code, what);
  }
  void select() { expect(cudaSetDevice(id), "selecting the device"); }
  void wait(const char* what) { expect(cudaStreamSynchronize(stream), what); }

  template <class... Parameters, class... Arguments>
  void launch(const char* name, void (*kernel)(Parameters...), int blocks, size_t shared,
              const Arguments&... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    expect(cudaLaunchKernelEx(&config, kernel, arguments...), name);
  }

  int id;
  cudaStream_t stream;
  bool failed = false;
  char* base;  // of the arena
  Run run{};
  int* list;  // run.rows
  SlotRows slots{};
};

}  // namespace advcore::cuda

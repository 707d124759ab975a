// As much of the CUDA runtime as queue.cu and device.cu call, on the host: a stream is a thread
// that works off a queue, device memory is the host's, a kernel's block is a single thread. Graphs
// are lists of captured launches. For checks of the host's code alone.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static thread_local
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
inline thread_local dim3 blockIdx, threadIdx, blockDim, gridDim;

inline void __syncthreads() {}
inline void __threadfence() {}
template <class T, class V>
T atomicAdd(T* at, V value) {
  const T old = *at;
  *at = static_cast<T>(old + value);
  return old;
}
inline int atomicExch(int* at, int value) { return std::exchange(*at, value); }
template <class T>
T atomicCAS(T* at, T old, T value) {
  const T was = *at;
  if (was == old) *at = value;
  return was;
}

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0, cudaErrorNotReady = 600;

// What a check wants to happen.
namespace fake {
using Foreign = std::function<void(void** arguments, unsigned programs)>;
inline std::map<std::string, Foreign> foreign;  // kernels by name
inline int launches = 0, fails_at = -1;         // of graphs: the first that fails
inline bool fails_in_capture = false;           // the first launch of a capture fails
inline int current_device = 0, open_captures = 0;

struct Stream;
struct Graph {
  std::vector<std::function<void()>> nodes;
};

struct Stream {
  Stream() : worker([this] { work(); }) {}
  ~Stream() {
    push([this] { over = true; });
    worker.join();
  }
  void push(std::function<void()> task) {
    if (capture) return capture->nodes.push_back(std::move(task));
    const std::lock_guard lock(mutex);
    tasks.push_back(std::move(task));
    ++pushed;
    changed.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&, until = pushed] { return done >= until; });
  }
  void work() {
    while (!over) {
      std::function<void()> task;
      {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return !tasks.empty(); });
        task = std::move(tasks.front());
        tasks.pop_front();
      }
      task();
      const std::lock_guard lock(mutex);
      ++done;
      changed.notify_all();
    }
  }
  Graph* capture = nullptr;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> tasks;
  int64_t pushed = 0, done = 0;
  bool over = false;
  std::thread worker;
};

struct Event {
  Stream* stream = nullptr;
  int64_t at = 0;
};
}  // namespace fake

using cudaStream_t = fake::Stream*;
using cudaEvent_t = fake::Event*;
using cudaGraph_t = fake::Graph*;
using cudaGraphExec_t = fake::Graph*;
using cudaLibrary_t = int*;
using cudaKernel_t = const fake::Foreign*;

enum { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDefault };
enum { cudaHostAllocDefault, cudaHostAllocMapped, cudaStreamNonBlocking, cudaEventDisableTiming };
enum { cudaStreamCaptureModeThreadLocal };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };

struct cudaDeviceProp {
  char name[8] = "fake";
  int major = 8, minor = 0;
};
struct cudaFuncAttributes {};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "unspecified launch failure"; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 12080, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) {
  return *device = fake::current_device, cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) { return fake::current_device = device, cudaSuccess; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) { return *p = {}, cudaSuccess; }
template <class F>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, F) {
  return cudaSuccess;
}

inline cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
  *p = std::calloc(1, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaFreeHost(void* p) { return std::free(p), cudaSuccess; }
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, int) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
// Of pageable memory: the host's copy is read before the call returns, of pinned memory later. Here
// always later, but for what lies on the caller's stack, which no caller may pass. An aligned word
// comes as a whole, as kernels may read it meanwhile.
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, cudaStream_t s) {
  s->push([=] {
    int64_t word;
    if (bytes != sizeof word || reinterpret_cast<uintptr_t>(to) % sizeof word != 0) {
      std::memcpy(to, from, bytes);
      return;
    }
    std::memcpy(&word, from, sizeof word);
    __atomic_store_n(static_cast<int64_t*>(to), word, __ATOMIC_RELEASE);
  });
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t s) {
  return s->push([=] { std::memset(to, value, bytes); }), cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) {
  return *s = new fake::Stream, cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t s) { return delete s, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t s) { return s->wait(), cudaSuccess; }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) {
  return *e = new fake::Event, cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t e) { return delete e, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  const std::lock_guard lock(s->mutex);
  return *e = {s, s->pushed}, cudaSuccess;
}
inline cudaError_t cudaEventQuery(cudaEvent_t e) {
  const std::lock_guard lock(e->stream->mutex);
  if (e->stream->done < e->at) return cudaErrorNotReady;
  return fake::fails_at >= 0 && fake::launches >= fake::fails_at ? 719 : cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  const unsigned blocks = config->gridDim.x;
  const std::tuple<std::decay_t<Parameters>...> copies(arguments...);
  config->stream->push([=] {
    gridDim = dim3(blocks), blockDim = dim3(1);
    for (unsigned i = 0; i < blocks; ++i) {
      blockIdx = dim3(i), threadIdx = dim3(0);
      std::apply(kernel, copies);
    }
  });
  return cudaSuccess;
}

// Arguments of 8 bytes each.
inline cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel,
                                       void** arguments) {
  if (fake::fails_in_capture && config->stream->capture) return 719;
  const auto* const foreign = static_cast<const fake::Foreign*>(kernel);
  uint64_t first;
  std::memcpy(&first, arguments[0], sizeof first);
  config->stream->push([foreign, first, programs = config->gridDim.x] {
    uint64_t copy = first;
    void* pointers[] = {&copy};
    (*foreign)(pointers, programs);
  });
  return cudaSuccess;
}

inline cudaError_t cudaLibraryLoadData(cudaLibrary_t* library, const void*, void*, void*, int,
                                       void*, void*, int) {
  return *library = new int, cudaSuccess;
}
inline cudaError_t cudaLibraryUnload(cudaLibrary_t library) { return delete library, cudaSuccess; }
inline cudaError_t cudaLibraryGetKernel(cudaKernel_t* kernel, cudaLibrary_t, const char* name) {
  if (!fake::foreign.count(name)) return 500;
  return *kernel = &fake::foreign[name], cudaSuccess;
}
inline cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t, int, int, int) {
  return cudaSuccess;
}

inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaStreamBeginCapture(cudaStream_t s, int) {
  ++fake::open_captures;
  return s->capture = new fake::Graph, cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) {
  --fake::open_captures;
  *graph = std::exchange(s->capture, nullptr);
  return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned) {
  return *exec = graph, cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t s) {
  ++fake::launches;
  s->push([graph] {
    for (const auto& node : graph->nodes) node();
  });
  return cudaSuccess;
}

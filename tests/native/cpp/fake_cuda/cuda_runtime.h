// As much of the CUDA runtime as queue.cu and device.cu call, on the host: a stream is a thread
// that works off a queue, device memory is the host's, a kernel's block is a single thread. Graphs
// are lists of captured launches, with a WHILE node around them. For checks of the host's code
// alone.
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

#define CUDART_VERSION 13000

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
inline bool conditional_nodes = true;
inline int launches = 0, fails_at = -1;  // of graphs: the one that fails

struct Stream;
struct Graph {
  std::vector<std::function<void()>> nodes;
  std::unique_ptr<Graph> body;  // of its WHILE node
  unsigned condition = 0;
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
using cudaGraphConditionalHandle = unsigned long long;
using cudaGraphNode_t = int;

enum { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDefault };
enum { cudaHostAllocDefault, cudaHostAllocMapped, cudaStreamNonBlocking, cudaEventDisableTiming };
enum { cudaStreamCaptureModeThreadLocal, cudaGraphCondAssignDefault, cudaGraphCondTypeWhile };
enum { cudaGraphNodeTypeConditional, cudaFuncAttributeMaxDynamicSharedMemorySize };
enum { cudaLaunchAttributeClusterDimension };

struct cudaDeviceProp {
  char name[8] = "fake";
  int major = 8, minor = 0;
};
struct cudaFuncAttributes {};
struct cudaLaunchAttribute {
  int id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};
struct cudaGraphNodeParams {
  int type = 0;
  struct {
    cudaGraphConditionalHandle handle = 0;
    int type = 0;
    unsigned size = 0;
    cudaGraph_t* phGraph_out = nullptr;
  } conditional;
};

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "unspecified launch failure"; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
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
// always later, but for what lies on the caller's stack, which no caller may pass.
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, cudaStream_t s) {
  return s->push([=] { std::memcpy(to, from, bytes); }), cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t s) {
  return s->push([=] { std::memset(to, value, bytes); }), cudaSuccess;
}

inline cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int) {
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
  return fake::launches == fake::fails_at ? 719 : cudaSuccess;
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

inline cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned) {
  return *graph = new fake::Graph, cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphConditionalHandleCreate(cudaGraphConditionalHandle* handle,
                                                    cudaGraph_t graph, unsigned, unsigned) {
  if (!fake::conditional_nodes) return 801;
  *handle = reinterpret_cast<uintptr_t>(graph);
  return cudaSuccess;
}
inline void cudaGraphSetConditional(cudaGraphConditionalHandle handle, unsigned value) {
  reinterpret_cast<fake::Graph*>(handle)->condition = value;
}
inline cudaError_t cudaGraphAddNode(cudaGraphNode_t*, cudaGraph_t graph, const cudaGraphNode_t*,
                                    const void*, size_t, cudaGraphNodeParams* node) {
  static thread_local cudaGraph_t body;
  graph->body = std::make_unique<fake::Graph>();
  body = graph->body.get();
  node->conditional.phGraph_out = &body;
  return cudaSuccess;
}
inline cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t s, cudaGraph_t graph, const void*,
                                                 const void*, size_t, int) {
  return s->capture = graph, cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) {
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
    if (!graph->body) return;
    graph->condition = 1;
    while (graph->condition)
      for (const auto& node : graph->body->nodes) node();
  });
  return cudaSuccess;
}

#include "cuda/queue.h"

#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <thread>
#include <utility>

#include "cuda/device.h"

#define ADVCORE_NS advcore::cuda

#include "cuda/turn.h"

namespace advcore {
namespace cuda {
namespace {

// Written by the device while the host watches; `stop` by the host.
struct Progress {
  int64_t finished, succeeded, evaluations, rounds;
  int over;  // no round will find anything to do
  int stop;
};

struct Crew {
  template <class F>
  __device__ void each(int n, F f) const {
    for (int i = threadIdx.x; i < n; i += blockDim.x) f(i);
  }
  __device__ bool first() const { return threadIdx.x == 0; }
  __device__ void sync() const { __syncthreads(); }
  __device__ void fence() const { __threadfence(); }
  __device__ int64_t read(const int64_t* at) const {
    return *static_cast<const volatile int64_t*>(at);
  }
  __device__ int add(int* at, int value) const { return atomicAdd(at, value); }
  __device__ int64_t add(int64_t* at, int64_t value) const {
    return static_cast<int64_t>(atomicAdd(reinterpret_cast<unsigned long long*>(at),
                                          static_cast<unsigned long long>(value)));
  }
  __device__ int64_t swap(int64_t* at, int64_t old, int64_t value) const {
    return static_cast<int64_t>(atomicCAS(reinterpret_cast<unsigned long long*>(at),
                                          static_cast<unsigned long long>(old),
                                          static_cast<unsigned long long>(value)));
  }
};

// A block for every kGroup slots; the last one to end closes the round. loop: whether it is one of
// the graph's, whose condition is then set; else the host launches the rounds.
__global__ void __launch_bounds__(kThreads)
    turn_kernel(const __grid_constant__ Turn t, Progress* progress, bool loop,
                unsigned long long condition) {
  __shared__ Board board;
  turn_group(Crew{}, t, static_cast<int>(blockIdx.x) * kGroup, board);
  if (threadIdx.x > 0) return;
  Counters& counters = *t.counters;
  __threadfence();
  if (atomicAdd(&counters.turned, 1) + 1 < static_cast<int>(gridDim.x)) return;
  __threadfence();
  const int listed = atomicExch(&counters.listed, 0);
  counters.turned = 0;
  volatile Progress* const seen = progress;
  const bool waiting = *const_cast<volatile int64_t*>(&counters.next) < counters.total && !t.drain;
  const bool on = (listed > 0 || waiting) && !seen->stop;
  counters.rows = on ? listed : 0;
  seen->finished = *const_cast<volatile int64_t*>(&counters.finished);
  seen->succeeded = *const_cast<volatile int64_t*>(&counters.succeeded);
  seen->evaluations = *const_cast<volatile int64_t*>(&counters.evaluations);
  seen->rounds = ++counters.rounds;
  seen->over = !on;
  if (loop) cudaGraphSetConditional(condition, on);
}

}  // namespace
}  // namespace cuda

namespace {

constexpr size_t kPiece = size_t{16} << 20;  // bytes of images that are announced together
constexpr auto kNap = std::chrono::microseconds(20);

// CUDA objects that end with their owner.
template <class T, auto destroy>
struct Owned {
  Owned() = default;
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() {
    if (value) destroy(value);
  }
  T value = nullptr;
};

}  // namespace

struct CudaQueue::Loop : cuda::Device {
  struct Kernel {
    ForeignKernel foreign;
    Owned<cudaLibrary_t, cudaLibraryUnload> library;
    cudaKernel_t entry = nullptr;
  };

  Loop(const Params& params, const Job& job, const CudaArena& at, int slots, int device,
       void* arena, void* of)
      : Device(params, job, at, slots, device, arena, of), at(at), slot_count(slots) {
    run.count = &counters()->rows;
    const size_t n = static_cast<size_t>(params.n), starts = static_cast<size_t>(params.starts);
    const bool own = job.own_bounds;
    turning = {params,
               {part<float>(at.images), n, own ? part<float>(at.lo) : nullptr,
                own ? part<float>(at.hi) : nullptr, n,
                starts > 0 ? part<float>(at.starts) : nullptr, starts * n, part<int>(at.labels)},
               run.problems,
               run.done,
               slot_count,
               list,
               part<float>(at.adversarial),
               part<Outcome>(at.outcomes),
               counters(),
               false};
    progress.allocate(1, cudaHostAllocMapped);
    arrived.allocate(1);
    blank.allocate(1);
    // Of a priority of its own, so that it shares no queue of the hardware with the rounds, which
    // wait for what it brings.
    int least = 0, greatest = 0;
    expect(cudaDeviceGetStreamPriorityRange(&least, &greatest), "the priorities of streams");
    expect(cudaStreamCreateWithPriority(&aside.value, cudaStreamNonBlocking, greatest), "a stream");
    expect(cudaEventCreateWithFlags(&mark.value, cudaEventDisableTiming), "an event");
    expect(cudaMemsetAsync(run.done, 1, static_cast<size_t>(slots), stream), "free slots");
  }

  cuda::Counters* counters() { return part<cuda::Counters>(at.counters); }
  template <class T>
  T* part(size_t offset) {
    return reinterpret_cast<T*>(base + offset);
  }

  void load(Kernel& kernel);
  void turn(bool drain, const cudaGraphConditionalHandle* condition = nullptr);
  void round(const cudaGraphConditionalHandle* condition);
  void build();
  void upload(const Params& params, const Job& job, int64_t from, int64_t to);
  void begin(const Params& params, const Job& job);
  bool idle();
  void collect(const Params& params, const Job& job, Feed& feed);

  const CudaArena at;
  const int slot_count;
  std::vector<std::unique_ptr<Kernel>> kernels;
  cuda::Turn turning{};
  cuda::Pinned<cuda::Progress> progress;
  cuda::Pinned<int64_t> arrived;
  cuda::Pinned<cuda::Counters> blank;
  Owned<cudaStream_t, cudaStreamDestroy> aside;  // copies; and what the graph is captured from
  Owned<cudaEvent_t, cudaEventDestroy> mark;     // after the last launch
  Owned<cudaGraph_t, cudaGraphDestroy> graph;
  Owned<cudaGraphExec_t, cudaGraphExecDestroy> loop;
  bool looping = false;
  int64_t capacity = 0, first = 0, last = 0;  // images of the job on the device
  int64_t rounds_before = 0;
  double seconds = 0;  // of the rounds
  int fillings = 0;
  std::chrono::steady_clock::time_point launched;
  bool running = false, stopped = false;
};

void CudaQueue::Loop::load(Kernel& kernel) {
  const ForeignKernel& f = kernel.foreign;
  expect(cudaLibraryLoadData(&kernel.library.value, f.code.data(), nullptr, nullptr, 0, nullptr,
                             nullptr, 0),
         ("loading " + f.name).c_str());
  expect(cudaLibraryGetKernel(&kernel.entry, kernel.library.value, f.name.c_str()), f.name.c_str());
  expect(cudaKernelSetAttributeForDevice(kernel.entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         static_cast<int>(f.shared), id),
         ("shared memory of " + f.name).c_str());
  // Loads the code, which at the first launch would be in the middle of a capture.
  cudaFuncAttributes attributes{};
  expect(cudaFuncGetAttributes(&attributes, static_cast<const void*>(kernel.entry)),
         f.name.c_str());
}

void CudaQueue::Loop::turn(bool drain, const cudaGraphConditionalHandle* condition) {
  turning.drain = drain;
  launch("turn", cuda::turn_kernel, (slot_count + cuda::kGroup - 1) / cuda::kGroup, 1, 0, turning,
         progress.data, condition != nullptr, condition ? *condition : 0ull);
}

void CudaQueue::Loop::round(const cudaGraphConditionalHandle* condition) {
  for (const auto& kernel : kernels) {
    const ForeignKernel& f = kernel->foreign;
    std::vector<void*> arguments;
    for (const std::string& bytes : f.arguments)
      arguments.push_back(const_cast<char*>(bytes.data()));
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(f.grid[0], f.grid[1], f.grid[2]);
    config.blockDim = dim3(f.threads);
    config.dynamicSmemBytes = f.shared;
    config.stream = stream;
    expect(cudaLaunchKernelExC(&config, kernel->entry, arguments.data()), f.name.c_str());
  }
  launch("advance", cuda::kernels().advance, slot_count, ranks, cuda::shared_bytes(run.params), run,
         static_cast<const float*>(nullptr));
  turn(false, condition);
}

void CudaQueue::Loop::build() {
  // The launches below go to the capture.
  const struct Restored {
    cudaStream_t& stream;
    cudaStream_t const of;
    ~Restored() { stream = of; }
  } restored{stream, std::exchange(stream, aside.value)};
  expect(cudaGraphCreate(&graph.value, 0), "a graph");
  cudaGraphConditionalHandle condition = 0;
  const char* const where = std::getenv("ADVCORE_CUDA_LOOP");  // "host": as with an old driver
  looping = !(where && std::string(where) == "host") &&
            cudaGraphConditionalHandleCreate(&condition, graph.value, 1,
                                             cudaGraphCondAssignDefault) == cudaSuccess;
  cudaGraph_t body = graph.value;
  if (looping) {
    cudaGraphNodeParams node{};
    node.type = cudaGraphNodeTypeConditional;
    node.conditional.handle = condition;
    node.conditional.type = cudaGraphCondTypeWhile;
    node.conditional.size = 1;
    cudaGraphNode_t added;
#if CUDART_VERSION >= 13000
    expect(cudaGraphAddNode(&added, graph.value, nullptr, nullptr, 0, &node), "a WHILE node");
#else
    expect(cudaGraphAddNode(&added, graph.value, nullptr, 0, &node), "a WHILE node");
#endif
    body = node.conditional.phGraph_out[0];
  }
  cudaGetLastError();
  expect(cudaStreamBeginCaptureToGraph(stream, body, nullptr, nullptr, 0,
                                       cudaStreamCaptureModeThreadLocal),
         "capturing a round");
  for (int i = 0; i < (looping ? 1 : kUnrolled); ++i) round(looping ? &condition : nullptr);
  expect(cudaStreamEndCapture(stream, &body), "capturing a round");
  expect(cudaGraphInstantiate(&loop.value, graph.value, 0), "making the graph");
}

// Images [from, to) of the job to their places, then the news of it; beside the rounds.
void CudaQueue::Loop::upload(const Params& params, const Job& job, int64_t from, int64_t to) {
  const size_t n = static_cast<size_t>(params.n), count = static_cast<size_t>(to - from);
  const auto copy = [&](size_t offset, const float* source, size_t length, const char* what) {
    if (source && length > 0)
      expect(cudaMemcpyAsync(part<float>(offset) + static_cast<size_t>(from - first) * length,
                             source + static_cast<size_t>(from) * length,
                             count * length * sizeof(float), cudaMemcpyDefault, aside.value),
             what);
  };
  copy(at.images, job.images, n, "images to the device");
  if (job.own_bounds) {
    copy(at.lo, job.lo, n, "lower bounds to the device");
    copy(at.hi, job.hi, n, "upper bounds to the device");
  }
  copy(at.starts, job.starts, n * static_cast<size_t>(params.starts), "starts to the device");
  expect(cudaStreamSynchronize(aside.value), "images to the device");  // `arrived` is free again
  *arrived.data = to - first;
  expect(cudaMemcpyAsync(&counters()->available, arrived.data, sizeof(int64_t),
                         cudaMemcpyHostToDevice, aside.value),
         "images to the device");
}

// The next images of the job, as many as have room.
void CudaQueue::Loop::begin(const Params& params, const Job& job) {
  last = std::min(first + capacity, job.count);
  const size_t count = static_cast<size_t>(last - first);
  *progress.data = {};
  progress.data->stop = stopped;
  *blank.data = {};
  blank.data->total = last - first;
  expect(cudaMemcpyAsync(counters(), blank.data, sizeof(cuda::Counters), cudaMemcpyHostToDevice,
                         stream),
         "counters");
  expect(cudaMemsetAsync(turning.outcomes, 0, count * sizeof(Outcome), stream), "outcomes");
  expect(cudaMemcpyAsync(part<int>(at.labels), job.labels + first, count * sizeof(int),
                         cudaMemcpyHostToDevice, stream),
         "labels");
  wait("beginning images");  // the copies of the images are on another stream
  // All at once where a launch returns only when it is over: the loop would wait for the rest.
  const char* const blocking = std::getenv("CUDA_LAUNCH_BLOCKING");
  const size_t row = sizeof(float) * static_cast<size_t>(params.n);
  const int64_t piece = blocking && *blocking == '1'
                            ? last - first
                            : std::max<int64_t>(static_cast<int64_t>(kPiece / row), slot_count);
  int64_t sent = std::min(first + piece, last);
  upload(params, job, first, sent);
  expect(cudaStreamSynchronize(aside.value), "images to the device");
  turn(false);
  if (!loop.value) build();
  launched = std::chrono::steady_clock::now();
  running = true;
  expect(cudaGraphLaunch(loop.value, stream), "launching the rounds");
  expect(cudaEventRecord(mark.value, stream), "the end of the rounds");
  for (; sent < last; sent += piece) upload(params, job, sent, std::min(sent + piece, last));
}

// Whether the rounds are over; launches more of them where the host has to.
bool CudaQueue::Loop::idle() {
  const cudaError_t code = cudaEventQuery(mark.value);
  if (code == cudaErrorNotReady) return false;
  expect(code, "a round");
  if (looping || static_cast<volatile cuda::Progress*>(progress.data)->over) return true;
  expect(cudaGraphLaunch(loop.value, stream), "launching the rounds");
  expect(cudaEventRecord(mark.value, stream), "the end of the rounds");
  return false;
}

void CudaQueue::Loop::collect(const Params& params, const Job& job, Feed& feed) {
  if (stopped) {
    turn(true);
    wait("the unfinished images");
  }
  const size_t count = static_cast<size_t>(last - first), n = static_cast<size_t>(params.n);
  std::vector<Outcome> outcomes(count);
  expect(cudaMemcpy(outcomes.data(), turning.outcomes, count * sizeof(Outcome),
                    cudaMemcpyDeviceToHost),
         "results to the host");
  float* const to = job.adversarial + static_cast<size_t>(first) * n;
  expect(cudaMemcpy(to, turning.adversarial, count * n * sizeof(float), cudaMemcpyDeviceToHost),
         "results to the host");
  for (size_t i = 0; i < count; ++i)
    if (outcomes[i].delivered)
      deliver(params, job, feed, first + static_cast<int64_t>(i), outcomes[i], nullptr);
    else  // it never began
      std::copy_n(job.images + (static_cast<size_t>(first) + i) * n, n, to + i * n);
  rounds_before += progress.data->rounds;
  *progress.data = {};
  running = false;
  first = last;
  ++fillings;
}

std::string cuda_queue_missing() { return ""; }

CudaQueue::CudaQueue(const Params& params, const Job& job, Feed& feed, int slots, int64_t images,
                     int device, void* arena, void* stream)
    : params_(params),
      job_(job),
      feed_(feed),
      loop_(std::make_unique<Loop>(params, job, cuda_arena(params, job.own_bounds, slots, images),
                                   slots, device, arena, stream)) {
  loop_->capacity = images;
}

CudaQueue::~CudaQueue() {
  // Nothing of this run may be at work when its memory goes; whatever failed before.
  cudaSetDevice(loop_->id);
  loop_->progress.data->stop = 1;
  cudaStreamSynchronize(loop_->stream);
  cudaStreamSynchronize(loop_->aside.value);
  cudaGetLastError();
}

SlotRows CudaQueue::slot_rows() const { return loop_->slots; }
const int* CudaQueue::rows() const { return loop_->list; }
const int* CudaQueue::count() const { return loop_->run.count; }
bool CudaQueue::looping() const { return loop_->looping; }

void CudaQueue::add(ForeignKernel kernel) {
  loop_->select();
  loop_->kernels.push_back(std::make_unique<Loop::Kernel>());
  loop_->kernels.back()->foreign = std::move(kernel);
  loop_->load(*loop_->kernels.back());
}

bool CudaQueue::wait(double seconds) try {
  Loop& l = *loop_;
  l.select();
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  for (;;) {
    if (!l.running) {
      if (l.first == job_.count || l.stopped) {
        keep_clean(params_, job_, l.first);
        return true;
      }
      l.begin(params_, job_);
    }
    if (l.idle()) {
      l.seconds +=
          std::chrono::duration<double>(std::chrono::steady_clock::now() - l.launched).count();
      l.collect(params_, job_, feed_);
      continue;
    }
    if (std::chrono::steady_clock::now() >= end) return false;
    std::this_thread::sleep_for(kNap);
  }
} catch (...) {
  keep_clean(params_, job_, loop_->first);
  throw;
}

void CudaQueue::stop() {
  loop_->stopped = true;
  static_cast<volatile cuda::Progress*>(loop_->progress.data)->stop = 1;
}

int64_t CudaQueue::finished() const { return feed_.finished + loop_->progress.data->finished; }
int64_t CudaQueue::succeeded() const { return feed_.succeeded + loop_->progress.data->succeeded; }
int64_t CudaQueue::evaluations() const {
  return feed_.evaluations + loop_->progress.data->evaluations;
}
int CudaQueue::fillings() const { return loop_->fillings; }
double CudaQueue::seconds() const { return loop_->seconds; }
int64_t CudaQueue::rounds() const { return loop_->rounds_before + loop_->progress.data->rounds; }

}  // namespace advcore

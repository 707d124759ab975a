#include "cuda/queue.h"

#include <chrono>
#include <cstddef>
#include <exception>
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

// A block for every kGroup slots; the last one to end closes the round.
__global__ void __launch_bounds__(kThreads)
    turn_kernel(const __grid_constant__ Turn t, Progress* progress) {
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
}

}  // namespace
}  // namespace cuda

namespace {

constexpr auto kNap = std::chrono::microseconds(20);
constexpr int kRounds = 8;    // of a launch
constexpr int kInFlight = 2;  // launches

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

struct CudaQueue::Device : cuda::Device {
  struct Kernel {
    ForeignKernel foreign;
    Owned<cudaLibrary_t, cudaLibraryUnload> library;
    cudaKernel_t entry = nullptr;
  };

  Device(const Params& params, const Job& job, const CudaArena& at, int slots, int device,
         void* arena, void* of)
      : cuda::Device(params, job, at, slots, device, arena, of), at(at), slot_count(slots) {
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
    expect(cudaStreamCreateWithFlags(&aside.value, cudaStreamNonBlocking), "a stream");
    for (auto& mark : marks)
      expect(cudaEventCreateWithFlags(&mark.value, cudaEventDisableTiming), "an event");
    expect(cudaMemsetAsync(run.done, 1, static_cast<size_t>(slots), stream), "free slots");
  }

  cuda::Counters* counters() { return part<cuda::Counters>(at.counters); }
  template <class T>
  T* part(size_t offset) {
    return reinterpret_cast<T*>(base + offset);
  }

  void load(Kernel& kernel);
  void turn(bool drain);
  void round();
  void build();
  bool upload(const Params& params, const Job& job);
  void begin(const Params& params, const Job& job);
  void launch_rounds();
  bool over();
  void collect(const Params& params, const Job& job, Feed& feed);

  const CudaArena at;
  const int slot_count;
  std::vector<std::unique_ptr<Kernel>> kernels;
  cuda::Turn turning{};
  cuda::Pinned<cuda::Progress> progress;
  cuda::Pinned<int64_t> arrived;
  cuda::Pinned<cuda::Counters> blank;
  Owned<cudaStream_t, cudaStreamDestroy> aside;  // copies; and what the graph is captured from
  Owned<cudaGraph_t, cudaGraphDestroy> graph;
  Owned<cudaGraphExec_t, cudaGraphExecDestroy> rounds;
  Owned<cudaEvent_t, cudaEventDestroy> marks[kInFlight];  // after each of the last launches
  int64_t launches = 0;
  int64_t capacity = 0, first = 0, last = 0;  // images of the job on the device
  int64_t sent = 0;                           // up to here they have arrived
  size_t piece_bytes = 0;
  int64_t rounds_before = 0;
  double seconds = 0;  // of the rounds
  int fillings = 0;
  std::chrono::steady_clock::time_point began;
  bool running = false, stopped = false;
};

void CudaQueue::Device::load(Kernel& kernel) {
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

void CudaQueue::Device::turn(bool drain) {
  turning.drain = drain;
  launch("turn", cuda::turn_kernel, (slot_count + cuda::kGroup - 1) / cuda::kGroup, 0, turning,
         progress.data);
}

void CudaQueue::Device::round() {
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
  launch("advance", cuda::kernels().advance, slot_count, cuda::shared_bytes(run.params), run,
         static_cast<const float*>(nullptr));
  turn(false);
}

void CudaQueue::Device::build() {
  // The launches below go to the capture, which ends here also where one of them fails: an open one
  // would make the allocations of everybody else in this thread fail.
  expect(cudaStreamBeginCapture(aside.value, cudaStreamCaptureModeThreadLocal), "capturing rounds");
  const cudaStream_t before = std::exchange(stream, aside.value);
  std::exception_ptr error;
  try {
    for (int i = 0; i < kRounds; ++i) round();
  } catch (...) {
    error = std::current_exception();
  }
  const cudaError_t ended = cudaStreamEndCapture(stream, &graph.value);
  stream = before;
  if (error) std::rethrow_exception(error);
  expect(ended, "capturing rounds");
  expect(cudaGraphInstantiate(&rounds.value, graph.value, 0), "making the graph");
}

// The next images that the device has room for, then the news of them, beside the rounds; false:
// all are there.
bool CudaQueue::Device::upload(const Params& params, const Job& job) {
  if (sent == last) return false;
  const size_t n = static_cast<size_t>(params.n);
  const int64_t rows = static_cast<int64_t>(piece_bytes / (n * sizeof(float)));
  const int64_t from =
      std::exchange(sent, std::min(sent + std::max<int64_t>(rows, slot_count), last));
  const size_t count = static_cast<size_t>(sent - from);
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
  *arrived.data = sent - first;
  expect(cudaMemcpyAsync(&counters()->available, arrived.data, sizeof(int64_t),
                         cudaMemcpyHostToDevice, aside.value),
         "images to the device");
  return true;
}

// The next images of the job, as many as have room.
void CudaQueue::Device::begin(const Params& params, const Job& job) {
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
  sent = first;
  upload(params, job);
  expect(cudaStreamSynchronize(aside.value), "images to the device");
  turn(false);
  if (!rounds.value) build();
  began = std::chrono::steady_clock::now();
  running = true;
  for (int i = 0; i < kInFlight; ++i) launch_rounds();
}

void CudaQueue::Device::launch_rounds() {
  expect(cudaGraphLaunch(rounds.value, stream), "launching rounds");
  expect(cudaEventRecord(marks[launches++ % kInFlight].value, stream), "the end of rounds");
}

// Whether no image is left to work on. Where a launch has ended the next one takes its place, so
// that the device has always another; those behind the last useful one find nothing to do.
bool CudaQueue::Device::over() {
  const cudaError_t code = cudaEventQuery(marks[launches % kInFlight].value);  // the oldest one
  if (code == cudaErrorNotReady) return false;
  expect(code, "a round");
  if (static_cast<volatile cuda::Progress*>(progress.data)->over) {
    wait("the last rounds");
    return true;
  }
  launch_rounds();
  return false;
}

void CudaQueue::Device::collect(const Params& params, const Job& job, Feed& feed) {
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
                     int device, void* arena, void* stream, size_t piece_bytes)
    : params_(params),
      job_(job),
      feed_(feed),
      device_(std::make_unique<Device>(params, job,
                                       cuda_arena(params, job.own_bounds, slots, images), slots,
                                       device, arena, stream)) {
  device_->capacity = images;
  device_->piece_bytes = piece_bytes;
}

CudaQueue::~CudaQueue() {
  // Nothing of this run may be at work when its memory goes; whatever failed before.
  cudaSetDevice(device_->id);
  device_->progress.data->stop = 1;
  cudaStreamSynchronize(device_->stream);
  cudaStreamSynchronize(device_->aside.value);
  cudaGetLastError();
}

SlotRows CudaQueue::slot_rows() const { return device_->slots; }
const int* CudaQueue::rows() const { return device_->list; }
const int* CudaQueue::count() const { return device_->run.count; }

void CudaQueue::add(ForeignKernel kernel) {
  device_->select();
  device_->kernels.push_back(std::make_unique<Device::Kernel>());
  device_->kernels.back()->foreign = std::move(kernel);
  device_->load(*device_->kernels.back());
}

bool CudaQueue::wait(double seconds) try {
  Device& d = *device_;
  d.select();
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  for (;;) {
    if (!d.running) {
      if (d.first == job_.count || d.stopped) {
        keep_clean(params_, job_, d.first);
        return true;
      }
      d.begin(params_, job_);
    }
    if (d.over()) {
      d.seconds +=
          std::chrono::duration<double>(std::chrono::steady_clock::now() - d.began).count();
      d.collect(params_, job_, feed_);
      continue;
    }
    const bool sending = d.upload(params_, job_);
    if (std::chrono::steady_clock::now() >= end) return false;
    if (!sending) std::this_thread::sleep_for(kNap);
  }
} catch (...) {
  keep_clean(params_, job_, device_->first);
  throw;
}

void CudaQueue::stop() {
  device_->stopped = true;
  static_cast<volatile cuda::Progress*>(device_->progress.data)->stop = 1;
}

int64_t CudaQueue::finished() const { return feed_.finished + device_->progress.data->finished; }
int64_t CudaQueue::succeeded() const { return feed_.succeeded + device_->progress.data->succeeded; }
int64_t CudaQueue::evaluations() const {
  return feed_.evaluations + device_->progress.data->evaluations;
}
int CudaQueue::fillings() const { return device_->fillings; }
double CudaQueue::seconds() const { return device_->seconds; }
int64_t CudaQueue::rounds() const {
  return device_->rounds_before + device_->progress.data->rounds;
}

}  // namespace advcore

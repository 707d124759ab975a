#include "cuda/queue.h"

#include <chrono>
#include <cstddef>
#include <exception>
#include <thread>
#include <utility>

#include "cuda/device.h"

#define ADVCORE_NS advcore::cuda

#include "cuda/refill.h"

namespace advcore {
namespace cuda {
namespace {

// Memory of the host that the device writes to; `stop` is the host's request. While rounds run,
// both sides take read_shared and write_shared.
struct HostView {
  Counts counts;
  int64_t rounds;
  int over;  // whether no round will find anything to do
  int stop;
};

struct BlockThreads {
  template <class F>
  __device__ void each(int n, F f) const {
    for (int i = threadIdx.x; i < n; i += blockDim.x) f(i);
  }
  __device__ bool first() const { return threadIdx.x == 0; }
  __device__ void sync() const { __syncthreads(); }
  __device__ void fence() const { __threadfence(); }
  __device__ int64_t read(const int64_t* at) const { return read_shared(at); }
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

// A block for every kGroupSlots slots; the last one to end closes the round.
__global__ void __launch_bounds__(kThreads)
    refill_kernel(const __grid_constant__ Refill refill, HostView* view) {
  __shared__ GroupScratch scratch;
  const BlockThreads threads{};
  refill_group(threads, refill, static_cast<int>(blockIdx.x) * kGroupSlots, scratch);
  if (threadIdx.x > 0) return;
  QueueState& state = *refill.state;
  __threadfence();
  if (atomicAdd(&state.groups_closed, 1) + 1 < static_cast<int>(gridDim.x)) return;
  __threadfence();
  const int listed = atomicExch(&state.listed, 0);
  state.groups_closed = 0;
  const bool waiting = threads.read(&state.next) < state.total && !refill.drain;
  const bool on = (listed > 0 || waiting) && !read_shared(&view->stop);
  state.rows = on ? listed : 0;
  add_counts(view->counts, state.counts, [&](int64_t& total, const int64_t& value) {
    write_shared(&total, threads.read(&value));
  });
  write_shared(&view->rounds, state.rounds += on);
  write_shared<int>(&view->over, !on);
}

}  // namespace
}  // namespace cuda

namespace {

constexpr auto kNap = std::chrono::microseconds(20);  // between two looks at the device
constexpr int kRounds = 8;                            // rounds of a graph
constexpr int kInFlight = 2;                          // graphs launched and not known to have ended

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

  Device(const Params& params, const Job& job, const CudaArena& layout, int slots, int device,
         void* arena, void* caller_stream)
      : cuda::Device(params, job, layout, slots, device, arena, caller_stream),
        layout(layout),
        slot_count(slots) {
    run.count = &state()->rows;
    const size_t n = static_cast<size_t>(params.n), starts = static_cast<size_t>(params.starts);
    const bool own = job.own_bounds;
    refill_arguments = {
        params,
        {part<float>(layout.images), n, own ? part<float>(layout.lo) : nullptr,
         own ? part<float>(layout.hi) : nullptr, n,
         starts > 0 ? part<float>(layout.starts) : nullptr, starts * n, part<int>(layout.labels)},
        run.problems,
        run.done,
        slot_count,
        list,
        part<float>(layout.adversarial),
        part<Outcome>(layout.outcomes),
        state(),
        false};
    view.allocate(1, cudaHostAllocMapped);
    arrived.allocate(1);
    initial.allocate(1);
    expect(cudaStreamCreateWithFlags(&copies.value, cudaStreamNonBlocking), "a stream");
    for (auto& event : ended)
      expect(cudaEventCreateWithFlags(&event.value, cudaEventDisableTiming), "an event");
    expect(cudaMemsetAsync(run.done, 1, static_cast<size_t>(slots), stream), "free slots");
  }

  cuda::QueueState* state() { return part<cuda::QueueState>(layout.queue_state); }
  template <class T>
  T* part(size_t offset) {
    return reinterpret_cast<T*>(base + offset);
  }

  void load(Kernel& kernel);
  void refill(bool drain);
  void launch_advance();
  void round();
  void build();
  bool upload(const Params& params, const Job& job);
  void begin(const Params& params, const Job& job);
  void launch_rounds();
  bool over();
  void collect(const Params& params, const Job& job, WorkQueue& work);

  const CudaArena layout;
  const int slot_count;
  std::vector<std::unique_ptr<Kernel>> kernels;
  cuda::Refill refill_arguments{};
  cuda::Pinned<cuda::HostView> view;
  cuda::Pinned<int64_t> arrived;                  // what `available` of the state becomes
  cuda::Pinned<cuda::QueueState> initial;         // the state before the first round
  Owned<cudaStream_t, cudaStreamDestroy> copies;  // takes the images and the capture
  Owned<cudaGraph_t, cudaGraphDestroy> graph;
  Owned<cudaGraphExec_t, cudaGraphExecDestroy> rounds;
  Owned<cudaEvent_t, cudaEventDestroy> ended[kInFlight];  // one for each launch in flight
  int64_t launches = 0;
  int64_t capacity = 0;         // images that fit on the device
  int64_t first = 0, last = 0;  // images of the job that the device has, or gets
  int64_t sent = 0;             // images [first, sent) are there
  size_t piece_bytes = 0;
  int64_t rounds_before = 0;  // rounds of the earlier fillings
  double seconds = 0;         // time of the rounds
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

void CudaQueue::Device::refill(bool drain) {
  refill_arguments.drain = drain;
  launch("refill", cuda::refill_kernel, (slot_count + cuda::kGroupSlots - 1) / cuda::kGroupSlots, 0,
         refill_arguments, view.data);
}

void CudaQueue::Device::launch_advance() {
  launch("advance", cuda::kernels().advance, slot_count, cuda::shared_bytes(run.params), run,
         static_cast<const float*>(nullptr));
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
  launch_advance();
  refill(false);
}

void CudaQueue::Device::build() {
  // The launches below go to the capture, which ends here also where one of them fails: an open one
  // would make the allocations of everybody else in this thread fail.
  expect(cudaStreamBeginCapture(copies.value, cudaStreamCaptureModeThreadLocal),
         "capturing rounds");
  const cudaStream_t before = std::exchange(stream, copies.value);
  std::exception_ptr error;
  try {
    for (int i = 0; i < kRounds; ++i) round();
  } catch (...) {
    error = std::current_exception();
  }
  const cudaError_t code = cudaStreamEndCapture(stream, &graph.value);
  stream = before;
  if (error) std::rethrow_exception(error);
  expect(code, "capturing rounds");
  expect(cudaGraphInstantiate(&rounds.value, graph.value, 0), "making the graph");
}

// Copies the next piece of images to the device beside the rounds, then the news of it. Returns
// false where all are there.
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
                             count * length * sizeof(float), cudaMemcpyDefault, copies.value),
             what);
  };
  copy(layout.images, job.images, n, "images to the device");
  if (job.own_bounds) {
    copy(layout.lo, job.lo, n, "lower bounds to the device");
    copy(layout.hi, job.hi, n, "upper bounds to the device");
  }
  copy(layout.starts, job.starts, n * static_cast<size_t>(params.starts), "starts to the device");
  expect(cudaStreamSynchronize(copies.value), "images to the device");  // `arrived` is free again
  *arrived.data = sent - first;
  expect(cudaMemcpyAsync(&state()->available, arrived.data, sizeof(int64_t), cudaMemcpyHostToDevice,
                         copies.value),
         "images to the device");
  return true;
}

// Begins the rounds of the next images of the job, as many as fit.
void CudaQueue::Device::begin(const Params& params, const Job& job) {
  last = std::min(first + capacity, job.count);
  const size_t count = static_cast<size_t>(last - first);
  *view.data = {};
  view.data->stop = stopped;
  *initial.data = {};
  initial.data->total = last - first;
  expect(cudaMemcpyAsync(state(), initial.data, sizeof(cuda::QueueState), cudaMemcpyHostToDevice,
                         stream),
         "counters");
  expect(cudaMemsetAsync(refill_arguments.outcomes, 0, count * sizeof(Outcome), stream),
         "outcomes");
  expect(cudaMemcpyAsync(part<int>(layout.labels), job.labels + first, count * sizeof(int),
                         cudaMemcpyHostToDevice, stream),
         "labels");
  wait("beginning images");  // the copies of the images are on another stream
  sent = first;
  upload(params, job);
  expect(cudaStreamSynchronize(copies.value), "images to the device");
  if (!rounds.value) {
    // No row is listed yet: the launch takes the stack of the kernel alone, which in a graph would
    // be asked for in the middle of the run.
    launch_advance();
    build();
  }
  refill(false);
  began = std::chrono::steady_clock::now();
  running = true;
  for (int i = 0; i < kInFlight; ++i) launch_rounds();
}

void CudaQueue::Device::launch_rounds() {
  expect(cudaGraphLaunch(rounds.value, stream), "launching rounds");
  expect(cudaEventRecord(ended[launches++ % kInFlight].value, stream), "the end of rounds");
}

// Whether no image is left to work on. Where a graph has ended, the next one is launched: the
// device always has another one to go on with, and those behind the last useful round find nothing
// to do.
bool CudaQueue::Device::over() {
  const cudaError_t code = cudaEventQuery(ended[launches % kInFlight].value);  // the oldest one
  if (code == cudaErrorNotReady) return false;
  expect(code, "a round");
  if (cuda::read_shared(&view.data->over)) {
    wait("the last rounds");
    return true;
  }
  launch_rounds();
  return false;
}

void CudaQueue::Device::collect(const Params& params, const Job& job, WorkQueue& work) {
  if (stopped) {
    refill(true);
    wait("the unfinished images");
  }
  const size_t count = static_cast<size_t>(last - first), n = static_cast<size_t>(params.n);
  std::vector<Outcome> outcomes(count);
  expect(cudaMemcpy(outcomes.data(), refill_arguments.outcomes, count * sizeof(Outcome),
                    cudaMemcpyDeviceToHost),
         "results to the host");
  float* const to = job.adversarial + static_cast<size_t>(first) * n;
  expect(cudaMemcpy(to, refill_arguments.adversarial, count * n * sizeof(float),
                    cudaMemcpyDeviceToHost),
         "results to the host");
  for (size_t i = 0; i < count; ++i)
    if (outcomes[i].written)
      write_result(params, job, work, first + static_cast<int64_t>(i), outcomes[i], nullptr);
    else  // it never began
      std::copy_n(job.images + (static_cast<size_t>(first) + i) * n, n, to + i * n);
  rounds_before += view.data->rounds;
  *view.data = {};
  running = false;
  first = last;
  ++fillings;
}

std::string cuda_queue_missing() { return ""; }

CudaQueue::CudaQueue(const Params& params, const Job& job, WorkQueue& work, int slots,
                     int64_t images, int device, void* arena, void* stream, size_t piece_bytes)
    : params_(params),
      job_(job),
      work_(work),
      device_(std::make_unique<Device>(params, job,
                                       cuda_arena(params, job.own_bounds, slots, images), slots,
                                       device, arena, stream)) {
  device_->capacity = images;
  device_->piece_bytes = piece_bytes;
}

CudaQueue::~CudaQueue() {
  close();
  // The parts of the device end on it; one that was abandoned has no end.
  if (abandoned_) {
    static_cast<void>(device_.release());
    return;
  }
  const cuda::CurrentDevice current(device_->id);
  device_.reset();
}

void CudaQueue::close() {
  if (std::exchange(closed_, true)) return;
  const cuda::CurrentDevice current(device_->id);
  stop();
  cudaStreamSynchronize(device_->stream);
  cudaStreamSynchronize(device_->copies.value);
  cudaGetLastError();
}

void CudaQueue::abandon() {
  closed_ = abandoned_ = true;
  stop();
  keep_clean(params_, job_, device_->first);
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
      d.collect(params_, job_, work_);
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
  cuda::write_shared(&device_->view.data->stop, 1);
}

Counts CudaQueue::counts() const {
  Counts counts = work_.counts();
  add_counts(counts, device_->view.data->counts,
             [](int64_t& total, const int64_t& value) { total += cuda::read_shared(&value); });
  return counts;
}
int CudaQueue::fillings() const { return device_->fillings; }
double CudaQueue::seconds() const { return device_->seconds; }
int64_t CudaQueue::rounds() const {
  return device_->rounds_before + cuda::read_shared(&device_->view.data->rounds);
}

}  // namespace advcore

#include "cuda/tile.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>

#include "cuda/kernels.h"

namespace advcore {
namespace {

constexpr size_t kStagedBytes = size_t{32} << 20;  // pinned memory for images that come and go
constexpr int kRankLength = 8192;                  // variables for which another block is worth it

void check(cudaError_t code, const std::string& what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error("CUDA: " + what + ": " + cudaGetErrorString(code) + " (" +
                           std::to_string(static_cast<int>(code)) + ")");
}

// The part of the shared memory that a run with this history uses.
size_t shared_bytes(const Params& params) {
  const int m = params.history, unused = cuda::kPacked - m * (2 * m + 1);
  return sizeof(cuda::Shared) - static_cast<size_t>(unused) * sizeof(cuda::StoredShifts);
}

template <class T>
struct Pinned {
  void allocate(size_t count) {
    const size_t bytes = std::max<size_t>(count, 1) * sizeof(T);
    check(cudaHostAlloc(reinterpret_cast<void**>(&data), bytes, cudaHostAllocDefault),
          std::to_string(bytes) + " bytes of pinned memory");
  }
  ~Pinned() { cudaFreeHost(data); }
  T* data = nullptr;
};

}  // namespace

CudaStatus cuda_status() {
  CudaStatus status{true, 0, ""};
  const cudaError_t code = cudaGetDeviceCount(&status.devices);
  if (code != cudaSuccess) {
    cudaGetLastError();
    status.devices = 0;
    status.reason = cudaGetErrorString(code);
  } else if (status.devices == 0) {
    status.reason = "no CUDA device is visible";
  }
  return status;
}

struct CudaTile::Device {
  int id = 0, ranks = 1;
  cudaStream_t stream = nullptr;
  cuda::Run run{};
  uint8_t* done = nullptr;
  int* list = nullptr;
  cuda::Staged staged{};
  int staged_rows = 0;
  bool failed = false;
  Pinned<float> vectors;
  Pinned<int> labels, slots;
  Pinned<uint8_t> flags;
  Pinned<Problem> problems;

  void expect(cudaError_t code, const char* what) {
    failed = failed || code != cudaSuccess;
    check(code, what);
  }
  void select() { expect(cudaSetDevice(id), "selecting the device"); }
  void wait(const char* what) { expect(cudaStreamSynchronize(stream), what); }

  // The slots of the next launches. The host's copy is not touched before the stream is waited for.
  void list_rows(const int* rows, int count) {
    std::copy_n(rows, count, slots.data);
    expect(cudaMemcpyAsync(list, slots.data, sizeof(int) * static_cast<size_t>(count),
                           cudaMemcpyHostToDevice, stream),
           "list of rows");
  }

  template <class... Parameters, class... Arguments>
  void launch(const char* name, void (*kernel)(Parameters...), int rows, int blocks, size_t shared,
              const Arguments&... arguments) {
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(blocks);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(rows * blocks));
    config.blockDim = dim3(cuda::kMaxThreads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = blocks > 1 ? 1 : 0;
    expect(cudaLaunchKernelEx(&config, kernel, arguments...), name);
  }
};

CudaTile::CudaTile(const Params& params, const Job& job, Feed& feed, int slots, int device,
                   void* arena, void* stream)
    : params_(params),
      job_(job),
      feed_(feed),
      slots_(slots),
      device_(std::make_unique<Device>()),
      index_(static_cast<size_t>(slots), -1),
      began_(static_cast<size_t>(slots), -1) {
  Device& d = *device_;
  d.id = device;
  d.stream = static_cast<cudaStream_t>(stream);
  d.select();
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "properties of the device");
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, cuda::advance_kernel) != cudaSuccess) {
    cudaGetLastError();
    throw std::runtime_error("CUDA: " + std::string(properties.name) + " has compute capability " +
                             std::to_string(properties.major) + "." +
                             std::to_string(properties.minor) +
                             ", for which this build has no code (8.0 and later)");
  }
  while (properties.major >= 9 && d.ranks < cuda::kMaxRanks &&
         params.n >= 2 * d.ranks * kRankLength)
    d.ranks *= 2;

  const CudaArena at = cuda_arena(params, job.own_bounds, slots);
  char* const base = static_cast<char*>(arena);
  check(cudaMemsetAsync(base, 0, at.bytes, d.stream), "clearing the arena");
  d.done = reinterpret_cast<uint8_t*>(base + at.done);
  d.list = reinterpret_cast<int*>(base + at.rows);
  float* const bounds = reinterpret_cast<float*>(base + at.bounds);
  float* const vectors = reinterpret_cast<float*>(base + at.vectors);
  d.run = {params, reinterpret_cast<Problem*>(base + at.problems), d.list, d.done,
           reinterpret_cast<float*>(base + at.heads)};
  const size_t count = static_cast<size_t>(slots), n = static_cast<size_t>(params.n);
  const size_t floats = slot_floats(params, job.own_bounds);
  const size_t starts = static_cast<size_t>(params.starts) * static_cast<size_t>(params.padded_n);
  std::vector<Problem> problems(count);
  for (size_t i = 0; i < count; ++i) {
    Problem& p = problems[i];
    float* const memory = vectors + i * (floats + starts);
    p.lo = bounds;
    p.hi = bounds + params.padded_n;
    carve_slot(params, job.own_bounds, memory, p);
    p.starts = memory + floats;
  }
  check(cudaMemcpyAsync(d.run.problems, problems.data(), count * sizeof(Problem),
                        cudaMemcpyHostToDevice, d.stream),
        "slots");
  if (!job.own_bounds) {
    check(cudaMemcpyAsync(bounds, job.lo, n * 4, cudaMemcpyHostToDevice, d.stream), "lower bounds");
    check(
        cudaMemcpyAsync(bounds + params.padded_n, job.hi, n * 4, cudaMemcpyHostToDevice, d.stream),
        "upper bounds");
  }
  const size_t stride =
      n * (1 + 2 * static_cast<size_t>(job.own_bounds) + static_cast<size_t>(params.starts));
  d.staged_rows = static_cast<int>(std::clamp<size_t>(kStagedBytes / (4 * stride), 1, count));
  const size_t rows = static_cast<size_t>(d.staged_rows);
  d.vectors.allocate(rows * stride);
  d.labels.allocate(rows);
  d.problems.allocate(rows);
  d.slots.allocate(count);
  d.flags.allocate(count);
  d.staged = {d.vectors.data, stride, d.labels.data, d.problems.data, job.own_bounds};
  d.wait("preparing the slots");
}

CudaTile::~CudaTile() = default;

int CudaTile::fill() {
  ++round_;
  fresh_ = false;
  if (round_ % kPollRounds != 0 && !rows_.empty()) return static_cast<int>(rows_.size());
  device_->select();
  harvest(false);
  refill();
  fresh_ = true;
  rows_.clear();
  for (int slot = 0; slot < slots_; ++slot)
    if (index_[static_cast<size_t>(slot)] >= 0) rows_.push_back(slot);
  device_->wait("filling the slots");
  device_->list_rows(rows_.data(), static_cast<int>(rows_.size()));
  return static_cast<int>(rows_.size());
}

// Delivers the images that are done; all of them, the others as interrupted.
void CudaTile::harvest(bool all) {
  Device& d = *device_;
  d.expect(cudaMemcpyAsync(d.flags.data, d.done, static_cast<size_t>(slots_),
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
    d.launch("collect", cuda::collect_kernel, count, 1, 0, d.run, d.staged);
    d.wait("collecting results");
    for (int row = 0; row < count; ++row) {
      const size_t slot = static_cast<size_t>(ready[first + static_cast<size_t>(row)]);
      State& state = d.problems.data[row].state;
      if (state.phase != Phase::done) state.status = Status::interrupted;
      deliver(params_, job_, feed_, index_[slot], state,
              d.staged.vectors + static_cast<size_t>(row) * d.staged.stride);
      index_[slot] = -1;
    }
  }
}

void CudaTile::refill() {
  Device& d = *device_;
  const size_t n = static_cast<size_t>(params_.n);
  const size_t starts = n * static_cast<size_t>(params_.starts);
  int slot = 0;
  while (slot < slots_ && !feed_.stop && feed_.next < job_.count) {
    std::vector<int> taken;
    for (; slot < slots_ && static_cast<int>(taken.size()) < d.staged_rows; ++slot) {
      if (index_[static_cast<size_t>(slot)] >= 0) continue;
      const int64_t index = feed_.next.fetch_add(1);
      if (index >= job_.count) break;
      const size_t at = static_cast<size_t>(index);
      float* to = d.vectors.data + taken.size() * d.staged.stride;
      to = std::copy_n(job_.images + at * n, n, to);
      if (job_.own_bounds) {
        to = std::copy_n(job_.lo + at * n, n, to);
        to = std::copy_n(job_.hi + at * n, n, to);
      }
      if (starts > 0) std::copy_n(job_.starts + at * starts, starts, to);
      d.labels.data[taken.size()] = job_.labels[index];
      index_[static_cast<size_t>(slot)] = index;
      began_[static_cast<size_t>(slot)] = round_;
      taken.push_back(slot);
    }
    if (taken.empty()) return;
    const int count = static_cast<int>(taken.size());
    d.list_rows(taken.data(), count);
    d.launch("begin", cuda::begin_kernel, count, d.ranks, shared_bytes(params_), d.run, d.staged);
    d.wait("beginning images");
  }
}

void CudaTile::gather(float* x, float* k) {
  device_->select();
  device_->launch("gather", cuda::gather_kernel, static_cast<int>(rows_.size()), 1, 0, device_->run,
                  x, k);
}

void CudaTile::heads(const float* logits, float* seeds) {
  device_->select();
  device_->launch("head", cuda::head_kernel, static_cast<int>(rows_.size()), 1,
                  shared_bytes(params_), device_->run, logits, seeds);
}

void CudaTile::advance(const float* gradients) {
  device_->select();
  device_->launch("advance", cuda::advance_kernel, static_cast<int>(rows_.size()), device_->ranks,
                  shared_bytes(params_), device_->run, gradients);
}

void CudaTile::interrupt() {
  if (device_->failed) return;  // a failed context answers nothing
  device_->select();
  harvest(true);
}

}  // namespace advcore

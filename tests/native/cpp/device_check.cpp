// The host's part of a CudaQueue on a stand-in for the CUDA runtime: images that arrive while the
// rounds go on, several fillings of the device, a stop, a failure. The rounds are the CPU's, so the
// results are those of `solve` bit for bit.
#define cuda checked_cuda  // the engine has these names too
#define cuda_status checked_cuda_status
#define cuda_probe checked_cuda_probe
#define cuda_queue_missing checked_queue_missing
#define CudaQueue CheckedQueue

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/lsan_interface.h>
#endif

#include <atomic>
#include <thread>

#include "check.h"
#include "cuda/device.cu"  // NOLINT
#include "cuda/queue.cu"   // NOLINT
#include "job_arrays.h"
#include "network_rows.h"

namespace {

using advcore::CudaArena;
using advcore::CudaQueue;
using advcore::Job;
using advcore::Params;
using advcore::Problem;
using advcore::Status;

// What the kernels of a round do, by the engine of the CPU.
struct Rounds {
  Rounds(const Network& network, const Params& params, int slots)
      : network(network),
        params(params),
        batch(network, slots),
        scales(static_cast<size_t>(slots)) {
    for (auto& of_slot : scales) of_slot.resize(static_cast<size_t>(network.scales()));
  }
  void evaluate() {
    const int count = *rows_of_round;
    batch.rows = count;
    std::vector<int> paired;
    for (int r = 0; r < count; ++r) {
      const size_t row = static_cast<size_t>(r), slot = static_cast<size_t>(rows[r]);
      const advcore::State& s = slots.problems[slot].state;
      std::copy_n(slots.problems[slot].trial, params.n, batch.x.row[row]);
      std::copy(scales[slot].begin(), scales[slot].end(), batch.scales.row[row]);
      batch.k[row] = s.request.k, batch.record_scales[row] = s.request.record_scales;
      if (s.request.want_gradient) paired.push_back(r);
    }
    batch.forward();
    for (int r = 0; r < count; ++r) {
      const size_t row = static_cast<size_t>(r), slot = static_cast<size_t>(rows[r]);
      std::copy_n(batch.scales.row[row], scales[slot].size(), scales[slot].begin());
      network.isa().margin_loss(params, slots.problems[slot].state, batch.logits.row[row],
                                batch.dlogits.row[row]);
    }
    batch.backward(paired);
    for (const int r : paired)
      std::copy_n(batch.dx.row[static_cast<size_t>(r)], params.n,
                  slots.problems[rows[r]].trial_gradient);
  }
  const Network& network;
  const Params& params;
  NetworkRows batch;
  std::vector<std::vector<float>> scales;
  advcore::SlotRows slots{};
  const int* rows = nullptr;
  const int* rows_of_round = nullptr;
};
const Network* solved = nullptr;
int advances = 0, advances_before = -1;  // blocks of `advance`, and those before the first round

// A device that hangs: kernels wait while it is held, and do nothing once it was let go.
std::atomic<bool> held = false, let_go = false;
struct LettingGo {
  ~LettingGo() { let_go = true, held = false; }
};

// What an abandoned device holds stays, on purpose: it is no leak.
struct KeptByDevice {
#if defined(__SANITIZE_ADDRESS__)
  explicit KeptByDevice(bool abandoned) : abandoned(abandoned) {
    if (abandoned) __lsan_disable();
  }
  ~KeptByDevice() {
    if (abandoned) __lsan_enable();
  }
  const bool abandoned;
#else
  explicit KeptByDevice(bool) {}
#endif
};

}  // namespace

// The kernels of kernels.cu: of a queue only `advance` is asked for.
namespace advcore::cuda {
namespace {
void no_images(Run, Staged) {}
void no_rows(Run, float*, float*) {}
void no_head(Run, const float*, float*) {}
void advance(Run run, const float* gradients) {
  const int row = static_cast<int>(blockIdx.x);
  ++advances;
  if (let_go || row >= *run.count) return;
  const int slot = run.rows[row];
  expect(!gradients && !run.done[slot], "slot %d is in a round and done", slot);
  solved->isa().advance(run.params, run.problems[slot]);
  run.done[slot] = run.problems[slot].state.phase == Phase::done;
}
}  // namespace
const Kernels& kernels() {
  static const Kernels all{no_images, no_rows, no_head, advance, no_images};
  return all;
}
size_t shared_bytes(const Params&) { return 0; }
}  // namespace advcore::cuda

namespace {

enum class End { whole, stopped, failed, failed_in_capture, abandoned };

constexpr size_t kPiece = size_t{16} << 20;

struct Case {
  const char* name;
  int slots;
  int64_t count, capacity;
  bool own_bounds;
  size_t piece_bytes;
  End end;
};

void check(const Case& at, std::mt19937& rng) {
  const int n = 11;
  const Network network(random_layers({n, 9, 5}, Activation::relu, rng));
  solved = &network;
  Params params;
  params.n = n, params.stride = advcore::row_stride(n), params.classes = 5;
  params.targeted = false, params.smoothable = true, params.starts = at.own_bounds ? 2 : 0;
  params.schedule[0].smoothing[0] = 0.3f;
  params.schedule[0].temperature[0] = 0.02f;
  const size_t width = static_cast<size_t>(n), count = static_cast<size_t>(at.count);
  std::uniform_real_distribution<float> uniform(0, 1);
  std::vector<float> images(count * width), starts(2 * count * width);
  for (float& v : images) v = uniform(rng);
  for (float& v : starts) v = uniform(rng);
  std::vector<float> lo(at.own_bounds ? images.size() : width, 0.0f), hi(lo.size(), 1.0f);
  for (size_t i = 0; at.own_bounds && i < lo.size(); ++i) lo[i] = 0.1f * images[i];
  std::vector<int> labels(count);
  for (int& label : labels) label = static_cast<int>(rng() % 5);
  Job job;
  job.count = at.count, job.images = images.data(), job.labels = labels.data();
  job.lo = lo.data(), job.hi = hi.data(), job.own_bounds = at.own_bounds;
  job.starts = at.own_bounds ? starts.data() : nullptr;
  Job expected_job = job;
  Arrays expected(expected_job, width), found(job, width);
  advcore::WorkQueue expected_work, work;
  advcore::solve(network, params, expected_job, 1, 8, expected_work,
                 [](const advcore::Counts&) { return true; });
  advcore::clear_numbers(job);

  fake::launches = 0, fake::fails_at = at.end == End::failed ? 8 : -1;
  fake::fails_in_capture = at.end == End::failed_in_capture;
  held = at.end == End::abandoned, let_go = false;
  advances = 0, advances_before = -1;
  const CudaArena arena = advcore::cuda_arena(params, at.own_bounds, at.slots, at.capacity);
  const advcore::AlignedFloats memory = advcore::allocate(arena.bytes / sizeof(float));
  std::memset(memory.get(), 0x7f, arena.bytes);  // what it was before is nothing to rely on
  fake::Stream stream;
  const LettingGo letting_go;
  Rounds rounds(network, params, at.slots);
  fake::foreign["evaluate"] = [](void** arguments, unsigned) {
    if (advances_before < 0) advances_before = advances;
    while (held) std::this_thread::yield();
    if (!let_go) (*static_cast<Rounds**>(arguments[0]))->evaluate();
  };
  const KeptByDevice kept_by_device(at.end == End::abandoned);
  CudaQueue queue(params, job, work, at.slots, at.capacity, 0, memory.get(), &stream,
                  at.piece_bytes);
  rounds.slots = queue.slot_rows();
  rounds.rows = queue.rows(), rounds.rows_of_round = queue.count();
  Rounds* const pointer = &rounds;
  queue.add({"code",
             "evaluate",
             {1, 1, 1},
             32,
             0,
             {std::string(reinterpret_cast<const char*>(&pointer), sizeof pointer)}});
  int64_t seen = 0;
  bool raised = false;
  try {
    for (int waits = 0; !queue.wait(0.002); ++waits) {
      expect(queue.counts().finished >= seen, "%s: fewer images are finished than before", at.name);
      seen = queue.counts().finished;
      if (at.end == End::stopped && seen > 0) queue.stop();
      if (at.end == End::abandoned && waits == 5) {
        queue.abandon();
        break;
      }
      if (waits > 20000) return expect(false, "%s: does not end", at.name);
    }
  } catch (const std::runtime_error& error) {
    raised = std::string(error.what()).find("unspecified launch failure") != std::string::npos;
  }
  expect(raised == (at.end == End::failed || at.end == End::failed_in_capture), "%s: raised is %d",
         at.name, raised);
  fake::current_device = 5;  // which the end of the queue must leave
  expect(fake::open_captures == 0, "%s: a capture is open", at.name);
  if (at.end == End::whole) {
    // The kernel's stack is taken by a launch of its own, for no row, before the graph.
    expect(advances_before == at.slots, "%s: %d blocks of advance before the first round", at.name,
           advances_before);
    expect(found.same(expected), "%s: results differ from those of solve", at.name);
    expect(queue.counts().finished == at.count &&
               queue.counts().succeeded == expected_work.counts().succeeded &&
               queue.counts().evaluations == expected_work.counts().evaluations &&
               queue.rounds() > 0,
           "%s: counted %ld images", at.name, static_cast<long>(queue.counts().finished));
    const int64_t fillings = (at.count + at.capacity - 1) / at.capacity;
    expect(queue.fillings() == fillings, "%s: %d fillings", at.name, queue.fillings());
    return;
  }
  int64_t interrupted = 0, ended = 0;
  for (size_t i = 0; i < count; ++i) {
    const bool stopped = job.status[i] == static_cast<int8_t>(Status::interrupted);
    (stopped ? interrupted : ended) += 1;
    if (!stopped)
      expect(job.distortion[i] == expected_job.distortion[i], "%s: image %zu differs", at.name, i);
    const float* const image = job.adversarial + i * width;
    if (!job.success[i])
      expect(std::equal(image, image + n, job.images + i * width), "%s: image %zu is not clean",
             at.name, i);
  }
  const bool begins = at.end == End::stopped || at.end == End::failed;
  expect((ended > 0) == begins && interrupted > 0, "%s: %ld ended, %ld interrupted", at.name,
         static_cast<long>(ended), static_cast<long>(interrupted));
}

// The reason where there is no device, for each answer of the runtime.
void check_status() {
  struct {
    cudaError_t error;
    int driver;
    const char* reason;
  } const answers[] = {
      {cudaErrorInsufficientDriver, 0, "no NVIDIA driver"},
      {cudaErrorInsufficientDriver, 12040,
       "the NVIDIA driver supports CUDA 12.4, this build needs 13.0"},
      {cudaErrorNotReady, 13000, "unspecified launch failure"},
      {cudaSuccess, 13000, ""},
  };
  for (const auto& answer : answers) {
    fake::count_error = answer.error, fake::driver = answer.driver;
    const advcore::CudaStatus status = advcore::cuda_status();
    expect(status.built && status.devices == (answer.error == cudaSuccess), "devices");
    expect(status.reason == answer.reason, "reason: %s", status.reason.c_str());
  }
}

}  // namespace

int main() {
  std::mt19937 rng(3);
  check_status();
  const Case cases[] = {
      {"one filling", 16, 100, 100, false, kPiece, End::whole},
      {"several fillings", 40, 150, 64, true, kPiece, End::whole},
      {"images that come late", 7, 100, 60, true, 1, End::whole},
      {"one slot", 1, 4, 1, false, kPiece, End::whole},
      {"a stop", 8, 3000, 3000, false, kPiece, End::stopped},
      {"a stop before the last images", 8, 3000, 1000, false, 1, End::stopped},
      {"a failure", 16, 100, 40, false, kPiece, End::failed},
      {"a failure in the capture", 16, 100, 100, false, kPiece, End::failed_in_capture},
      {"a device that hangs", 16, 100, 100, false, kPiece, End::abandoned},
  };
  for (const Case& at : cases) {
    check(at, rng);
    expect(fake::current_device == 5, "%s: the current device is another one", at.name);
  }
  std::printf("%s device: %zu runs\n", advcore::isa().name, sizeof cases / sizeof *cases);
  if (failures) std::printf("%d checks failed\n", failures);
  return failures ? 1 : 0;
}

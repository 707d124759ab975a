// The host's part of a CudaSlotPool on a stand-in for the CUDA runtime. Its rounds are the CPU's,
// so the results are those of `solve` bit for bit. Rounds without a smoothed row are evaluated on
// the exact network, whatever their rows ask for: a row that does not wait there gets wrong values.
#define cuda checked_cuda  // the engine has these names too
#define cuda_status checked_cuda_status
#define cuda_probe checked_cuda_probe
#define CudaSlotPool CheckedSlotPool

#include "check.h"
#include "cuda/device.cu"     // NOLINT
#include "cuda/slot_pool.cu"  // NOLINT
#include "job_arrays.h"
#include "network_rows.h"

namespace {

using advcore::CudaSlotPool;
using advcore::Job;
using advcore::kPadLogit;
using advcore::Params;
using advcore::Phase;
using advcore::Problem;

int waits = 0;  // evaluations of rows that asked for a smoothed network in an exact round

}  // namespace

// The kernels of kernels.cu, a block at a time.
namespace advcore::cuda {
namespace {

int slot_of(const Run& run) { return run.rows[blockIdx.x]; }

void begin(Run run, Staged staged) {
  Problem& p = run.problems[slot_of(run)];
  std::copy_n(staged.vectors + blockIdx.x * staged.stride, run.params.n, p.x0);
  isa().begin(run.params, p, staged.labels[blockIdx.x]);
  run.done[slot_of(run)] = run.smoothed[slot_of(run)] = 0;
}

void gather(Run run, float* x, float* k) {
  const Problem& p = run.problems[slot_of(run)];
  const size_t n = static_cast<size_t>(run.params.n);
  std::copy_n(p.trial, n, x + blockIdx.x * n);
  k[blockIdx.x] = p.state.request.k;
}

bool is_waiting(const Run& run) { return run.exact && run.smoothed[slot_of(run)]; }

void margin_loss(Run run, const float* logits, float* dlogits) {
  const size_t classes = static_cast<size_t>(run.params.classes);
  State& s = run.problems[slot_of(run)].state;
  alignas(64) float z[2 * kPad];
  std::copy_n(logits + blockIdx.x * classes, classes, z);
  std::fill(z + classes, z + kPad, kPadLogit);
  std::fill(z + kPad, z + 2 * kPad, 0.0f);
  waits += is_waiting(run);
  if (s.phase != Phase::done && !is_waiting(run)) isa().margin_loss(run.params, s, z, z + kPad);
  std::copy_n(z + kPad, classes, dlogits + blockIdx.x * classes);
}

void advance(Run run, const float* gradients) {
  const int slot = slot_of(run);
  if (run.done[slot] || is_waiting(run)) return;
  Problem& p = run.problems[slot];
  const size_t n = static_cast<size_t>(run.params.n);
  if (p.state.request.want_gradient) std::copy_n(gradients + blockIdx.x * n, n, p.trial_gradient);
  isa().advance(run.params, p);
  run.done[slot] = p.state.phase == Phase::done;
  run.smoothed[slot] = p.state.request.k > 0;
}

void collect(Run run, Staged staged) {
  const Problem& p = run.problems[slot_of(run)];
  const float* const best = p.state.best.norm < kNone ? p.best : p.x0;
  std::copy_n(best, run.params.n, staged.vectors + blockIdx.x * staged.stride);
  staged.problems[blockIdx.x] = p;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels all{begin, gather, margin_loss, advance, collect};
  return all;
}
size_t shared_bytes(const Params&) { return 0; }

}  // namespace advcore::cuda

namespace {

struct Case {
  const char* name;
  Activation activation;
  float smoothing[2];  // of the two stages
  int slots, images;
  bool wants_waits;  // whether a row comes to ask for a smoothed network in an exact round
};

void check(const Case& at, std::mt19937& rng) {
  const int n = 11, classes = 5;
  const Network network(random_layers({n, 9, classes}, at.activation, rng));
  Params params;
  params.n = n, params.stride = advcore::row_stride(n), params.classes = classes;
  params.targeted = true, params.smoothable = true, params.schedules = 2;
  for (advcore::Schedule& schedule : params.schedule) {
    schedule.stages = 2;
    std::copy_n(at.smoothing, 2, schedule.smoothing);
    std::fill_n(schedule.budget, 2, 20);
    std::fill_n(schedule.temperature, 2, 0.02f);
  }
  const size_t width = static_cast<size_t>(n), count = static_cast<size_t>(at.images);
  std::uniform_real_distribution<float> uniform(0, 1);
  std::vector<float> images(count * width);
  for (float& v : images) v = uniform(rng);
  const std::vector<float> lo(width, 0.0f), hi(width, 1.0f);
  std::vector<int> labels(count);
  for (int& label : labels) label = static_cast<int>(rng() % 5);
  Job job;
  job.count = at.images, job.images = images.data(), job.labels = labels.data();
  job.lo = lo.data(), job.hi = hi.data();
  Job expected_job = job;
  Arrays expected(expected_job, width), found(job, width);
  advcore::WorkQueue expected_work, work;
  advcore::solve(network, params, expected_job, 1, 8, expected_work,
                 [](const advcore::Counts&) { return true; });
  advcore::clear_results(params, job);

  const advcore::CudaArena arena = advcore::cuda_arena(params, false, at.slots);
  const advcore::AlignedFloats memory = advcore::allocate(arena.bytes / sizeof(float));
  std::memset(memory.get(), 0x7f, arena.bytes);
  fake::Stream stream;
  CudaSlotPool pool(params, job, work, at.slots, 0, memory.get(), &stream);
  const size_t slots = static_cast<size_t>(at.slots);
  std::vector<std::vector<float>> scales(slots);
  for (auto& of_slot : scales) of_slot.resize(static_cast<size_t>(network.scales()));
  std::vector<float> x(slots * width), k(slots), logits(slots * classes), dlogits(logits.size());
  std::vector<float> gradients(x.size());
  int rounds = 0, exact = 0;
  waits = 0;
  while (const int rows = pool.refill()) {
    if (++rounds > 20000) return expect(false, "%s: does not end", at.name);
    pool.gather(x.data(), k.data());
    stream.wait();
    NetworkRows batch(network, rows);
    exact += !pool.smoothed();
    for (int r = 0; r < rows; ++r) {
      const size_t row = static_cast<size_t>(r);
      const int slot = pool.rows()[row];
      const std::vector<float>& known = scales[static_cast<size_t>(slot)];
      std::copy_n(x.data() + row * width, width, batch.x.row[row]);
      std::copy(known.begin(), known.end(), batch.scales.row[row]);
      batch.k[row] = pool.smoothed() ? k[row] : 0;
      batch.record_scales[row] = pool.fresh() && pool.is_new(slot);
    }
    batch.forward();
    for (int r = 0; r < rows; ++r) {
      const size_t row = static_cast<size_t>(r), slot = static_cast<size_t>(pool.rows()[row]);
      std::copy_n(batch.scales.row[row], scales[slot].size(), scales[slot].begin());
      std::copy_n(batch.logits.row[row], classes, logits.data() + row * classes);
    }
    pool.margin_losses(logits.data(), dlogits.data());
    stream.wait();
    for (int r = 0; r < rows; ++r) {
      const size_t row = static_cast<size_t>(r);
      std::copy_n(dlogits.data() + row * classes, classes, batch.dlogits.row[row]);
    }
    batch.backward(batch.all);
    for (int r = 0; r < rows; ++r) {
      const size_t row = static_cast<size_t>(r);
      std::copy_n(batch.dx.row[row], width, gradients.data() + row * width);
    }
    pool.advance(gradients.data());
    stream.wait();
  }
  expect(found.same(expected), "%s: results differ from those of solve", at.name);
  const bool all = at.smoothing[0] == 0 && at.smoothing[1] == 0;
  expect(exact > 0 && (exact == rounds) == all, "%s: %d of %d rounds are exact", at.name, exact,
         rounds);
  expect(waits > 0 || !at.wants_waits, "%s: no row waits", at.name);
}

}  // namespace

int main() {
  std::mt19937 rng(3);
  const Case cases[] = {
      {"no smoothing", Activation::relu, {0, 0}, 7, 60, false},
      {"smoothed first", Activation::relu, {0.3f, 0.1f}, 7, 60, false},
      {"smoothed first, one slot", Activation::relu, {0.3f, 0.1f}, 1, 8, true},
      {"smoothed later", Activation::sigmoid, {0, 0.3f}, 7, 60, true},
  };
  for (const Case& at : cases) check(at, rng);
  std::printf("%s slot pool: %zu runs\n", advcore::isa().name, sizeof cases / sizeof *cases);
  if (failures) std::printf("%d checks failed\n", failures);
  return failures ? 1 : 0;
}

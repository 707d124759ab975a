// The refill between two rounds of a CudaQueue, by groups of host threads, with rounds of a native
// network around it: every image comes out once, bit for bit as from `solve`, whatever the slots
// and the order in which images arrive. Under ThreadSanitizer a race within or between groups is an
// error.
#include <barrier>
#include <thread>

#include "check.h"
#include "engine.h"
#include "job_arrays.h"
#include "network_rows.h"

#define ADVCORE_NS advcore::queued

#include "cuda/refill.h"

namespace {

using advcore::Job;
using advcore::Outcome;
using advcore::Params;
using advcore::Problem;
namespace queued = advcore::queued;

constexpr int kThreads = 2;  // of a group

struct HostThreads {
  std::barrier<>& all;
  int number;

  template <class F>
  void each(int n, F f) const {
    for (int i = number; i < n; i += kThreads) f(i);
  }
  bool first() const { return number == 0; }
  void sync() const { all.arrive_and_wait(); }
  void fence() const {}
  int64_t read(const int64_t* at) const { return __atomic_load_n(at, __ATOMIC_RELAXED); }
  template <class T>
  T add(T* at, T value) const {
    return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
  }
  int64_t add(int64_t* at, int value) const { return add<int64_t>(at, value); }
  int64_t swap(int64_t* at, int64_t old, int64_t value) const {
    __atomic_compare_exchange_n(at, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return old;
  }
};

void refill(const queued::Refill& refill) {
  std::vector<std::thread> threads;
  const int groups = (refill.slots + queued::kGroupSlots - 1) / queued::kGroupSlots;
  std::vector<std::unique_ptr<std::barrier<>>> barriers;
  std::vector<queued::GroupScratch> scratch(static_cast<size_t>(groups));
  for (int g = 0; g < groups; ++g) {
    barriers.push_back(std::make_unique<std::barrier<>>(kThreads));
    for (int i = 0; i < kThreads; ++i)
      threads.emplace_back([&refill, &scratch, &all = *barriers.back(), g, i] {
        queued::refill_group(HostThreads{all, i}, refill, g * queued::kGroupSlots,
                             scratch[static_cast<size_t>(g)]);
      });
  }
  for (std::thread& thread : threads) thread.join();
  refill.state->rows = refill.state->listed;
  refill.state->listed = 0;
}

struct Case {
  int n, slots;
  int64_t count;
  bool own_bounds;
  int starts;
  Activation activation;
  int64_t arriving;   // images a round
  int rounds_before;  // a stop; 0: none
};

void check_run(const Case& at, std::mt19937& rng) {
  const Network network(random_layers({at.n, 9, 5}, at.activation, rng));
  const advcore::IsaTable& isa = network.isa();
  Params params;
  params.n = at.n, params.stride = advcore::row_stride(at.n), params.classes = 5;
  params.targeted = rng() % 2, params.starts = at.starts, params.smoothable = network.smoothable();
  if (params.smoothable) {
    params.schedule[0].stages = 2;
    params.schedule[0].smoothing[0] = 0.5f, params.schedule[0].smoothing[1] = 0;
    params.schedule[0].budget[0] = params.schedule[0].budget[1] = 20;
    params.schedule[0].temperature[0] = params.schedule[0].temperature[1] = 0.02f;
  }
  const size_t n = static_cast<size_t>(at.n), count = static_cast<size_t>(at.count);
  std::uniform_real_distribution<float> uniform(0, 1);
  const auto random_rows = [&](size_t rows) {
    std::vector<float> out(rows * n);
    for (float& v : out) v = uniform(rng);
    return out;
  };
  const std::vector<float> images = random_rows(count);
  const std::vector<float> starts = random_rows(count * static_cast<size_t>(at.starts));
  std::vector<float> lo(at.own_bounds ? count * n : n, 0.0f), hi(lo.size(), 1.0f);
  if (at.own_bounds)
    for (size_t i = 0; i < lo.size(); ++i)
      lo[i] = images[i] * 0.2f, hi[i] = 0.8f + images[i] * 0.2f;
  std::vector<int> labels(count);
  for (int& label : labels) label = static_cast<int>(rng() % 5);

  Job job;
  job.count = at.count, job.images = images.data(), job.labels = labels.data();
  job.lo = lo.data(), job.hi = hi.data(), job.own_bounds = at.own_bounds;
  job.starts = at.starts > 0 ? starts.data() : nullptr;
  Job expected_job = job;
  Arrays expected(expected_job, n), found(job, n);
  advcore::WorkQueue expected_work, work;
  advcore::solve(network, params, expected_job, 1, 8, expected_work,
                 [](const advcore::Counts&) { return true; });
  advcore::clear_results(params, job);

  // What the queue has on the device.
  const size_t floats = advcore::slot_floats(params, at.own_bounds);
  const size_t own = static_cast<size_t>(params.starts * params.stride);
  const size_t slots = static_cast<size_t>(at.slots);
  const advcore::AlignedFloats arena = advcore::allocate(slots * (floats + own));
  const advcore::AlignedFloats bounds = advcore::allocate(2 * static_cast<size_t>(params.stride));
  if (!at.own_bounds) std::copy_n(hi.data(), n, bounds.get() + params.stride);
  std::vector<Problem> problems(slots);
  for (size_t i = 0; i < slots; ++i) {
    problems[i].lo = bounds.get(), problems[i].hi = bounds.get() + params.stride;
    float* const memory = arena.get() + i * (floats + own);
    advcore::carve_slot(params, at.own_bounds, memory, problems[i]);
    problems[i].starts = memory + floats;
  }
  std::vector<uint8_t> done(slots, 1);
  std::vector<int> rows(slots);
  std::vector<Outcome> outcomes(count);
  queued::QueueState state{};
  state.total = at.count;
  queued::Refill arguments{
      params,
      {images.data(), n, at.own_bounds ? lo.data() : nullptr, at.own_bounds ? hi.data() : nullptr,
       n, job.starts, n * static_cast<size_t>(at.starts), labels.data()},
      problems.data(),
      done.data(),
      at.slots,
      rows.data(),
      job.adversarial,
      outcomes.data(),
      &state,
      false};

  NetworkRows batch(network, at.slots);
  std::vector<std::vector<float>> scales(slots, std::vector<float>(2));
  int round = 0;
  for (;; ++round) {
    state.available = std::min(at.count, (round + 1) * at.arriving);
    refill(arguments);
    if (state.rows == 0 && state.next == state.total) break;
    if (at.rounds_before > 0 && round == at.rounds_before) break;
    if (round > 20000) return expect(false, "not done after %d rounds", round);
    std::vector<int> paired;
    std::vector<bool> listed(slots);
    batch.rows = state.rows;
    for (int r = 0; r < state.rows; ++r) {
      const size_t slot = static_cast<size_t>(rows[static_cast<size_t>(r)]),
                   row = static_cast<size_t>(r);
      expect(!listed[slot], "slot %zu is listed twice", slot);
      listed[slot] = true;
      const Problem& p = problems[slot];
      std::copy_n(p.trial, n, batch.x.row[row]);
      std::copy_n(scales[slot].data(), 2, batch.scales.row[row]);
      batch.k[row] = p.state.request.k, batch.record_scales[row] = p.state.request.record_scales;
      if (p.state.request.want_gradient) paired.push_back(r);
    }
    batch.forward();
    for (int r = 0; r < state.rows; ++r) {
      const size_t slot = static_cast<size_t>(rows[static_cast<size_t>(r)]),
                   row = static_cast<size_t>(r);
      std::copy_n(batch.scales.row[row], 2, scales[slot].data());
      isa.margin_loss(params, problems[slot].state, batch.logits.row[row], batch.dlogits.row[row]);
    }
    batch.backward(paired);
    for (int r = 0; r < state.rows; ++r) {
      const size_t slot = static_cast<size_t>(rows[static_cast<size_t>(r)]);
      Problem& p = problems[slot];
      if (p.state.request.want_gradient)
        std::copy_n(batch.dx.row[static_cast<size_t>(r)], n, p.trial_gradient);
      isa.advance(params, p);
      done[slot] = p.state.phase == advcore::Phase::done;
    }
  }
  arguments.drain = true;
  refill(arguments);
  int64_t written = 0;
  for (size_t i = 0; i < count; ++i) {
    if (!outcomes[i].written) continue;
    ++written;
    advcore::write_result(params, job, work, static_cast<int64_t>(i), outcomes[i], nullptr);
  }
  expect(state.counts.finished == written && state.counts.succeeded == work.counts().succeeded &&
             state.counts.evaluations == work.counts().evaluations,
         "counted %ld images, written %ld", static_cast<long>(state.counts.finished),
         static_cast<long>(written));
  for (const Problem& p : problems)
    expect(p.index == -1, "a slot still has image %ld", static_cast<long>(p.index));
  if (at.rounds_before == 0) {
    expect(written == at.count, "%ld of %ld images written", static_cast<long>(written),
           static_cast<long>(at.count));
    expect(found.same(expected), "results differ from those of solve");
    return;
  }
  const int8_t interrupted = static_cast<int8_t>(advcore::Status::interrupted);
  int64_t stopped = 0;
  for (size_t i = 0; i < count; ++i) {
    if (outcomes[i].written && job.status[i] != interrupted)
      expect(job.distortion[i] == expected_job.distortion[i], "image %zu ended elsewhere", i);
    if (!outcomes[i].written)
      expect(job.status[i] == interrupted && !job.success[i], "image %zu never began", i);
    stopped += job.status[i] == interrupted;
  }
  expect(state.next == written && stopped > 0 && stopped < at.count && written < at.count,
         "%ld images taken, %ld written, %ld interrupted", static_cast<long>(state.next),
         static_cast<long>(written), static_cast<long>(stopped));
}

}  // namespace

int main() {
  std::mt19937 rng(7);
  const Case cases[] = {
      {6, 1, 5, false, 0, Activation::tanh, 100, 0},
      {6, 70, 120, false, 0, Activation::relu, 1000, 0},
      {17, 40, 60, true, 2, Activation::relu, 7, 0},
      {6, 33, 20, true, 0, Activation::sigmoid, 3, 0},
      {6, 40, 150, false, 0, Activation::relu, 1000, 40},
  };
  for (const Case& at : cases) check_run(at, rng);
  std::printf("%s queue: %zu runs\n", advcore::isa().name, sizeof cases / sizeof *cases);
  if (failures) std::printf("%d checks failed\n", failures);
  return failures ? 1 : 0;
}

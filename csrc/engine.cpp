#include "engine.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>

namespace advcore {
void clear_numbers(const Job& job) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (int64_t i = 0; i < job.count; ++i) {
    job.success[i] = 0;
    job.distortion[i] = inf;
    job.margin[i] = job.c[i] = job.penalty[i] = nan;
    job.prediction[i] = -1;
    job.status[i] = static_cast<int8_t>(Status::interrupted);
    job.evaluations[i] = job.forwards[i] = job.iterations[i] = job.rescues[i] = 0;
  }
}

void keep_clean(const Params& params, const Job& job, int64_t first) {
  const size_t n = static_cast<size_t>(params.n), offset = static_cast<size_t>(first) * n;
  if (first < job.count)
    std::memcpy(job.adversarial + offset, job.images + offset,
                (static_cast<size_t>(job.count) * n - offset) * sizeof(float));
}

void clear_results(const Params& params, const Job& job) {
  keep_clean(params, job, 0);
  clear_numbers(job);
}

void WorkQueue::add(const Counts& more) {
  const std::lock_guard lock(mutex_);
  add_counts(counts_, more, [](int64_t& total, int64_t value) { total += value; });
}

Counts WorkQueue::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

void write_result(const Params& params, const Job& job, WorkQueue& work, int64_t index,
                  const Outcome& o, const float* best) {
  const size_t i = static_cast<size_t>(index), n = static_cast<size_t>(params.n);
  const bool success = o.distortion < kNone;
  if (best) std::copy_n(success ? best : job.images + i * n, n, job.adversarial + i * n);
  job.success[i] = success;
  if (success) job.distortion[i] = o.distortion;
  if (o.margin > -kNone) job.margin[i] = o.margin;
  if (o.c > 0) job.c[i] = o.c;
  if (o.penalty >= 0) job.penalty[i] = o.penalty;
  job.prediction[i] = o.prediction;
  job.status[i] = static_cast<int8_t>(o.status);
  job.evaluations[i] = o.evaluations;
  job.forwards[i] = o.forwards;
  job.iterations[i] = o.iterations;
  job.rescues[i] = o.rescues;
  work.add(counts_of(o));
}

SlotPool::SlotPool(const Params& params, const Job& job, WorkQueue& work, int slots,
                   const IsaTable& isa)
    : params_(params), job_(job), work_(work), isa_(isa), slots_(static_cast<size_t>(slots)) {
  const size_t floats = slot_floats(params, job.own_bounds);
  arena_ = allocate(floats * slots_.size());
  bounds_ = allocate(2 * static_cast<size_t>(params.stride));
  active_.reserve(slots_.size());
  float* const hi = bounds_.get() + params.stride;
  if (!job.own_bounds) {
    std::copy_n(job.lo, params.n, bounds_.get());
    std::copy_n(job.hi, params.n, hi);
  }
  for (size_t i = 0; i < slots_.size(); ++i) {
    slots_[i].lo = bounds_.get();
    slots_[i].hi = hi;
    carve_slot(params, job.own_bounds, arena_.get() + i * floats, slots_[i]);
  }
}

void SlotPool::admit(Problem& p, int64_t index) {
  const size_t n = static_cast<size_t>(params_.n), offset = static_cast<size_t>(index) * n;
  p.index = index;
  std::copy_n(job_.images + offset, n, p.x0);
  if (job_.own_bounds) {
    std::copy_n(job_.lo + offset, n, const_cast<float*>(p.lo));
    std::copy_n(job_.hi + offset, n, const_cast<float*>(p.hi));
  }
  if (job_.starts) p.starts = job_.starts + offset * static_cast<size_t>(params_.starts);
  isa_.begin(params_, p, job_.labels[index]);
}

void SlotPool::retire(Problem& p) {
  write_result(params_, job_, work_, p.index, outcome_of(p.state), p.best);
  p.index = -1;
}

int SlotPool::refill() {
  active_.clear();
  for (Problem& p : slots_) {
    if (p.index >= 0 || work_.stop.load(std::memory_order_relaxed)) continue;
    if (work_.next.load(std::memory_order_relaxed) >= job_.count) continue;
    const int64_t index = work_.next.fetch_add(1, std::memory_order_relaxed);
    if (index < job_.count) admit(p, index);
  }
  for (const bool gradient : {true, false}) {
    for (size_t i = 0; i < slots_.size(); ++i)
      if (slots_[i].index >= 0 && slots_[i].state.request.want_gradient == gradient)
        active_.push_back(static_cast<int>(i));
    if (gradient) gradient_rows_ = rows();
  }
  return rows();
}

void SlotPool::advance() {
  for (int row = 0; row < rows(); ++row) {
    Problem& p = problem(row);
    isa_.advance(params_, p);
    if (p.state.phase == Phase::done) retire(p);
  }
}

void SlotPool::gather(float* x, float* k, int32_t* slots, bool* record_scales) {
  for (int row = 0; row < rows(); ++row) {
    const Problem& p = problem(row);
    std::copy_n(p.trial, params_.n, x + static_cast<size_t>(row) * static_cast<size_t>(params_.n));
    k[row] = p.state.request.k;
    slots[row] = slot(row);
    record_scales[row] = p.state.request.record_scales;
  }
}

void SlotPool::margin_losses(const float* logits, float* dlogits) {
  const size_t classes = static_cast<size_t>(params_.classes);
  const size_t padded = static_cast<size_t>(advcore::padded(params_.classes));
  if (!logits_) logits_ = allocate(2 * padded);
  float* const z = logits_.get();
  for (int row = 0; row < rows(); ++row) {
    const size_t offset = static_cast<size_t>(row) * classes;
    std::copy_n(logits + offset, classes, z);
    std::fill(z + classes, z + padded, kPadLogit);
    margin_loss(row, z, z + padded);
    if (row < gradient_rows_) std::copy_n(z + padded, classes, dlogits + offset);
  }
}

void SlotPool::store_gradients(const float* gradients) {
  const size_t n = static_cast<size_t>(params_.n);
  for (int row = 0; row < gradient_rows_; ++row)
    std::copy_n(gradients + static_cast<size_t>(row) * n, n, problem(row).trial_gradient);
}

SlotRows SlotPool::slot_rows() { return {slots_.data(), arena_.get()}; }

void SlotPool::interrupt() {
  for (Problem& p : slots_) {
    if (p.index < 0) continue;
    State& s = p.state;
    const bool searching = s.phase == Phase::stage || s.phase == Phase::descent ||
                           s.phase == Phase::walk || s.phase == Phase::push ||
                           s.phase == Phase::polish_start;
    const float* const point = s.search.stage_best < kNone                           ? p.stage_point
                               : s.phase == Phase::descent || s.phase == Phase::walk ? p.trial
                                                                                     : p.x;
    const size_t n = static_cast<size_t>(params_.n);
    float* const target = job_.adversarial + static_cast<size_t>(p.index) * n;
    s.status = Status::interrupted;
    retire(p);
    if (searching && s.best.norm == kNone) std::copy_n(point, n, target);
  }
}

namespace {

// One thread: the rounds of a pool on a native network until no image is left.
void run_pool(const Network& network, const Params& params, const Job& job, int slots,
              WorkQueue& work) {
  const IsaTable& isa = network.isa();
  const PackedNetwork& net = network.packed();
  SlotPool pool(params, job, work, slots, isa);
  const size_t count = static_cast<size_t>(slots), per_row = static_cast<size_t>(net.scales);
  const size_t padded = static_cast<size_t>(advcore::padded(net.classes));
  const size_t scratch_floats = isa.scratch_bytes(net, slots) / sizeof(float);
  const AlignedFloats memory = allocate(scratch_floats + 2 * count * padded);
  Scratch& scratch = *isa.carve_scratch(net, slots, memory.get());
  float* const rows = memory.get() + scratch_floats;
  std::vector<float*> logits(count), dlogits(count), dx(count), scale_rows(count);
  std::vector<const float*> x(count);
  std::vector<float> scales(count * per_row), k(count);
  std::vector<uint8_t> record_scales(count);
  std::vector<int> all_rows(count);
  for (size_t i = 0; i < count; ++i) {
    logits[i] = rows + 2 * i * padded;
    dlogits[i] = logits[i] + padded;
    all_rows[i] = static_cast<int>(i);
  }
  while (!work.stop.load(std::memory_order_relaxed) && pool.refill() > 0) {
    const int active = pool.rows();
    for (int r = 0; r < active; ++r) {
      const size_t i = static_cast<size_t>(r);
      const Problem& p = pool.problem(r);
      x[i] = p.trial;
      dx[i] = p.trial_gradient;
      scale_rows[i] = scales.data() + static_cast<size_t>(pool.slot(r)) * per_row;
      k[i] = p.state.request.k;
      record_scales[i] = p.state.request.record_scales;
    }
    isa.forward(net, scratch, x.data(), active, k.data(), scale_rows.data(), record_scales.data(),
                logits.data());
    for (int r = 0; r < active; ++r)
      pool.margin_loss(r, logits[static_cast<size_t>(r)], dlogits[static_cast<size_t>(r)]);
    isa.backward(net, scratch, all_rows.data(), pool.gradient_rows(), dlogits.data(), dx.data());
    pool.advance();
  }
  pool.interrupt();
}

}  // namespace

void solve(const Network& network, const Params& params, const Job& job, int threads, int slots,
           WorkQueue& work, const std::function<bool(const Counts&)>& poll) {
  // The images are written by the threads: copied by the first one, they take 0.8 us each.
  clear_numbers(job);
  if (job.count == 0) return;
  threads = static_cast<int>(std::min<int64_t>(threads, job.count));
  slots = static_cast<int>(std::min<int64_t>(slots, (job.count + threads - 1) / threads));
  std::mutex mutex;
  std::condition_variable finished;
  std::exception_ptr error;
  int running = threads;
  const auto run_thread = [&] {
    std::exception_ptr caught;
    try {
      run_pool(network, params, job, slots, work);
    } catch (...) {
      caught = std::current_exception();
      work.stop = true;
    }
    const std::lock_guard lock(mutex);
    if (caught) error = caught;
    if (--running == 0) finished.notify_one();
  };
  std::vector<std::thread> workers;
  try {
    for (int i = 0; i < threads; ++i) workers.emplace_back(run_thread);
    std::unique_lock lock(mutex);
    while (!finished.wait_for(lock, std::chrono::milliseconds(50), [&] { return running == 0; })) {
      lock.unlock();
      if (!poll(work.counts())) work.stop = true;
      lock.lock();
    }
  } catch (...) {  // A thread could not start, or poll threw: the others are joined first.
    work.stop = true;
    for (std::thread& thread : workers) thread.join();
    throw;
  }
  for (std::thread& thread : workers) thread.join();
  if (error) std::rethrow_exception(error);
  keep_clean(params, job, std::min(work.next.load(), job.count));
}

}  // namespace advcore

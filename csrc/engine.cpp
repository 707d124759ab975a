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
  const size_t n = static_cast<size_t>(params.n), at = static_cast<size_t>(first) * n;
  if (first < job.count)
    std::memcpy(job.adversarial + at, job.images + at,
                (static_cast<size_t>(job.count) * n - at) * sizeof(float));
}

void clear_results(const Params& params, const Job& job) {
  keep_clean(params, job, 0);
  clear_numbers(job);
}

void deliver(const Params& params, const Job& job, Feed& feed, int64_t index, const Outcome& o,
             const float* best) {
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
  feed.finished.fetch_add(1, std::memory_order_relaxed);
  feed.succeeded.fetch_add(success, std::memory_order_relaxed);
  feed.evaluations.fetch_add(o.evaluations, std::memory_order_relaxed);
}

Tile::Tile(const Params& params, const Job& job, Feed& feed, int slots, const IsaTable& isa)
    : params_(params), job_(job), feed_(feed), isa_(isa), slots_(static_cast<size_t>(slots)) {
  const size_t floats = slot_floats(params, job.own_bounds);
  arena_ = allocate(floats * slots_.size());
  bounds_ = allocate(2 * static_cast<size_t>(params.stride));
  row_.reserve(slots_.size());
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

void Tile::load(Problem& p, int64_t index) {
  const size_t n = static_cast<size_t>(params_.n), at = static_cast<size_t>(index) * n;
  p.index = index;
  std::copy_n(job_.images + at, n, p.x0);
  if (job_.own_bounds) {
    std::copy_n(job_.lo + at, n, const_cast<float*>(p.lo));
    std::copy_n(job_.hi + at, n, const_cast<float*>(p.hi));
  }
  if (job_.starts) p.starts = job_.starts + at * static_cast<size_t>(params_.starts);
  isa_.begin(params_, p, job_.labels[index]);
}

void Tile::release(Problem& p) {
  deliver(params_, job_, feed_, p.index, outcome_of(params_, p.state), p.best);
  p.index = -1;
}

int Tile::fill() {
  row_.clear();
  for (Problem& p : slots_) {
    if (p.index >= 0 || feed_.stop.load(std::memory_order_relaxed)) continue;
    if (feed_.next.load(std::memory_order_relaxed) >= job_.count) continue;
    const int64_t index = feed_.next.fetch_add(1, std::memory_order_relaxed);
    if (index < job_.count) load(p, index);
  }
  for (const bool gradient : {true, false}) {
    for (size_t i = 0; i < slots_.size(); ++i)
      if (slots_[i].index >= 0 && slots_[i].state.request.want_gradient == gradient)
        row_.push_back(static_cast<int>(i));
    if (gradient) gradient_rows_ = rows();
  }
  return rows();
}

void Tile::advance() {
  for (int row = 0; row < rows(); ++row) {
    Problem& p = problem(row);
    isa_.advance(params_, p);
    if (p.state.phase == Phase::done) release(p);
  }
}

void Tile::gather(float* x, float* k, int32_t* slots, bool* measure) {
  for (int row = 0; row < rows(); ++row) {
    const Problem& p = problem(row);
    std::copy_n(p.trial, params_.n, x + static_cast<size_t>(row) * static_cast<size_t>(params_.n));
    k[row] = p.state.request.k;
    slots[row] = slot(row);
    measure[row] = p.state.request.record_scales;
  }
}

void Tile::heads(const float* logits, float* seeds) {
  const size_t classes = static_cast<size_t>(params_.classes);
  const size_t padded = static_cast<size_t>(advcore::padded(params_.classes));
  if (!logits_) logits_ = allocate(2 * padded);
  float* const z = logits_.get();
  for (int row = 0; row < rows(); ++row) {
    const size_t at = static_cast<size_t>(row) * classes;
    std::copy_n(logits + at, classes, z);
    std::fill(z + classes, z + padded, kPadLogit);
    head(row, z, z + padded);
    if (row < gradient_rows_) std::copy_n(z + padded, classes, seeds + at);
  }
}

void Tile::take_gradients(const float* gradients) {
  const size_t n = static_cast<size_t>(params_.n);
  for (int row = 0; row < gradient_rows_; ++row)
    std::copy_n(gradients + static_cast<size_t>(row) * n, n, problem(row).trial_gradient);
}

SlotRows Tile::slot_rows() { return {slots_.data(), arena_.get()}; }

void Tile::interrupt() {
  for (Problem& p : slots_) {
    if (p.index < 0) continue;
    State& s = p.state;
    const bool begun = s.phase == Phase::stage || s.phase == Phase::descent ||
                       s.phase == Phase::push || s.phase == Phase::polish_start;
    const float* const reached = s.search.stage_best < kNone ? p.stage_point
                                 : s.phase == Phase::descent ? p.trial
                                                             : p.x;
    const size_t n = static_cast<size_t>(params_.n);
    float* const to = job_.adversarial + static_cast<size_t>(p.index) * n;
    s.status = Status::interrupted;
    release(p);
    if (begun && s.best.norm == kNone) std::copy_n(reached, n, to);
  }
}

namespace {

// A tile of native rows: trial points in, logits, heads, seeds, gradients.
void run_tile(const Network& network, const Params& params, const Job& job, int slots, Feed& feed) {
  const IsaTable& isa = network.isa();
  const PackedNetwork& net = network.packed();
  Tile tile(params, job, feed, slots, isa);
  const size_t count = static_cast<size_t>(slots), per_row = static_cast<size_t>(net.widths);
  const size_t padded = static_cast<size_t>(advcore::padded(net.classes));
  const size_t scratch_floats = isa.scratch_bytes(net, slots) / sizeof(float);
  const AlignedFloats memory = allocate(scratch_floats + 2 * count * padded);
  Scratch& scratch = *isa.carve_scratch(net, slots, memory.get());
  float* const rows = memory.get() + scratch_floats;
  std::vector<float*> logits(count), seed(count), dx(count), width(count);
  std::vector<const float*> x(count);
  std::vector<float> widths(count * per_row), k(count);
  std::vector<uint8_t> measure(count);
  std::vector<int> which(count);
  for (size_t i = 0; i < count; ++i) {
    logits[i] = rows + 2 * i * padded;
    seed[i] = logits[i] + padded;
    which[i] = static_cast<int>(i);
  }
  while (!feed.stop.load(std::memory_order_relaxed) && tile.fill() > 0) {
    const int active = tile.rows();
    for (int r = 0; r < active; ++r) {
      const size_t i = static_cast<size_t>(r);
      const Problem& p = tile.problem(r);
      x[i] = p.trial;
      dx[i] = p.trial_gradient;
      width[i] = widths.data() + static_cast<size_t>(tile.slot(r)) * per_row;
      k[i] = p.state.request.k;
      measure[i] = p.state.request.record_scales;
    }
    isa.forward(net, scratch, x.data(), active, k.data(), width.data(), measure.data(),
                logits.data());
    for (int r = 0; r < active; ++r)
      tile.head(r, logits[static_cast<size_t>(r)], seed[static_cast<size_t>(r)]);
    isa.backward(net, scratch, which.data(), tile.gradient_rows(), seed.data(), dx.data());
    tile.advance();
  }
  tile.interrupt();
}

}  // namespace

void solve(const Network& network, const Params& params, const Job& job, int threads, int slots,
           Feed& feed, const std::function<bool()>& poll) {
  // The images are written by the threads: copied by the first one, they take 0.8 us each.
  clear_numbers(job);
  if (job.count == 0) return;
  threads = static_cast<int>(std::min<int64_t>(threads, job.count));
  slots = static_cast<int>(std::min<int64_t>(slots, (job.count + threads - 1) / threads));
  std::mutex mutex;
  std::condition_variable finished;
  std::exception_ptr error;
  int running = threads;
  const auto work = [&] {
    std::exception_ptr caught;
    try {
      run_tile(network, params, job, slots, feed);
    } catch (...) {
      caught = std::current_exception();
      feed.stop = true;
    }
    const std::lock_guard lock(mutex);
    if (caught) error = caught;
    if (--running == 0) finished.notify_one();
  };
  std::vector<std::thread> pool;
  try {
    for (int i = 0; i < threads; ++i) pool.emplace_back(work);
    std::unique_lock lock(mutex);
    while (!finished.wait_for(lock, std::chrono::milliseconds(50), [&] { return running == 0; })) {
      lock.unlock();
      if (!poll()) feed.stop = true;
      lock.lock();
    }
  } catch (...) {  // a thread could not start, or poll threw: the others are joined first
    feed.stop = true;
    for (std::thread& thread : pool) thread.join();
    throw;
  }
  for (std::thread& thread : pool) thread.join();
  if (error) std::rethrow_exception(error);
  keep_clean(params, job, std::min(feed.next.load(), job.count));
}

}  // namespace advcore

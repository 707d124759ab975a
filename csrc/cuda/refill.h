// Continuous batching on the GPU. Between two rounds finished images are retired from their slots,
// waiting ones are admitted, and the slots in use are listed for the next round. A group of threads
// does the same in step, not a team with a leader: nothing here is the solver's. `Threads` is a
// block of threads, in the tests a group of the host's:
//
//   each(n, f)               f(i) for i < n, shared among the threads
//   first()                  whether the calling thread is the one that writes scalars
//   sync()                   all threads wait, and see what the others wrote
//   fence()                  what other groups and the host wrote before is read after it
//   read(from)               an integer that others write meanwhile
//   add(to, value)           atomic; returns what was there
//   swap(to, old, value)     atomic; writes where `old` is there, returns what was
#pragma once

#include "counts.h"
#include "outcome.h"

namespace ADVCORE_NS {
namespace {

// Images that wait, row major; a stride of 0 where all share a row.
struct WaitingImages {
  const float* images;  // (count, n)
  size_t stride;
  const float* lo;  // own bounds of each, or null
  const float* hi;
  size_t bounds_stride;
  const float* starts;  // (count, params.starts, n), or null
  size_t starts_stride;
  const int* labels;
};

// Where a run is, in device memory; all but `total` begin at 0.
struct QueueState {
  int64_t total;      // images
  int64_t next;       // the first image that no slot has had
  int64_t available;  // images that have arrived
  Counts counts;
  int64_t rounds;
  int listed;         // slots of the next round so far
  int groups_closed;  // groups that have listed theirs
  int rows;           // slots of the round
};

struct Refill {
  Params params;
  WaitingImages waiting;
  Problem* problems;
  uint8_t* done;  // (slots): free, or finished
  int slots;
  int* rows;           // (slots): those in use
  float* adversarial;  // (count, n)
  Outcome* outcomes;   // (count)
  QueueState* state;
  bool drain;  // whatever is unfinished is retired as interrupted, nothing is admitted
};

constexpr int kGroupSlots = 32;  // slots that a group of threads looks after

// Memory that the threads of a group share.
struct GroupScratch {
  bool vacant[kGroupSlots];  // slots whose image is finished, or that have none
  int64_t admitted;          // image for the slot at hand; -1: none
  int listed[kGroupSlots], count;
};

template <class Threads>
ADVCORE_FN void retire(const Threads& threads, const Refill& r, Problem& p) {
  State& s = p.state;
  const float* const best = s.best.norm < kNone ? p.best : p.x0;
  float* const to = r.adversarial + (size_t)p.index * r.params.n;
  threads.each(r.params.n, [=](int i) { to[i] = best[i]; });
  threads.sync();  // p.index has been read
  if (!threads.first()) return;
  if (s.phase != Phase::done) s.status = Status::interrupted;
  const Outcome outcome = outcome_of(s);
  r.outcomes[p.index] = outcome;
  p.index = -1;
  add_counts(r.state->counts, counts_of(outcome),
             [&](int64_t& total, int64_t value) { threads.add(&total, value); });
}

template <class Threads>
ADVCORE_FN void admit(const Threads& threads, const Refill& r, Problem& p, int64_t index) {
  const int n = r.params.n;
  const size_t row = (size_t)index;
  const auto copy_row = [&threads](int length, const float* from, const float* to) {
    float* const target = const_cast<float*>(to);
    threads.each(length, [=](int i) { target[i] = from[i]; });
  };
  const float* const image = r.waiting.images + row * r.waiting.stride;
  copy_row(n, image, p.x0);
  copy_row(n, image, p.trial);
  if (r.waiting.lo) {
    copy_row(n, r.waiting.lo + row * r.waiting.bounds_stride, p.lo);
    copy_row(n, r.waiting.hi + row * r.waiting.bounds_stride, p.hi);
  }
  if (r.waiting.starts)
    copy_row(n * r.params.starts, r.waiting.starts + row * r.waiting.starts_stride, p.starts);
  if (!threads.first()) return;
  ask_first(r.params, p.state, r.waiting.labels[index]);
  p.index = index;
}

// The next image that has arrived, or -1.
template <class Threads>
ADVCORE_FN int64_t next_image(const Threads& threads, QueueState& state) {
  const int64_t available = threads.read(&state.available);
  int64_t index = threads.read(&state.next);
  while (index < available) {
    const int64_t found = threads.swap(&state.next, index, index + 1);
    if (found == index) return index;
    index = found;
  }
  return -1;
}

// Refills the slots [first, first + kGroupSlots). Which slot an image gets and in which order rows
// are listed differs from run to run; nothing of an image's results depends on it.
template <class Threads>
ADVCORE_FN void refill_group(const Threads& threads, const Refill& r, int first,
                             GroupScratch& scratch) {
  const int slots = first + kGroupSlots < r.slots ? kGroupSlots : r.slots - first;
  threads.each(slots, [&](int i) { scratch.vacant[i] = r.done[first + i] || r.drain; });
  if (threads.first()) scratch.count = 0;
  threads.sync();
  for (int i = 0; i < slots; ++i) {
    const int slot = first + i;
    Problem& p = r.problems[slot];
    if (scratch.vacant[i]) {
      if (p.index >= 0) retire(threads, r, p);
      if (threads.first()) {
        scratch.admitted = r.drain ? -1 : next_image(threads, *r.state);
        threads.fence();  // the image came before the news of it
        r.done[slot] = scratch.admitted < 0;
      }
      threads.sync();
      const int64_t admitted = scratch.admitted;
      if (admitted >= 0) admit(threads, r, p, admitted);
      threads.sync();
      if (admitted < 0) continue;
    }
    if (threads.first()) scratch.listed[scratch.count++] = slot;
  }
  if (!threads.first() || scratch.count == 0) return;
  int* const to = r.rows + threads.add(&r.state->listed, scratch.count);
  for (int i = 0; i < scratch.count; ++i) to[i] = scratch.listed[i];
}

}  // namespace
}  // namespace ADVCORE_NS

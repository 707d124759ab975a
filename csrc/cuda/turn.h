// Between two rounds on the GPU: finished images leave their slots, waiting ones take them, and the
// slots in use are listed for the next round. A crew of threads does the same in step, not a team
// with a leader: nothing here is the solver's. The crew is a block of threads; in the tests a
// single one of the host.
//
//   each(n, f)               f(i) for i < n, shared among the threads
//   first()                  whether the calling thread is the one that writes scalars
//   sync()                   all threads, and what they wrote
//   fence()                  what other crews and the host wrote before is read after it
//   read(at)                 while others write it
//   add(at, value)           atomic; returns what was there
//   swap(at, old, value)     atomic; writes where `old` is there, returns what was
#pragma once

#include "outcome.h"

namespace ADVCORE_NS {
namespace {

// Images that wait, row major; a stride of 0 where all share a row.
struct Source {
  const float* images;  // (count, n)
  size_t stride;
  const float* lo;  // own bounds of each, or null
  const float* hi;
  size_t bounds_stride;
  const float* starts;  // (count, params.starts, n), or null
  size_t starts_stride;
  const int* labels;
};

// Counters of a run in device memory; all but `total` begin at 0.
struct Counters {
  int64_t total;      // images
  int64_t next;       // image to take
  int64_t available;  // of the images, those that have arrived
  int64_t finished, succeeded, evaluations;
  int64_t rounds;
  int listed;  // slots of the next round so far
  int turned;  // groups that are done
  int rows;    // of the round
};

struct Turn {
  Params params;
  Source source;
  Problem* problems;
  uint8_t* done;  // (slots): free, or finished
  int slots;
  int* rows;           // (slots): those in use
  float* adversarial;  // (count, n)
  Outcome* outcomes;   // (count)
  Counters* counters;
  bool drain;  // whatever is unfinished leaves as interrupted, nothing enters
};

constexpr int kGroup = 32;  // slots that a crew looks after

// What one crew tells its threads, in memory that they share.
struct Board {
  bool moves[kGroup];  // these slots
  int64_t entering;
  int listed[kGroup], count;
};

template <class Crew>
ADVCORE_FN void leave(const Crew& crew, const Turn& t, Problem& p) {
  State& s = p.state;
  const float* const best = s.best.norm < kNone ? p.best : p.x0;
  float* const to = t.adversarial + (size_t)p.index * t.params.n;
  crew.each(t.params.n, [=](int i) { to[i] = best[i]; });
  crew.sync();  // p.index has been read
  if (!crew.first()) return;
  if (s.phase != Phase::done) s.status = Status::interrupted;
  t.outcomes[p.index] = outcome_of(t.params, s);
  p.index = -1;
  crew.add(&t.counters->finished, 1);
  crew.add(&t.counters->succeeded, s.best.norm < kNone);
  crew.add(&t.counters->evaluations, s.counts.evaluations);
}

template <class Crew>
ADVCORE_FN void enter(const Crew& crew, const Turn& t, Problem& p, int64_t index) {
  const int n = t.params.n;
  const size_t at = (size_t)index;
  const auto copy_row = [&crew](int length, const float* from, const float* to) {
    float* const target = const_cast<float*>(to);
    crew.each(length, [=](int i) { target[i] = from[i]; });
  };
  const float* const image = t.source.images + at * t.source.stride;
  copy_row(n, image, p.x0);
  copy_row(n, image, p.trial);
  if (t.source.lo) {
    copy_row(n, t.source.lo + at * t.source.bounds_stride, p.lo);
    copy_row(n, t.source.hi + at * t.source.bounds_stride, p.hi);
  }
  if (t.source.starts)
    copy_row(n * t.params.starts, t.source.starts + at * t.source.starts_stride, p.starts);
  if (!crew.first()) return;
  ask_first(t.params, p.state, t.source.labels[index]);
  p.index = index;
}

// The next image that has arrived, or -1.
template <class Crew>
ADVCORE_FN int64_t take(const Crew& crew, Counters& counters) {
  const int64_t available = crew.read(&counters.available);
  int64_t index = crew.read(&counters.next);
  while (index < available) {
    const int64_t seen = crew.swap(&counters.next, index, index + 1);
    if (seen == index) return index;
    index = seen;
  }
  return -1;
}

// The slots [first, first + kGroup). Which slot an image gets and in which order rows are listed
// differs from run to run; nothing of an image's results depends on it.
template <class Crew>
ADVCORE_FN void turn_group(const Crew& crew, const Turn& t, int first, Board& board) {
  const int slots = first + kGroup < t.slots ? kGroup : t.slots - first;
  crew.each(slots, [&](int i) { board.moves[i] = t.done[first + i] || t.drain; });
  if (crew.first()) board.count = 0;
  crew.sync();
  for (int i = 0; i < slots; ++i) {
    const int slot = first + i;
    Problem& p = t.problems[slot];
    if (board.moves[i]) {
      if (p.index >= 0) leave(crew, t, p);
      if (crew.first()) {
        board.entering = t.drain ? -1 : take(crew, *t.counters);
        crew.fence();  // the image came before the news of it
        t.done[slot] = board.entering < 0;
      }
      crew.sync();
      const int64_t entering = board.entering;
      if (entering >= 0) enter(crew, t, p, entering);
      crew.sync();
      if (entering < 0) continue;
    }
    if (crew.first()) board.listed[board.count++] = slot;
  }
  if (!crew.first() || board.count == 0) return;
  int* const to = t.rows + crew.add(&t.counters->listed, board.count);
  for (int i = 0; i < board.count; ++i) to[i] = board.listed[i];
}

}  // namespace
}  // namespace ADVCORE_NS

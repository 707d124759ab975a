// The engine's public interface: a Job (the arrays of a run), a SlotPool (images that advance
// together by one evaluation a round, whoever evaluates) and `solve` (a pool a thread on a native
// network). It knows no Python and no framework; the caller checks shapes and owns every array.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "counts.h"
#include "cpu/isa.h"
#include "network.h"
#include "outcome.h"
#include "problem.h"
#include "workspace.h"

namespace advcore {

// Arrays in the caller's memory, row major.
struct Job {
  int64_t count = 0;
  const float* images = nullptr;    // (count, n), inside the bounds.
  const int32_t* labels = nullptr;  // (count) the target, or the class to leave.
  const float* lo = nullptr;        // (n), or (count, n) with own_bounds.
  const float* hi = nullptr;        // As lo.
  bool own_bounds = false;          // Each image has bounds of its own.
  const float* starts = nullptr;    // (count, params.starts, n)

  // Results. Where no adversarial image was found, the image is the clean one and its distortion is
  // infinity.
  float* adversarial = nullptr;  // (count, n)
  uint8_t* success = nullptr;
  float* distortion = nullptr;  // r in the norm of the run.
  float* margin = nullptr;      // The result's; without success the largest evaluated.
  float* c = nullptr;           // The weight of ||r||^2 where the search ended.
  float* penalty = nullptr;     // Distortion of the penalty minimiser; NaN: there is none.
  int32_t* prediction = nullptr;
  int8_t* status = nullptr;
  int32_t* evaluations = nullptr;
  int32_t* forwards = nullptr;
  int32_t* iterations = nullptr;
  int32_t* rescues = nullptr;  // Fallback searches.
};

// What the threads of a run share: the next image to begin, a request to stop, the counts so far.
class WorkQueue {
 public:
  std::atomic<int64_t> next{0};
  std::atomic<bool> stop{false};

  void add(const Counts& more);
  Counts counts() const;

 private:
  mutable std::mutex mutex_;
  Counts counts_;
};

// Marks every image of the job as interrupted: clear_results with its clean image as the result,
// clear_numbers without an image, where that comes later.
void clear_results(const Params& params, const Job& job);
void clear_numbers(const Job& job);
// Writes the clean images as the results from image `first` on.
void keep_clean(const Params& params, const Job& job, int64_t first);

// Writes the results of image `index`, and its best image where one was found. `best` is null where
// the image has been written already.
void write_result(const Params& params, const Job& job, WorkQueue& work, int64_t index,
                  const Outcome& outcome, const float* best);

// A fixed number of slots, each with one image (continuous batching). The active slots are the rows
// of a round, which is: refill; evaluate the network at each row's trial with its k; margin_loss;
// the backward pass of dlogits to trial_gradient for the first `gradient_rows`; advance.
class SlotPool {
 public:
  SlotPool(const Params& params, const Job& job, WorkQueue& work, int slots, const IsaTable& isa);

  // Admits waiting images to free slots. Returns the number of rows of this round, 0 at the end.
  int refill();
  int rows() const { return static_cast<int>(active_.size()); }
  int gradient_rows() const { return gradient_rows_; }  // The first of the rows.
  Problem& problem(int row) {
    return slots_[static_cast<size_t>(active_[static_cast<size_t>(row)])];
  }
  int slot(int row) const { return active_[static_cast<size_t>(row)]; }

  void margin_loss(int row, float* logits, float* dlogits) {
    isa_.margin_loss(params_, problem(row).state, logits, dlogits);
  }
  // Advances all rows; finished images leave their slots.
  void advance();

  // The same on dense arrays, for evaluations outside: trial points (rows, n) with k, slot and
  // record_scales of each; logits (rows, classes) to dlogits (gradient_rows, classes); gradients
  // (gradient_rows, n).
  void gather(float* x, float* k, int32_t* slots, bool* record_scales);
  void margin_losses(const float* logits, float* dlogits);
  void store_gradients(const float* gradients);

  // For evaluations that read and write the slots themselves.
  SlotRows slot_rows();

  // Writes what the unfinished images have as results, with the status interrupted. Where that is
  // no adversarial image, it is the point of the search, perhaps that of a smoothed network.
  void interrupt();

 private:
  void admit(Problem& p, int64_t index);
  void retire(Problem& p);

  const Params params_;
  const Job job_;
  WorkQueue& work_;
  const IsaTable& isa_;
  AlignedFloats arena_, bounds_, logits_;
  std::vector<Problem> slots_;
  std::vector<int> active_;  // The slots of this round's rows.
  int gradient_rows_ = 0;
};

// Runs the job on a native network, a pool a thread. `poll` is called in the calling thread about
// 20 times a second; where it returns false the run is stopped and the unfinished images are
// interrupted. No thread outlives the call. The result of an image depends on that image, its
// label, the network and the params alone, bit for bit.
void solve(const Network& network, const Params& params, const Job& job, int threads, int slots,
           WorkQueue& work, const std::function<bool(const Counts&)>& poll);

}  // namespace advcore

// The engine's public interface: a Job (arrays of a run), a Tile (slots that advance together by
// one evaluation a round, whoever evaluates), and `solve` (tiles over threads with a native
// network). No Python and no framework; the caller checks shapes and owns every array.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "cpu/isa.h"
#include "network.h"
#include "outcome.h"
#include "problem.h"
#include "workspace.h"

namespace advcore {

// Arrays in the caller's memory, row major.
struct Job {
  int64_t count = 0;
  const float* images = nullptr;    // (count, n), inside the bounds
  const int32_t* labels = nullptr;  // (count) target, or the class to leave
  const float* lo = nullptr;        // (n), or (count, n)
  const float* hi = nullptr;
  bool own_bounds = false;
  const float* starts = nullptr;  // (count, params.starts, n)

  // Results; where no adversarial image was found: the clean image, distortion infinity.
  float* adversarial = nullptr;  // (count, n)
  uint8_t* success = nullptr;
  float* distortion = nullptr;  // ||r||_2
  float* margin = nullptr;      // of the result; without success the best that was seen
  float* c = nullptr;           // of c ||r||^2 where the search ended
  float* penalty = nullptr;     // distortion of the penalty minimiser; NaN: none
  int32_t* prediction = nullptr;
  int8_t* status = nullptr;
  int32_t* evaluations = nullptr;
  int32_t* forwards = nullptr;
  int32_t* iterations = nullptr;
  int32_t* rescues = nullptr;  // searches beyond Params::attempts
};

// Shared by the tiles of a run.
struct Feed {
  std::atomic<int64_t> next{0}, finished{0}, succeeded{0}, evaluations{0};
  std::atomic<bool> stop{false};
};

// Marks every image of the job as interrupted; with its clean image as the result, or, where the
// images come later, without.
void clear_results(const Params& params, const Job& job);
void clear_numbers(const Job& job);
void keep_clean(const Params& params, const Job& job, int64_t first);  // from `first` on

// Writes the results of image `index`, and `best` where an adversarial image was found; null: the
// image is there.
void deliver(const Params& params, const Job& job, Feed& feed, int64_t index,
             const Outcome& outcome, const float* best);

// A fixed number of slots. One round: fill; evaluate the rows (trial, k); heads; pull the seeds
// of the first `gradient_rows` back to trial_gradient; advance.
class Tile {
 public:
  Tile(const Params& params, const Job& job, Feed& feed, int slots, const IsaTable& isa);

  // Gives waiting images to free slots. Returns the number of rows of this round, 0 at the end.
  int fill();
  int rows() const { return static_cast<int>(row_.size()); }
  int gradient_rows() const { return gradient_rows_; }  // they come first
  Problem& problem(int row) { return slots_[static_cast<size_t>(row_[static_cast<size_t>(row)])]; }
  int slot(int row) const { return row_[static_cast<size_t>(row)]; }

  void head(int row, float* logits, float* seed) {
    isa_.margin_loss(params_, problem(row).state, logits, seed);
  }
  void advance();  // all rows; finished images leave their slots

  // The same on dense arrays, for evaluations outside: trial points (rows, n) with k, slot and
  // measure of each; logits (rows, classes) to seeds (gradient_rows, classes); gradients
  // (gradient_rows, n).
  void gather(float* x, float* k, int32_t* slots, bool* measure);
  void heads(const float* logits, float* seeds);
  void take_gradients(const float* gradients);

  SlotRows slot_rows();  // for evaluations that read and write the slots themselves

  // Delivers what the unfinished images have, as interrupted; where that is no adversarial image,
  // the point that the search has reached, on a smoothed network perhaps.
  void interrupt();

 private:
  void load(Problem& p, int64_t index);
  void release(Problem& p);

  const Params params_;
  const Job job_;
  Feed& feed_;
  const IsaTable& isa_;
  AlignedFloats arena_, bounds_, logits_;
  std::vector<Problem> slots_;
  std::vector<int> row_;
  int gradient_rows_ = 0;
};

// Runs the job on a native network, a tile a thread. `poll` is called in the calling thread about
// 20 times a second; where it returns false the run is stopped and the unfinished images are
// interrupted. No thread outlives the call. The result of an image depends on that image, its
// label, the network and the params alone, bit for bit.
void solve(const Network& network, const Params& params, const Job& job, int threads, int slots,
           Feed& feed, const std::function<bool()>& poll);

}  // namespace advcore

// The kernels of a round: one block for each row.
#pragma once

#define ADVCORE_NS advcore::cuda

#include "problem.h"

#include "cuda/device.h"

#include "cuda/lanes.h"

#include "solver/fork_team.h"

#include "solver/solver.h"

#include "cuda/block.h"

namespace ADVCORE_NS {
namespace {

constexpr int kBlocks = 5;  // of a multiprocessor: 96 registers a thread

// A launch has a block for every row that there may be. Those beyond the round's rows have nothing
// to do.
__device__ inline bool beyond(const Run& run, int row) { return run.count && row >= *run.count; }

__device__ inline void copy_words(int first, int step, size_t bytes, const void* source,
                                  void* target) {
  for (int i = first; i < static_cast<int>(bytes / 4); i += step)
    static_cast<int*>(target)[i] = static_cast<const int*>(source)[i];
}

// Runs lead(team, problem) in the leader of the block, on the problem in shared memory, which comes
// from `stored` and goes back there; then after(problem).
template <class Lead, class After>
__device__ void conduct(Problem& stored, Lead lead, After after) {
  Shared& shared = Block::shared();
  copy_words(threadIdx.x, blockDim.x, sizeof(Problem), &stored, &shared.problem);
  __syncthreads();
  if (threadIdx.x < kWarp) {
    if (threadIdx.x > 0) return;
    const Team team{};
    lead(team, shared.problem);
    team.end();
    after(shared.problem);
  } else {
    serve_verbs(Block{});
    copy_words(Block::lane(), Block::lanes(), sizeof(Problem), &shared.problem, &stored);
  }
}

__global__ void __launch_bounds__(kMaxThreads, kBlocks)
    begin_kernel(const __grid_constant__ Run run, const Staged staged) {
  const int row = blockIdx.x, slot = run.rows[row];
  const Params& params = run.params;
  conduct(
      run.problems[slot],
      [=, &params](const Team& team, Problem& p) {
        const size_t n = params.n;
        const float* source = staged.vectors + row * staged.stride;
        team.copy_row(params.n, source, p.x0);
        if (staged.own_bounds) {
          team.copy_row(params.n, source += n, const_cast<float*>(p.lo));
          team.copy_row(params.n, source += n, const_cast<float*>(p.hi));
        }
        team.copy_row(params.n * params.starts, source + n, const_cast<float*>(p.starts));
        begin(team, params, p, staged.labels[row]);
      },
      [done = run.done + slot, smoothed = run.smoothed + slot](const Problem&) {
        *done = *smoothed = 0;
      });
}

// Trial points and smoothings, dense.
__global__ void __launch_bounds__(kMaxThreads)
    gather_kernel(const __grid_constant__ Run run, float* x, float* k) {
  const int row = blockIdx.x, n = run.params.n;
  const Problem& p = run.problems[run.rows[row]];
  const float* const trial = p.trial;  // not loaded again behind each store
  for (int i = threadIdx.x; i < n; i += blockDim.x) x[row * static_cast<size_t>(n) + i] = trial[i];
  if (threadIdx.x == 0) k[row] = p.state.request.k;
}

__global__ void __launch_bounds__(kMaxThreads, kBlocks)
    margin_loss_kernel(const __grid_constant__ Run run, const float* logits, float* dlogits) {
  const int row = blockIdx.x, slot = run.rows[row];
  const bool waits = run.exact && run.smoothed[slot];
  const Params& params = run.params;
  conduct(
      run.problems[slot],
      [=, &params](const Team& team, Problem& p) {
        const int classes = params.classes, length = padded(classes);
        float* const z = run.loss_rows + slot * 2 * static_cast<size_t>(length);
        float* const padded_dlogits = z + length;
        const float* const source = logits + row * static_cast<size_t>(classes);
        float* const target = dlogits + row * static_cast<size_t>(classes);
        team.each(length, [=](int i) { z[i] = i < classes ? source[i] : kPadLogit; });
        const bool active = p.state.phase != Phase::done && !waits;
        if (active) margin_loss(team, params, p.state, z, padded_dlogits);
        const bool has_gradient = active && p.state.request.want_gradient && p.state.eval.finite;
        team.each(classes, [=](int i) { target[i] = has_gradient ? padded_dlogits[i] : 0.0f; });
      },
      [](const Problem&) {});
}

__global__ void __launch_bounds__(kMaxThreads, kBlocks)
    advance_kernel(const __grid_constant__ Run run, const float* gradients) {
  const int row = blockIdx.x;
  if (beyond(run, row)) return;
  const int slot = run.rows[row];
  if (run.done[slot] || (run.exact && run.smoothed[slot])) return;
  const Params& params = run.params;
  conduct(
      run.problems[slot],
      [=, &params](const Team& team, Problem& p) {
        if (gradients && p.state.request.want_gradient)
          team.copy_row(params.n, gradients + row * static_cast<size_t>(params.n),
                        p.trial_gradient);
        Shared& shared = Block::shared();
        static_assert(sizeof(Machine<Team>) <= sizeof shared.machine);
        auto* const machine =
            new (shared.machine) Machine<Team>{team, params, p, p.state, shared.work};
        machine->run();
      },
      [done = run.done + slot, smoothed = run.smoothed + slot](const Problem& p) {
        *done = p.state.phase == Phase::done;
        *smoothed = p.state.request.k > 0;
      });
}

__global__ void __launch_bounds__(kMaxThreads)
    collect_kernel(const __grid_constant__ Run run, const Staged staged) {
  const int row = blockIdx.x;
  const Problem& p = run.problems[run.rows[row]];
  const float* const best = p.state.best.norm < kNone ? p.best : p.x0;
  float* const target = staged.vectors + row * staged.stride;
  for (int i = threadIdx.x; i < run.params.n; i += blockDim.x) target[i] = best[i];
  copy_words(threadIdx.x, blockDim.x, sizeof(Problem), &p, staged.problems + row);
}

}  // namespace
}  // namespace ADVCORE_NS

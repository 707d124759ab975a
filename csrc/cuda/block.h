// The fabric of ForkTeam on the GPU: a block of threads an image. The leader is thread 0; the rest
// of its warp leaves at once. The scalars of the image and the small systems are in shared memory.
#pragma once

namespace ADVCORE_NS {
namespace {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 128;
constexpr int kMaxWarps = kMaxThreads / kWarp - 1;  // of workers

struct Block;

struct Shared {
  Problem problem;
  alignas(8) unsigned char machine[64];
  Call<Block> call;
  float partial[kMaxWarps][kMaxFold];
  float folded[kMaxFold];
  Work work;  // ends with the matrix: as much of it as the history needs
};

struct Block {
  __device__ static Shared& shared() {
    extern __shared__ __align__(64) unsigned char block_memory[];
    return *reinterpret_cast<Shared*>(block_memory);
  }
  __device__ static Call<Block>& call() { return shared().call; }

  __device__ static int workers() { return blockDim.x - kWarp; }
  __device__ static int lane() { return threadIdx.x - kWarp; }
  __device__ static int lanes() { return workers(); }

  __device__ static void join() { barrier(); }
  __device__ static void fork() { barrier(); }

  // Over the lanes of each warp, then over the warps. Kept until the next fold, after another fork.
  template <int K, class Op>
  __device__ __forceinline__ static void fold(float* acc, Op op) {
    const int warp = lane() / kWarp;
    fold_warp<K>(acc, shared().partial[warp], op);
    worker_barrier();
    for (int k = lane(); k < K; k += workers()) {
      float all = shared().partial[0][k];
      for (int w = 1; w < workers() / kWarp; ++w) all = op(all, shared().partial[w][k]);
      shared().folded[k] = all;
    }
  }
  template <class Op>
  __device__ static float result(int k, Op) {
    return shared().folded[k];
  }

 private:
  // K values of 32 lanes, taken together in powers of two: at each halving a lane gives half of its
  // values away, 31 shuffles for 32 values where one after the other would take 160.
  template <int K, class Op>
  __device__ __forceinline__ static void fold_warp(float* acc, float* out, Op op) {
    constexpr int C = K >= 32 ? 32 : K >= 16 ? 16 : K >= 8 ? 8 : K >= 4 ? 4 : K >= 2 ? 2 : 1;
    const int lane = threadIdx.x % kWarp;
    halve<C / 2, kWarp / 2>(acc, lane, op);
    if (lane % (kWarp / C) == 0) out[lane / (kWarp / C)] = acc[0];
    if constexpr (K > C) fold_warp<K - C>(acc + C, out + C, op);
  }
  // Lanes with the bit `offset` keep the upper half: in the end lane l has value l / (32 / C).
  template <int half, int offset, class Op>
  __device__ __forceinline__ static void halve(float* v, int lane, Op op) {
    if constexpr (half > 0) {
      const bool upper = lane & offset;
#pragma unroll
      for (int k = 0; k < half; ++k) {
        const float kept = upper ? v[k + half] : v[k], given = upper ? v[k] : v[k + half];
        v[k] = op(kept, __shfl_xor_sync(~0u, given, offset));
      }
    } else {
      v[0] = op(v[0], __shfl_xor_sync(~0u, v[0], offset));
    }
    if constexpr (offset > 1) halve<half / 2, offset / 2>(v, lane, op);
  }

  __device__ static void worker_barrier() {
    asm volatile("barrier.sync 1, %0;" ::"r"(workers()) : "memory");
  }
  // Not the aligned form: the leader is alone in its warp.
  __device__ static void barrier() { asm volatile("barrier.sync 0;" ::: "memory"); }
};

using Team = ForkTeam<Block>;

__device__ inline int trial_index() { return Block::lane(); }

}  // namespace
}  // namespace ADVCORE_NS

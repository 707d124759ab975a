// The fabric of ForkTeam on the GPU: a block of threads an image, or a cluster of blocks where the
// image is large. The leader is thread 0 of the first block; the rest of its warp leaves at once,
// as do the leaders' warps of the other blocks.
//
// The scalars of the image and the small systems are in the shared memory of the first block; the
// others take over the call at every fork. A generic address of shared memory names its block: what
// the function of a sum or a loop captures by reference, all blocks read from the first one.
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
  float folded[kMaxRanks][kMaxFold];  // in the first block: of every block
  Work work;                          // ends with the matrix: as much of it as the history needs
};

struct Block {
  __device__ static Shared& shared() {
    extern __shared__ __align__(64) unsigned char block_memory[];
    return *reinterpret_cast<Shared*>(block_memory);
  }
  __device__ static Call<Block>& call() { return shared().call; }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  __device__ static int rank() { return special_register_rank(); }
  __device__ static int ranks() { return special_register_ranks(); }
#else
  __device__ static int rank() { return 0; }
  __device__ static int ranks() { return 1; }
#endif
  __device__ static int workers() { return blockDim.x - kWarp; }  // of this block
  __device__ static int worker() { return threadIdx.x - kWarp; }
  __device__ static int lane() { return rank() * workers() + worker(); }
  __device__ static int lanes() { return ranks() * workers(); }

  // Not inlined: every verb of the leader has both.
  __device__ __noinline__ static void join() { barrier(threadIdx.x >= kWarp); }
  __device__ __noinline__ static void fork() {
    barrier(threadIdx.x < kWarp);
    if (rank() == 0) return;
    int* const to = reinterpret_cast<int*>(&shared().call);
    const int* const from = at_rank(to, 0);
    constexpr int words = sizeof(Call<Block>) / sizeof(int);
    for (int i = worker(); i < words; i += workers()) to[i] = from[i];
    worker_barrier();
  }

  // Over the lanes of each warp, then over the warps. Kept until the next fold, after another fork.
  template <int K, class Op>
  __device__ __forceinline__ static void fold(float* acc, Op op) {
    const int warp = worker() / kWarp;
    fold_warp<K>(acc, shared().partial[warp], op);
    worker_barrier();
    for (int k = worker(); k < K; k += workers()) {
      float all = shared().partial[0][k];
      for (int w = 1; w < workers() / kWarp; ++w) all = op(all, shared().partial[w][k]);
      float* const to = &shared().folded[rank()][k];
      *(ranks() > 1 ? at_rank(to, 0) : to) = all;
    }
  }
  template <class Op>
  __device__ static float result(int k, Op op) {
    float all = shared().folded[0][k];
#pragma unroll 1
    for (int r = 1; r < ranks(); ++r) all = op(all, shared().folded[r][k]);
    return all;
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
  // Not the aligned forms: the leader is alone in its warp. `writes`: whether this thread has
  // written what others read after the barrier; in a cluster that fence is dear.
  __device__ static void barrier([[maybe_unused]] bool writes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (ranks() > 1) {
      if (writes)
        asm volatile("barrier.cluster.arrive.release;" ::: "memory");
      else
        asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
      asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
      return;
    }
#endif
    asm volatile("barrier.sync 0;" ::: "memory");
  }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  __device__ static int special_register_rank() {
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
  }
  __device__ static int special_register_ranks() {
    int ranks;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(ranks));
    return ranks;
  }
#endif
  // The same place in the shared memory of another block of the cluster.
  template <class T>
  __device__ static T* at_rank(T* here, int rank) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    T* there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(here), "r"(rank));
    return there;
#else
    return here;
#endif
  }
};

using Team = ForkTeam<Block>;

__device__ inline int shift() { return Block::worker(); }

}  // namespace
}  // namespace ADVCORE_NS

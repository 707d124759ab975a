// The block of ForkTeam by threads of the host: same calls, same map of indices, same order of the
// sums, with warps of kWarp threads. Shuffles are the GPU's own.
#pragma once

#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#define ADVCORE_NS advcore::forked

#include "problem.h"

#include "cuda/lanes.h"

#include "solver/fork_team.h"

#include "solver/solver.h"

namespace advcore::forked {
namespace {

struct HostBlock {
  static constexpr int kWarp = 4, kWorkers = 8;

  struct Shared {
    Call<HostBlock> call = {};
    std::barrier<> all{kWorkers + 1}, workers{kWorkers};
    float acc[kWorkers][kMaxFold];
    float folded[kMaxFold];
    Work work;
    const char* leader_frame = nullptr;
    int calls = 0;
  };
  Shared* shared;
  int number;  // -1: the leader

  Call<HostBlock>& call() const { return shared->call; }
  int lane() const { return number; }
  static int lanes() { return kWorkers; }
  void fork() const {
    if (number < 0) look_for_the_stack();
    shared->all.arrive_and_wait();
  }
  void join() const { shared->all.arrive_and_wait(); }

  template <int K, class Op>
  void fold(const float* acc, Op op) const {
    for (int k = 0; k < K; ++k) shared->acc[number][k] = acc[k];
    shared->workers.arrive_and_wait();
    for (int k = number; k < K; k += kWorkers) {
      float all = 0;
      for (int first = 0; first < kWorkers; first += kWarp) {
        float lane[kWarp];
        for (int l = 0; l < kWarp; ++l) lane[l] = shared->acc[first + l][k];
        for (int offset = kWarp / 2; offset > 0; offset /= 2)
          for (int l = 0; l < offset; ++l) lane[l] = op(lane[l], lane[l + offset]);
        all = first == 0 ? lane[0] : op(all, lane[0]);
      }
      shared->folded[k] = all;
    }
  }
  template <class Op>
  float result(int k, Op) const {
    return shared->folded[k];
  }

 private:
  // What is captured must not refer to the leader's stack, which on the GPU nobody else sees.
  void look_for_the_stack() const {
    ++shared->calls;
    const char* const here = static_cast<char*>(__builtin_frame_address(0));
    for (size_t at = 0; at + sizeof(char*) <= kMaxCapture; at += sizeof(char*)) {
      const char* word;
      __builtin_memcpy(&word, shared->call.captured + at, sizeof word);
      if (word < here || word >= shared->leader_frame) continue;
      std::printf("FAILED: call %d captured an address of the leader's stack\n", shared->calls);
      std::fflush(stdout);
      std::abort();
    }
  }
};

thread_local int this_worker = 0;
int trial_index() { return this_worker; }

using Team = ForkTeam<HostBlock>;

// The leader, in a frame of its own: what it has on the stack is below.
template <class Lead>
__attribute__((noinline)) void lead_block(HostBlock::Shared& shared, Lead lead) {
  shared.leader_frame = static_cast<char*>(__builtin_frame_address(0));
  const Team team{HostBlock{&shared, -1}};
  lead(team, shared.work);
  team.end();
}

// Runs lead(team, work) in a block of threads; returns the number of verbs.
template <class Lead>
int conduct(Lead lead) {
  HostBlock::Shared shared;
  std::vector<std::thread> workers;
  for (int i = 0; i < HostBlock::kWorkers; ++i)
    workers.emplace_back([&shared, i] {
      this_worker = i;
      serve_verbs(HostBlock{&shared, i});
    });
  lead_block(shared, lead);
  for (std::thread& worker : workers) worker.join();
  return shared.calls;
}

}  // namespace
}  // namespace advcore::forked

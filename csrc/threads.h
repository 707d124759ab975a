// Work that several threads share.
#pragma once

#include <future>
#include <system_error>
#include <vector>

namespace advcore {

// Calls work() on up to so many threads, this one among them, and waits for all. Where the system
// starts fewer, fewer do the work.
template <class Work>
void on_threads(int threads, const Work& work) {
  std::vector<std::future<void>> others;
  try {
    for (int i = 1; i < threads; ++i) others.push_back(std::async(std::launch::async, work));
  } catch (const std::system_error&) {
  }
  work();
  for (std::future<void>& other : others) other.get();
}

}  // namespace advcore

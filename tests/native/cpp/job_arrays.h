// The arrays that a Job writes its results to, for the check programs.
#pragma once

#include <cstring>
#include <vector>

#include "engine.h"

struct Arrays {
  Arrays(advcore::Job& job, size_t n) {
    const size_t count = static_cast<size_t>(job.count);
    adversarial.assign(count * n, -1.0f), floats.resize(4 * count), ints.resize(5 * count);
    bytes.resize(2 * count);
    job.adversarial = adversarial.data();
    float* const f = floats.data();
    job.distortion = f, job.margin = f + count, job.c = f + 2 * count, job.penalty = f + 3 * count;
    int* const i = ints.data();
    job.prediction = i, job.evaluations = i + count, job.forwards = i + 2 * count;
    job.iterations = i + 3 * count, job.rescues = i + 4 * count;
    job.success = reinterpret_cast<uint8_t*>(bytes.data()), job.status = bytes.data() + count;
  }
  bool same(const Arrays& other) const {  // bit for bit, NaN too
    const size_t bytes_of_all = floats.size() * sizeof(float);
    return adversarial == other.adversarial && ints == other.ints && bytes == other.bytes &&
           std::memcmp(floats.data(), other.floats.data(), bytes_of_all) == 0;
  }
  std::vector<float> adversarial, floats;
  std::vector<int> ints;
  std::vector<int8_t> bytes;
};

#include "cuda/device.h"

namespace advcore {

CudaStatus cuda_status() {
  CudaStatus status{true, 0, ""};
  const cudaError_t code = cudaGetDeviceCount(&status.devices);
  if (code != cudaSuccess) {
    cudaGetLastError();
    status.devices = 0;
    status.reason = cudaGetErrorString(code);
  } else if (status.devices == 0) {
    status.reason = "no CUDA device is visible";
  }
  return status;
}

CudaProbe cuda_probe(int device) try {
  CudaProbe probe;
  cuda::check(cudaDriverGetVersion(&probe.driver), "version of the driver");
  const cuda::CurrentDevice current(device);
  probe.missing = cuda::code_missing(device);
  return probe;
} catch (const std::runtime_error& error) {
  return {0, error.what()};
}

namespace cuda {

std::string code_missing(int device) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "properties of the device");
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, kernels().advance) == cudaSuccess) return "";
  cudaGetLastError();
  return std::string(properties.name) + " has compute capability " +
         std::to_string(properties.major) + "." + std::to_string(properties.minor) +
         ", for which this build has no code (8.0 and later)";
}

Device::Device(const Params& params, const Job& job, const CudaArena& layout, int slots, int device,
               void* arena, void* caller_stream)
    : id(device),
      stream(static_cast<cudaStream_t>(caller_stream)),
      base(static_cast<char*>(arena)) {
  select();
  if (const std::string missing = code_missing(device); !missing.empty())
    throw std::runtime_error("CUDA: " + missing);

  check(cudaMemsetAsync(base, 0, layout.cleared, stream), "clearing the arena");
  list = reinterpret_cast<int*>(base + layout.rows);
  float* const bounds = reinterpret_cast<float*>(base + layout.bounds);
  float* const vectors = reinterpret_cast<float*>(base + layout.vectors);
  run = {params,
         reinterpret_cast<Problem*>(base + layout.problems),
         list,
         nullptr,
         reinterpret_cast<uint8_t*>(base + layout.done),
         reinterpret_cast<uint8_t*>(base + layout.done) + slots,
         reinterpret_cast<float*>(base + layout.loss_rows),
         false};
  const size_t count = static_cast<size_t>(slots), n = static_cast<size_t>(params.n);
  const size_t floats = slot_floats(params, job.own_bounds);
  const size_t starts = static_cast<size_t>(params.starts) * static_cast<size_t>(params.stride);
  std::vector<Problem> problems(count);
  for (size_t i = 0; i < count; ++i) {
    Problem& p = problems[i];
    float* const memory = vectors + i * (floats + starts);
    p.lo = bounds;
    p.hi = bounds + params.stride;
    carve_slot(params, job.own_bounds, memory, p);
    p.starts = memory + floats;
  }
  this->slots = {run.problems, vectors};
  check(cudaMemcpyAsync(run.problems, problems.data(), count * sizeof(Problem),
                        cudaMemcpyHostToDevice, stream),
        "slots");
  if (!job.own_bounds) {
    check(cudaMemcpyAsync(bounds, job.lo, n * 4, cudaMemcpyHostToDevice, stream), "lower bounds");
    check(cudaMemcpyAsync(bounds + params.stride, job.hi, n * 4, cudaMemcpyHostToDevice, stream),
          "upper bounds");
  }
  wait("preparing the slots");
}

}  // namespace cuda
}  // namespace advcore

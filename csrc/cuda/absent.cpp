// The interface of a build without CUDA.
#include <stdexcept>

#include "cuda/tile.h"

namespace advcore {

struct CudaTile::Device {};

CudaStatus cuda_status() {
  return {false, 0,
          "this build of advcore has no CUDA: no CUDA compiler was found when it was made"};
}

CudaTile::CudaTile(const Params& params, const Job& job, Feed& feed, int slots, int, void*, void*)
    : params_(params), job_(job), feed_(feed), slots_(slots) {
  throw std::runtime_error(cuda_status().reason);
}
CudaTile::~CudaTile() = default;
int CudaTile::fill() { return 0; }
void CudaTile::gather(float*, float*) {}
void CudaTile::heads(const float*, float*) {}
void CudaTile::advance(const float*) {}
void CudaTile::interrupt() {}

}  // namespace advcore

// What the parts of the compiled module share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include "engine.h"

namespace advcore {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Floats = Array<float>;
using Results = py::typing::Dict<py::str, py::array>;
using Addresses = py::typing::Dict<py::str, py::int_>;

// The options and input arrays of a run, checked once and kept. Arrays are float32, row major.
struct PyJob {
  PyJob(const Params& params, Floats images, Array<int32_t> labels, Floats lo, Floats hi,
        std::optional<Floats> starts);

  bool own_bounds() const { return lo.ndim() == 2; }

  Params params;
  Floats images;                 // (N, n)
  Array<int32_t> labels;         // (N): target, or the class to leave
  Floats lo, hi;                 // (n), or (N, n)
  std::optional<Floats> starts;  // (N, params.starts, n)
};

// One run of a job, with the arrays that it writes; `results` names them.
class Run {
 public:
  explicit Run(const PyJob& inputs);

  Counts counts() const { return work.counts(); }

  const PyJob inputs;
  const Params& params = inputs.params;
  Job job;
  WorkQueue work;
  Results results;

 private:
  template <class T>
  T* make(const char* name, std::vector<py::ssize_t> shape) {
    Array<T> array(std::move(shape));
    results[name] = array;
    return array.mutable_data();
  }
};

inline Addresses addresses(const SlotRows& rows) {
  Addresses out;
  out["problems"] = reinterpret_cast<uintptr_t>(rows.problems);
  out["vectors"] = reinterpret_cast<uintptr_t>(rows.vectors);
  return out;
}

void bind_job(py::module_& m);     // job.cpp
void bind_cuda(py::module_& m);    // cuda.cpp
void bind_arrays(py::module_& m);  // arrays.cpp

}  // namespace advcore

// What the two parts of the compiled module share.
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

// A job and the arrays that it writes; `results` names them.
struct Run {
  Run(const Params& given, Floats images, Array<int32_t> labels, Floats lo, Floats hi,
      std::optional<Floats> starts)
      : params(given), images_(images), labels_(labels), lo_(lo), hi_(hi), starts_(starts) {
    params.stride = row_stride(params.n);
    job.count = images.shape(0);
    job.images = images_.data();
    job.labels = labels_.data();
    job.lo = lo_.data();
    job.hi = hi_.data();
    job.own_bounds = lo.ndim() == 2;
    job.starts = starts_ ? starts_->data() : nullptr;
    job.adversarial = make<float>("adversarial", {images.shape(0), images.shape(1)});
    job.success = reinterpret_cast<uint8_t*>(make<bool>("success"));
    job.distortion = make<float>("distortion");
    job.margin = make<float>("margin");
    job.c = make<float>("c");
    job.penalty = make<float>("penalty_distortion");
    job.prediction = make<int32_t>("prediction");
    job.status = make<int8_t>("status");
    job.evaluations = make<int32_t>("evaluations");
    job.forwards = make<int32_t>("forwards");
    job.iterations = make<int32_t>("iterations");
    job.rescues = make<int32_t>("rescues");
  }
  template <class T>
  T* make(const char* name, std::vector<py::ssize_t> shape = {}) {
    if (shape.empty()) shape = {static_cast<py::ssize_t>(job.count)};
    Array<T> array(shape);
    results[name] = array;
    return array.mutable_data();
  }

  Params params;
  Job job;
  Feed feed;
  Results results;

 private:
  Floats images_;
  Array<int32_t> labels_;
  Floats lo_, hi_;
  std::optional<Floats> starts_;
};

inline Addresses addresses(const SlotRows& rows) {
  Addresses out;
  out["problems"] = reinterpret_cast<uintptr_t>(rows.problems);
  out["vectors"] = reinterpret_cast<uintptr_t>(rows.vectors);
  return out;
}

void bind_cuda(py::module_& m);  // cuda.cpp

}  // namespace advcore

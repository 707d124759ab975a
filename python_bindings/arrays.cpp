// Passes over all images of a call.
#include "arrays.h"

#include "bindings.h"

namespace advcore {

void bind_arrays(py::module_& m) {
  m.def(
      "distances",
      [](const Floats& x, const Floats& clean, int threads) {
        if (x.ndim() != 2 || clean.ndim() != 2 || x.shape(0) != clean.shape(0) ||
            x.shape(1) != clean.shape(1))
          throw std::invalid_argument("x and clean must be (rows, values), of one shape");
        Array<double> out(x.shape(0));
        double* const to = out.mutable_data();
        const py::gil_scoped_release release;
        distances(x.data(), clean.data(), x.shape(0), x.shape(1), threads, to);
        return out;
      },
      "L2 distance (N,) float64 of each row of x and clean (N, n) float32; csrc/arrays.h.",
      py::arg("x").noconvert(), py::arg("clean").noconvert(), py::arg("threads") = 1);
  m.def(
      "value_range",
      [](const Floats& x, int threads) {
        ValueRange range{};
        {
          const py::gil_scoped_release release;
          range = value_range(x.data(), x.size(), threads);
        }
        return py::make_tuple(range.low, range.high, range.finite);
      },
      "(smallest, largest, whether all are finite) of the values of x; csrc/arrays.h.",
      py::arg("x").noconvert(), py::arg("threads") = 1);
}

}  // namespace advcore

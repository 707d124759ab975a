// A job, the run of one, and how far a run is.
#include "bindings.h"

#include <algorithm>

namespace advcore {
namespace {

void expect_shape(const char* name, const py::array& array, std::vector<py::ssize_t> shape) {
  if (std::equal(shape.begin(), shape.end(), array.shape(), array.shape() + array.ndim())) return;
  std::string text;
  for (const py::ssize_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  throw std::invalid_argument(std::string(name) + " must have the shape (" + text + ")");
}

}  // namespace

PyJob::PyJob(const Params& given, Floats images, Array<int32_t> labels, Floats lo, Floats hi,
             std::optional<Floats> starts)
    : params(given), images(images), labels(labels), lo(lo), hi(hi), starts(starts) {
  params.stride = row_stride(params.n);
  const py::ssize_t n = params.n, count = images.ndim() > 0 ? images.shape(0) : 0;
  expect_shape("images", images, {count, n});
  expect_shape("labels", labels, {count});
  const std::vector<py::ssize_t> of_bounds = own_bounds() ? std::vector{count, n} : std::vector{n};
  expect_shape("lo", lo, of_bounds);
  expect_shape("hi", hi, of_bounds);
  if (starts.has_value() != (params.starts > 0))
    throw std::invalid_argument(
        "starts must be given where params.starts is not 0, and only there");
  if (starts) expect_shape("starts", *starts, {count, params.starts, n});
}

Run::Run(const PyJob& given) : inputs(given) {
  const py::ssize_t count = inputs.images.shape(0);
  job.count = count;
  job.images = inputs.images.data();
  job.labels = inputs.labels.data();
  job.lo = inputs.lo.data();
  job.hi = inputs.hi.data();
  job.own_bounds = inputs.own_bounds();
  job.starts = inputs.starts ? inputs.starts->data() : nullptr;
  job.adversarial = make<float>("adversarial", {count, inputs.images.shape(1)});
  job.success = reinterpret_cast<uint8_t*>(make<bool>("success", {count}));
  job.distortion = make<float>("distortion", {count});
  job.margin = make<float>("margin", {count});
  job.c = make<float>("c", {count});
  job.penalty = make<float>("penalty_distortion", {count});
  job.prediction = make<int32_t>("prediction", {count});
  job.status = make<int8_t>("status", {count});
  job.evaluations = make<int32_t>("evaluations", {count});
  job.forwards = make<int32_t>("forwards", {count});
  job.iterations = make<int32_t>("iterations", {count});
  job.rescues = make<int32_t>("rescues", {count});
}

void bind_job(py::module_& m) {
  py::class_<Counts> counts(m, "Counts", "Of the finished images of a run; csrc/counts.h.");
  counts.def(py::init<>());
  for (const CountField& field : kCountFields) counts.def_readwrite(field.name, field.field);
  counts.def(
      "__add__",
      [](Counts a, const Counts& b) {
        add_counts(a, b, [](int64_t& total, int64_t value) { total += value; });
        return a;
      },
      py::is_operator());
  py::class_<PyJob>(m, "Job",
                    "Options and input arrays of a run: images (N, n), labels (N,), "
                    "bounds (n,) or (N, n), starts (N, S, n) or None.")
      .def(py::init<const Params&, Floats, Array<int32_t>, Floats, Floats, std::optional<Floats>>(),
           py::arg("params"), py::arg("images").noconvert(), py::arg("labels").noconvert(),
           py::arg("lo").noconvert(), py::arg("hi").noconvert(), py::arg("starts").noconvert())
      .def_readonly("params", &PyJob::params);
}

}  // namespace advcore

// The compiled module advcore._core. Arrays arrive checked by the Python layer: C-contiguous, exact
// dtypes, shapes that agree; here they are only taken apart.
#include <pybind11/functional.h>
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <tuple>

#include "cuda/queue.h"
#include "engine.h"

namespace py = pybind11;
using namespace advcore;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Floats = Array<float>;
using Results = py::typing::Dict<py::str, py::array>;
using Layers = std::vector<std::tuple<Floats, Floats, std::string, float>>;

std::vector<LayerSpec> layer_specs(const Layers& layers) {
  std::vector<LayerSpec> specs;
  for (const auto& [weight, bias, activation, slope] : layers) {
    if (weight.ndim() != 2 || bias.ndim() != 1)
      throw std::invalid_argument("a layer is (weight (outputs, inputs), bias (outputs), ...)");
    specs.push_back({static_cast<int>(weight.shape(1)),
                     static_cast<int>(weight.shape(0)),
                     activation_from_name(activation.c_str()),
                     slope,
                     {weight.data(), weight.data() + weight.size()},
                     {bias.data(), bias.data() + bias.size()}});
  }
  return specs;
}

struct PyNetwork {
  explicit PyNetwork(const Layers& layers) : net(layer_specs(layers)), rows(net) {}

  Floats forward(const Floats& x, const std::optional<Floats>& k, std::optional<Floats> widths,
                 bool measure) {
    if (x.ndim() != 2 || x.shape(1) != net.inputs())
      throw std::invalid_argument("x must be (rows, inputs)");
    Floats logits({x.shape(0), static_cast<py::ssize_t>(net.classes())});
    rows.forward(x.data(), static_cast<int>(x.shape(0)), k ? k->data() : nullptr,
                 widths ? widths->mutable_data() : nullptr, measure, logits.mutable_data());
    return logits;
  }
  Floats backward(const Floats& dlogits) {
    if (dlogits.ndim() != 2 || dlogits.shape(0) != rows.rows() || dlogits.shape(1) != net.classes())
      throw std::invalid_argument("dlogits must have the shape of the last forward's logits");
    Floats dx({dlogits.shape(0), static_cast<py::ssize_t>(net.inputs())});
    rows.backward(dlogits.data(), dx.mutable_data());
    return dx;
  }

  Network net;
  Propagation rows;
};

// A job and the arrays that it writes; `results` names them.
struct Run {
  Run(const Params& given, Floats images, Array<int32_t> labels, Floats lo, Floats hi,
      std::optional<Floats> starts)
      : params(given), images_(images), labels_(labels), lo_(lo), hi_(hi), starts_(starts) {
    params.padded_n = row_stride(params.n);
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

using Poll = std::function<bool(int64_t, int64_t, int64_t)>;

// Solves on the native network; returns (results, error): what poll raised, or KeyboardInterrupt.
py::typing::Tuple<Results, py::object> solve_native(const PyNetwork& network, const Params& params,
                                                    Floats images, Array<int32_t> labels, Floats lo,
                                                    Floats hi, std::optional<Floats> starts,
                                                    int threads, int slots, const Poll& poll) {
  Run run(params, images, labels, lo, hi, starts);
  py::object error = py::none();
  const auto watch = [&] {
    const py::gil_scoped_acquire gil;
    try {
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      return poll(run.feed.finished, run.feed.succeeded, run.feed.evaluations);
    } catch (py::error_already_set& raised) {
      error = raised.value();
      return false;
    }
  };
  {
    const py::gil_scoped_release release;
    solve(network.net, run.params, run.job, threads, slots, run.feed, watch);
  }
  return py::make_tuple(run.results, error);
}

using Addresses = py::typing::Dict<py::str, py::int_>;

Addresses addresses(const SlotRows& rows) {
  Addresses out;
  out["problems"] = reinterpret_cast<uintptr_t>(rows.problems);
  out["x"] = reinterpret_cast<uintptr_t>(rows.x);
  out["dx"] = reinterpret_cast<uintptr_t>(rows.dx);
  out["stride"] = rows.stride;
  return out;
}

// Bytes from the start of a Problem, its size, and lengths of its arrays.
Addresses problem_layout() {
  const Problem p;
  Addresses out;
  const auto add = [&](const char* name, const auto& field) {
    out[name] = reinterpret_cast<const char*>(&field) - reinterpret_cast<const char*>(&p);
  };
  const State& s = p.state;
  add("want_gradient", s.want_gradient);
  add("measure", s.measure);
  add("targeted", s.targeted);
  add("label", s.label);
  add("excluded", s.excluded);
  add("exclusions", s.exclusions);
  add("against", s.against);
  add("k", s.k);
  add("T", s.T);
  add("schedule", s.schedule);
  add("stage", s.stage);
  add("margin", s.eval.margin);
  add("log_odds", s.eval.log_odds);
  add("kappa", s.eval.kappa);
  add("rounding", s.eval.rounding);
  add("prediction", s.eval.prediction);
  add("runner_up", s.eval.runner_up);
  add("finite", s.eval.finite);
  out["size"] = sizeof(Problem);
  out["max_schedules"] = kMaxSchedules;
  out["max_stages"] = kMaxStages;
  return out;
}

// The same rounds with the evaluation left to the caller.
class Session : public Run {
 public:
  Session(const Params& params, Floats images, Array<int32_t> labels, Floats lo, Floats hi,
          std::optional<Floats> starts, int slots)
      : Run(params, images, labels, lo, hi, starts), tile_(this->params, job, feed, slots, isa()) {
    clear_results(this->params, job);
  }

  // (x (B, n), k (B), slots (B), measure (B), gradient rows, which come first)
  py::typing::Tuple<Floats, Floats, Array<int32_t>, Array<bool>, int> fill() {
    const int rows = tile_.fill();
    Floats x({rows, params.n}), k(rows);
    Array<int32_t> slots(rows);
    Array<bool> measure(rows);
    tile_.gather(x.mutable_data(), k.mutable_data(), slots.mutable_data(), measure.mutable_data());
    return py::make_tuple(x, k, slots, measure, tile_.gradient_rows());
  }

  // logits (B, K) -> seeds (gradient rows, K)
  Floats head(const Floats& logits) {
    if (logits.ndim() != 2 || logits.shape(0) != tile_.rows() || logits.shape(1) != params.classes)
      throw std::invalid_argument("logits must be (rows of the last fill, classes)");
    Floats seeds({tile_.gradient_rows(), params.classes});
    tile_.heads(logits.data(), seeds.mutable_data());
    return seeds;
  }

  // gradients (gradient rows, n); None: they are where slot_rows() says
  void advance(const std::optional<Floats>& gradients) {
    if (gradients && (gradients->ndim() != 2 || gradients->shape(0) != tile_.gradient_rows() ||
                      gradients->shape(1) != params.n))
      throw std::invalid_argument("gradients must be (gradient rows of the last fill, n)");
    if (gradients) tile_.take_gradients(gradients->data());
    tile_.advance();
  }
  Addresses slot_rows() { return addresses(tile_.slot_rows()); }

  void interrupt() {
    feed.stop = true;
    tile_.interrupt();
  }

 private:
  Tile tile_;
};

// The same on a GPU: arrays are addresses of device memory, used on the given stream.
class CudaSession : public Run {
 public:
  CudaSession(const Params& params, Floats images, Array<int32_t> labels, Floats lo, Floats hi,
              std::optional<Floats> starts, int slots, int device, uintptr_t arena,
              uintptr_t stream)
      : Run(params, images, labels, lo, hi, starts) {
    clear_results(this->params, job);
    const py::gil_scoped_release release;
    tile_ =
        std::make_unique<CudaTile>(this->params, job, feed, slots, device,
                                   reinterpret_cast<void*>(arena), reinterpret_cast<void*>(stream));
  }

  // Slots of this round's rows and which of them are measured; None where the rows are the last's.
  std::optional<std::pair<Array<int32_t>, Array<bool>>> fill() {
    {
      const py::gil_scoped_release release;
      tile_->fill();
    }
    if (!tile_->fresh()) return std::nullopt;
    const std::vector<int>& rows = tile_->rows();
    const py::ssize_t count = static_cast<py::ssize_t>(rows.size());
    Array<int32_t> slots(count);
    Array<bool> measure(count);
    for (py::ssize_t row = 0; row < count; ++row) {
      const int slot = rows[static_cast<size_t>(row)];
      slots.mutable_at(row) = slot;
      measure.mutable_at(row) = params.smoothable && tile_->measured(slot);
    }
    return std::pair(slots, measure);
  }
  void gather(uintptr_t x, uintptr_t k) { tile_->gather(floats(x), floats(k)); }
  void head(uintptr_t logits, uintptr_t seeds) { tile_->heads(floats(logits), floats(seeds)); }
  void advance(uintptr_t gradients) { tile_->advance(floats(gradients)); }
  void interrupt() {
    feed.stop = true;
    const py::gil_scoped_release release;
    tile_->interrupt();
  }

 private:
  static float* floats(uintptr_t address) { return reinterpret_cast<float*>(address); }

  std::unique_ptr<CudaTile> tile_;
};

// A whole run on a GPU; csrc/cuda/queue.h has the contract.
class PyCudaQueue : public Run {
 public:
  PyCudaQueue(const Params& params, Floats images, Array<int32_t> labels, Floats lo, Floats hi,
              std::optional<Floats> starts, int slots, int64_t capacity, int device,
              uintptr_t arena, uintptr_t stream)
      : Run(params, images, labels, lo, hi, starts) {
    clear_results(this->params, job);
    const py::gil_scoped_release release;
    queue = std::make_unique<CudaQueue>(this->params, job, feed, slots, capacity, device,
                                        reinterpret_cast<void*>(arena),
                                        reinterpret_cast<void*>(stream));
  }
  Addresses slot_rows() const {
    Addresses out = addresses(queue->slot_rows());
    out["rows"] = reinterpret_cast<uintptr_t>(queue->rows());
    out["count"] = reinterpret_cast<uintptr_t>(queue->count());
    return out;
  }
  void add(const py::bytes& code, const std::string& name, std::array<unsigned, 3> grid,
           unsigned threads, unsigned shared, const std::vector<py::bytes>& arguments) {
    queue->add({code, name, grid, threads, shared, {arguments.begin(), arguments.end()}});
  }
  bool wait(double seconds) {
    const py::gil_scoped_release release;
    return queue->wait(seconds);
  }

  std::unique_ptr<CudaQueue> queue;
};

void add_schedule(Params& params, const std::vector<float>& smoothing,
                  const std::vector<int>& budget, const std::vector<float>& temperature,
                  float origin) {
  if (params.schedules == kMaxSchedules || smoothing.empty() || smoothing.size() > kMaxStages ||
      smoothing.size() != budget.size() || smoothing.size() != temperature.size())
    throw std::invalid_argument("a schedule has 1 to 8 stages, Params up to 10 schedules");
  for (const float T : temperature)
    if (!(T > 0)) throw std::invalid_argument("a temperature must be positive");
  Schedule& schedule = params.schedule[params.schedules++];
  schedule.stages = static_cast<int>(smoothing.size());
  std::copy(smoothing.begin(), smoothing.end(), schedule.smoothing);
  std::copy(budget.begin(), budget.end(), schedule.budget);
  std::copy(temperature.begin(), temperature.end(), schedule.temperature);
  schedule.origin = origin;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Compiled engine of advcore.";
  py::native_enum<Status>(m, "Status", "enum.IntEnum", "How the search of one image ended.")
      .value("converged", Status::converged)
      .value("already_adversarial", Status::already_adversarial)
      .value("budget", Status::budget)
      .value("stalled", Status::stalled)
      .value("not_found", Status::not_found)
      .value("non_finite", Status::non_finite)
      .value("interrupted", Status::interrupted)
      .finalize();
  py::native_enum<Loss>(m, "Loss", "enum.IntEnum")
      .value("margin", Loss::margin)
      .value("cross_entropy", Loss::cross_entropy)
      .finalize();
  py::native_enum<CSearch>(m, "CSearch", "enum.IntEnum")
      .value("fused", CSearch::fused)
      .value("bisection", CSearch::bisection)
      .finalize();

  py::class_<Params> params(m, "Params", "Options of a run; csrc/problem.h describes each.");
  params
      .def(py::init([] {
        Params p;
        p.schedules = 0;
        return p;
      }))
      .def_readwrite("n", &Params::n)
      .def_readwrite("classes", &Params::classes)
      .def_readwrite("targeted", &Params::targeted)
      .def_readwrite("loss", &Params::loss)
      .def_readwrite("c_search", &Params::c_search)
      .def_readwrite("confidence", &Params::confidence)
      .def_readwrite("c_init", &Params::c_init)
      .def_readwrite("unsquared", &Params::unsquared)
      .def_readwrite("history", &Params::history)
      .def_readwrite("tolerance", &Params::tolerance)
      .def_readwrite("patience", &Params::patience)
      .def_readwrite("pass_on", &Params::pass_on)
      .def_readwrite("polish_tolerance", &Params::polish_tolerance)
      .def_readwrite("polish_budget", &Params::polish_budget)
      .def_readwrite("max_evaluations", &Params::max_evaluations)
      .def_readwrite("attempts", &Params::attempts)
      .def_readwrite("smoothable", &Params::smoothable)
      .def_readwrite("starts", &Params::starts)
      .def_readwrite("seed", &Params::seed)
      .def_property_readonly("temperatures",
                             [](const Params& p) {
                               Floats out({kMaxSchedules, kMaxStages});
                               for (int i = 0; i < kMaxSchedules; ++i)
                                 for (int j = 0; j < kMaxStages; ++j)
                                   out.mutable_at(i, j) = p.schedule[i].temperature[j];
                               return out;
                             })
      .def("add_schedule", &add_schedule, py::arg("smoothing"), py::arg("budget"),
           py::arg("temperature"), py::arg("origin") = -1.0f);

  py::class_<PyNetwork>(m, "Network", "A fully connected network packed for this CPU.")
      .def(py::init<const Layers&>(), py::arg("layers"))
      .def("forward", &PyNetwork::forward, py::arg("x").noconvert(), py::arg("k") = py::none(),
           py::arg("widths") = py::none(), py::arg("measure") = false)
      .def("backward", &PyNetwork::backward, py::arg("dlogits").noconvert())
      .def_property_readonly("inputs", [](const PyNetwork& n) { return n.net.inputs(); })
      .def_property_readonly("classes", [](const PyNetwork& n) { return n.net.classes(); })
      .def_property_readonly("smoothable", [](const PyNetwork& n) { return n.net.smoothable(); });

  m.def("solve", &solve_native, py::arg("network"), py::arg("params"),
        py::arg("images").noconvert(), py::arg("labels").noconvert(), py::arg("lo").noconvert(),
        py::arg("hi").noconvert(), py::arg("starts").noconvert(), py::arg("threads"),
        py::arg("slots"), py::arg("poll"));

  py::class_<Session>(m, "Session", "Rounds of the solver with the evaluations left to the caller.")
      .def(py::init<const Params&, Floats, Array<int32_t>, Floats, Floats, std::optional<Floats>,
                    int>(),
           py::arg("params"), py::arg("images").noconvert(), py::arg("labels").noconvert(),
           py::arg("lo").noconvert(), py::arg("hi").noconvert(), py::arg("starts").noconvert(),
           py::arg("slots"))
      .def("fill", &Session::fill)
      .def("head", &Session::head, py::arg("logits").noconvert())
      .def("advance", &Session::advance, py::arg("gradients").noconvert())
      .def("slot_rows", &Session::slot_rows)
      .def("interrupt", &Session::interrupt)
      .def_property_readonly("finished", [](const Session& s) { return s.feed.finished.load(); })
      .def_property_readonly("succeeded", [](const Session& s) { return s.feed.succeeded.load(); })
      .def_property_readonly("evaluations",
                             [](const Session& s) { return s.feed.evaluations.load(); })
      .def_property_readonly("results", [](const Session& s) { return s.results; });

  py::class_<CudaSession>(m, "CudaSession", "Session on a GPU; csrc/cuda/tile.h has the contract.")
      .def(py::init<const Params&, Floats, Array<int32_t>, Floats, Floats, std::optional<Floats>,
                    int, int, uintptr_t, uintptr_t>(),
           py::arg("params"), py::arg("images").noconvert(), py::arg("labels").noconvert(),
           py::arg("lo").noconvert(), py::arg("hi").noconvert(), py::arg("starts").noconvert(),
           py::arg("slots"), py::arg("device"), py::arg("arena"), py::arg("stream"))
      .def("fill", &CudaSession::fill)
      .def("gather", &CudaSession::gather, py::arg("x"), py::arg("k"))
      .def("head", &CudaSession::head, py::arg("logits"), py::arg("seeds"))
      .def("advance", &CudaSession::advance, py::arg("gradients"))
      .def("interrupt", &CudaSession::interrupt)
      .def_property_readonly("finished",
                             [](const CudaSession& s) { return s.feed.finished.load(); })
      .def_property_readonly("succeeded",
                             [](const CudaSession& s) { return s.feed.succeeded.load(); })
      .def_property_readonly("evaluations",
                             [](const CudaSession& s) { return s.feed.evaluations.load(); })
      .def_property_readonly("results", [](const CudaSession& s) { return s.results; });
  py::class_<PyCudaQueue>(m, "CudaQueue", "A whole run on a GPU; csrc/cuda/queue.h.")
      .def(py::init<const Params&, Floats, Array<int32_t>, Floats, Floats, std::optional<Floats>,
                    int, int64_t, int, uintptr_t, uintptr_t>(),
           py::arg("params"), py::arg("images").noconvert(), py::arg("labels").noconvert(),
           py::arg("lo").noconvert(), py::arg("hi").noconvert(), py::arg("starts").noconvert(),
           py::arg("slots"), py::arg("capacity"), py::arg("device"), py::arg("arena"),
           py::arg("stream"))
      .def("slot_rows", &PyCudaQueue::slot_rows)
      .def("add", &PyCudaQueue::add, py::arg("code"), py::arg("name"), py::arg("grid"),
           py::arg("threads"), py::arg("shared"), py::arg("arguments"))
      .def("wait", &PyCudaQueue::wait, py::arg("seconds"))
      .def("stop", [](PyCudaQueue& q) { q.queue->stop(); })
      .def_property_readonly("looping", [](const PyCudaQueue& q) { return q.queue->looping(); })
      .def_property_readonly("rounds", [](const PyCudaQueue& q) { return q.queue->rounds(); })
      .def_property_readonly("finished", [](const PyCudaQueue& q) { return q.queue->finished(); })
      .def_property_readonly("succeeded", [](const PyCudaQueue& q) { return q.queue->succeeded(); })
      .def_property_readonly("evaluations",
                             [](const PyCudaQueue& q) { return q.queue->evaluations(); })
      .def_property_readonly("results", [](const PyCudaQueue& q) { return q.results; });

  m.def("problem_layout", &problem_layout,
        "Where kernels outside the engine find the scalars of a slot: bytes; csrc/problem.h.");
  m.def(
      "cuda_arena_bytes",
      [](Params params, bool own_bounds, int slots, int64_t images) {
        params.padded_n = row_stride(params.n);
        return cuda_arena(params, own_bounds, slots, images).bytes;
      },
      "Device memory of a CudaSession, or of a CudaQueue with so many images; needs no GPU.",
      py::arg("params"), py::arg("own_bounds"), py::arg("slots"), py::arg("images") = 0);
  m.def(
      "cuda_status",
      [] {
        const CudaStatus status = cuda_status();
        return py::make_tuple(status.built, status.devices, status.reason);
      },
      "(whether CUDA is in this build, devices, why there is none)");

  m.def("isa", [] { return isa().name; }, "The instruction set in use: base, v3 or v4.");
}

// The compiled module advcore._core. Arrays are C-contiguous and of the exact dtype.
#include <pybind11/functional.h>
#include <pybind11/native_enum.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <iterator>
#include <tuple>

#include "bindings.h"
#include "threads.h"

using namespace advcore;

namespace {

// The layers that it takes, and how a merge does; (channels, height, width) of the input, stride,
// padding, value of the padding by channel; pooling, its window, stride and padding, and ceil_mode
using Geometry = std::tuple<std::vector<int>, std::string, std::array<int, 3>, std::array<int, 2>,
                            std::array<int, 2>, Floats, std::string, std::array<int, 2>,
                            std::array<int, 2>, std::array<int, 2>, bool>;
using Layers = std::vector<std::tuple<Floats, Floats, std::string, float, std::optional<Geometry>>>;

Size size_of(const std::array<int, 2>& pair) { return {pair[0], pair[1]}; }

std::vector<LayerSpec> layer_specs(const Layers& layers) {
  std::vector<LayerSpec> specs;
  for (const auto& [weight, bias, activation, slope, geometry] : layers) {
    const bool merges = geometry && !std::get<1>(*geometry).empty();
    if (weight.ndim() != (merges ? 1 : geometry ? 4 : 2) || bias.ndim() != 1)
      throw std::invalid_argument(
          "a layer is (weight (outputs, inputs), bias (outputs), ...), a convolution's weight is "
          "(features, channels, y, x), that of a merge (channels)");
    LayerSpec& spec = specs.emplace_back();
    spec.inputs = merges ? 0 : static_cast<int>(weight.shape(1));
    spec.outputs = static_cast<int>(weight.shape(0));
    spec.activation = activation_from_name(activation.c_str());
    spec.slope = slope;
    spec.weight.assign(weight.data(), weight.data() + weight.size());
    spec.bias.assign(bias.data(), bias.data() + bias.size());
    if (!geometry) continue;
    const auto& [sources, how, shape, stride, padding, value, pooling, window, step, margin, ceil] =
        *geometry;
    const Size kernel =
        merges ? Size{1, 1}
               : Size{static_cast<int>(weight.shape(2)), static_cast<int>(weight.shape(3))};
    const Convolution& c = spec.convolution.emplace(Convolution{shape[0],
                                                                {shape[1], shape[2]},
                                                                kernel,
                                                                size_of(stride),
                                                                size_of(padding),
                                                                pooling_from_name(pooling.c_str()),
                                                                size_of(window),
                                                                size_of(step),
                                                                size_of(margin),
                                                                ceil});
    spec.sources = sources;
    spec.merge = merge_from_name(how.c_str());
    if (c.stride.y < 1 || c.stride.x < 1 || c.window.y < 1 || c.window.x < 1)
      throw std::invalid_argument("stride and window must be >= 1");
    const double padded = (shape[1] + 2.0 * padding[0]) * (shape[2] + 2.0 * padding[1]);
    const auto lines = [](py::ssize_t n) {
      return static_cast<double>((n + kPad - 1) / kPad * kPad);
    };
    if (padded * std::max(lines(shape[0]), lines(weight.shape(0))) > 1e9)
      throw std::invalid_argument("an image of a convolution must have fewer than 1e9 values");
    spec.inputs = c.channels * c.size.area();
    spec.outputs *= c.pooled().area();
    spec.padding_value.assign(value.data(), value.data() + value.size());
  }
  return specs;
}

struct PyNetwork {
  explicit PyNetwork(const Layers& layers) : net(layer_specs(layers)), rows(net) {}

  Floats forward(const Floats& x, const std::optional<Floats>& k, std::optional<Floats> scales,
                 bool record_scales) {
    if (x.ndim() != 2 || x.shape(1) != net.inputs())
      throw std::invalid_argument("x must be (rows, inputs)");
    Floats logits({x.shape(0), static_cast<py::ssize_t>(net.classes())});
    rows.forward(x.data(), static_cast<int>(x.shape(0)), k ? k->data() : nullptr,
                 scales ? scales->mutable_data() : nullptr, record_scales, logits.mutable_data());
    return logits;
  }
  Floats backward(const Floats& dlogits) {
    if (dlogits.ndim() != 2 || dlogits.shape(0) != rows.rows() || dlogits.shape(1) != net.classes())
      throw std::invalid_argument("dlogits must have the shape of the last forward's logits");
    Floats dx({dlogits.shape(0), static_cast<py::ssize_t>(net.inputs())});
    rows.backward(dlogits.data(), dx.mutable_data());
    return dx;
  }

  // Logits (rows, points, classes) of clean + t (end - clean) for each t, on several threads.
  Floats along(const Floats& clean, const Floats& end, const Floats& t, int threads) const {
    if (clean.ndim() != 2 || end.ndim() != 2 || t.ndim() != 1 || clean.shape(1) != net.inputs() ||
        end.shape(1) != net.inputs() || clean.shape(0) != end.shape(0))
      throw std::invalid_argument("clean and end must be (rows, inputs), t (points)");
    const auto count = static_cast<int>(clean.shape(0)), points = static_cast<int>(t.shape(0));
    const std::ptrdiff_t n = net.inputs(), classes = net.classes();
    Floats logits({clean.shape(0), t.shape(0), static_cast<py::ssize_t>(classes)});
    const float *from = clean.data(), *to = end.data(), *at = t.data();
    float* const out = logits.mutable_data();
    const int block = std::max(1, 24 / std::max(1, points));  // images at once
    std::atomic<int> next = 0;
    const auto work = [&] {
      Propagation pass(net);
      std::vector<float> x(static_cast<std::size_t>(block * points * n));
      for (int begin; (begin = next.fetch_add(block)) < count;) {
        const int images = std::min(block, count - begin);
        for (int i = 0; i < images * points; ++i) {
          const float s = at[i % points];
          const std::ptrdiff_t row = (begin + i / points) * n;
          for (std::ptrdiff_t j = 0; j < n; ++j)
            x[i * n + j] = from[row + j] + s * (to[row + j] - from[row + j]);
        }
        pass.forward(x.data(), images * points, nullptr, nullptr, false,
                     out + begin * points * classes);
      }
    };
    const py::gil_scoped_release release;
    on_threads(std::min(threads, (count + block - 1) / block), work);
    return logits;
  }

  Network net;
  Propagation rows;
};

using Poll = std::function<bool(const Counts&)>;

// Solves on the native network; returns (results, error): what poll raised, or KeyboardInterrupt.
py::typing::Tuple<Results, py::object> solve_native(const PyNetwork& network, const PyJob& job,
                                                    int threads, int slots, const Poll& poll) {
  Run run(job);
  py::object error = py::none();
  const auto watch = [&](const Counts& counts) {
    const py::gil_scoped_acquire gil;
    try {
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      return poll(counts);
    } catch (py::error_already_set& raised) {
      error = raised.value();
      return false;
    }
  };
  {
    const py::gil_scoped_release release;
    solve(network.net, run.params, run.job, threads, slots, run.work, watch);
  }
  return py::make_tuple(run.results, error);
}

// Bytes from the start of a Problem, its size, and lengths of its arrays.
Addresses problem_layout() {
  const Problem p;
  Addresses out;
  const auto add = [&](const char* name, const auto& field) {
    out[name] = reinterpret_cast<const char*>(&field) - reinterpret_cast<const char*>(&p);
  };
  const State& s = p.state;
  add("want_gradient", s.request.want_gradient);
  add("record_scales", s.request.record_scales);
  add("targeted", s.request.targeted);
  add("class_index", s.request.class_index);
  add("excluded_classes", s.request.excluded_classes);
  add("exclusions", s.request.exclusions);
  add("rival_class", s.request.rival_class);
  add("k", s.request.k);
  add("T", s.request.T);
  add("schedule", s.search.schedule);
  add("stage", s.search.stage);
  add("clean_margin", s.clean_margin);
  add("temperature", s.request.temperature);
  add("margin", s.eval.margin);
  add("log_odds", s.eval.log_odds);
  add("required_margin", s.eval.required_margin);
  add("rounding", s.eval.rounding);
  add("prediction", s.eval.prediction);
  add("runner_up", s.eval.runner_up);
  add("finite", s.eval.finite);
  add("trial", p.trial);
  add("trial_gradient", p.trial_gradient);
  out["size"] = sizeof(Problem);
  out["max_schedules"] = kMaxSchedules;
  out["max_stages"] = kMaxStages;
  return out;
}

// The same rounds with the evaluation left to the caller.
class Session : public Run {
 public:
  Session(const PyJob& inputs, int slots) : Run(inputs), pool_(params, job, work, slots, isa()) {
    clear_results(params, job);
  }

  // (x (B, n), k (B), slots (B), record_scales (B), number of gradient rows, which come first)
  py::typing::Tuple<Floats, Floats, Array<int32_t>, Array<bool>, int> refill() {
    const int rows = pool_.refill();
    Floats x({rows, params.n}), k(rows);
    Array<int32_t> slots(rows);
    Array<bool> record_scales(rows);
    pool_.gather(x.mutable_data(), k.mutable_data(), slots.mutable_data(),
                 record_scales.mutable_data());
    return py::make_tuple(x, k, slots, record_scales, pool_.gradient_rows());
  }

  // logits (B, K) -> dlogits (gradient rows, K)
  Floats margin_loss(const Floats& logits) {
    if (logits.ndim() != 2 || logits.shape(0) != pool_.rows() || logits.shape(1) != params.classes)
      throw std::invalid_argument("logits must be (rows of the last refill, classes)");
    Floats dlogits({pool_.gradient_rows(), params.classes});
    pool_.margin_losses(logits.data(), dlogits.mutable_data());
    return dlogits;
  }

  // gradients (gradient rows, n); None: they are where slot_rows() says
  void advance(const std::optional<Floats>& gradients) {
    if (gradients && (gradients->ndim() != 2 || gradients->shape(0) != pool_.gradient_rows() ||
                      gradients->shape(1) != params.n))
      throw std::invalid_argument("gradients must be (gradient rows of the last refill, n)");
    if (gradients) pool_.store_gradients(gradients->data());
    pool_.advance();
  }
  Addresses slot_rows() { return addresses(pool_.slot_rows()); }

  void interrupt() {
    work.stop = true;
    pool_.interrupt();
  }

 private:
  SlotPool pool_;
};

void add_stage(Schedule& schedule, float smoothing, int budget, float temperature) {
  if (schedule.stages == kMaxStages) throw std::invalid_argument("too many stages");
  if (!(temperature > 0)) throw std::invalid_argument("a temperature must be positive");
  schedule.smoothing[schedule.stages] = smoothing;
  schedule.budget[schedule.stages] = budget;
  schedule.temperature[schedule.stages++] = temperature;
}

void add_schedule(Params& params, const Schedule& schedule) {
  if (params.schedules == kMaxSchedules) throw std::invalid_argument("too many schedules");
  if (params.schedules == 0 && schedule.stages == 0)
    throw std::invalid_argument("the first schedule must have a stage");
  params.schedule[params.schedules++] = schedule;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Compiled engine of advcore.";
  py::native_enum<Status> statuses(m, "Status", "enum.IntEnum",
                                   "How the search of one image ended.");
  for (size_t i = 0; i < std::size(kStatusNames); ++i)
    statuses.value(kStatusNames[i], static_cast<Status>(i));
  statuses.finalize();
  py::native_enum<Loss>(m, "Loss", "enum.IntEnum")
      .value("margin", Loss::margin)
      .value("cross_entropy", Loss::cross_entropy)
      .finalize();
  py::native_enum<CSearch>(m, "CSearch", "enum.IntEnum")
      .value("fused", CSearch::fused)
      .value("bisection", CSearch::bisection)
      .finalize();
  py::native_enum<Norm>(m, "Norm", "enum.IntEnum")
      .value("l2", Norm::l2)
      .value("linf", Norm::linf)
      .value("l1", Norm::l1)
      .finalize();

  py::class_<DescentSettings> descent(m, "DescentSettings", "The descent of a search.");
  for_each_descent_setting(
      [&](const char* name, auto DescentSettings::* field) { descent.def_readwrite(name, field); });
  py::class_<Schedule> schedule(m, "Schedule", "A search of a run; csrc/params.h describes it.");
  for_each_schedule_setting(
      [&](const char* name, auto Schedule::* field) { schedule.def_readwrite(name, field); });
  schedule
      .def(py::init([] {
        Schedule s;
        s.stages = 0;
        return s;
      }))
      .def_readonly("descent", &Schedule::descent)
      .def("add_stage", &add_stage, py::arg("smoothing"), py::arg("budget"),
           py::arg("temperature"));
  py::class_<Params> params(m, "Params", "Options of a run; csrc/params.h describes each.");
  for_each_param(
      [&](const char* name, auto Params::* field) { params.def_readwrite(name, field); });
  params
      .def(py::init([] {
        Params p;
        p.schedules = 0;
        return p;
      }))
      .def_property_readonly("temperatures",
                             [](const Params& p) {
                               Floats out({kMaxSchedules, kMaxStages});
                               for (int i = 0; i < kMaxSchedules; ++i)
                                 for (int j = 0; j < kMaxStages; ++j)
                                   out.mutable_at(i, j) = p.schedule[i].temperature[j];
                               return out;
                             })
      .def("add_schedule", &add_schedule, py::arg("schedule"));

  py::class_<PyNetwork>(m, "Network", "A network packed for this CPU.")
      .def(py::init<const Layers&>(), py::arg("layers"))
      .def("forward", &PyNetwork::forward, py::arg("x").noconvert(), py::arg("k") = py::none(),
           py::arg("scales") = py::none(), py::arg("record_scales") = false)
      .def("backward", &PyNetwork::backward, py::arg("dlogits").noconvert())
      .def("along", &PyNetwork::along, py::arg("clean").noconvert(), py::arg("end").noconvert(),
           py::arg("t").noconvert(), py::arg("threads"))
      .def_property_readonly("inputs", [](const PyNetwork& n) { return n.net.inputs(); })
      .def_property_readonly("classes", [](const PyNetwork& n) { return n.net.classes(); })
      .def_property_readonly("row_bytes", [](const PyNetwork& n) { return n.net.row_bytes(); })
      .def_property_readonly("scales", [](const PyNetwork& n) { return n.net.scales(); })
      .def_property_readonly("smoothable", [](const PyNetwork& n) { return n.net.smoothable(); });

  bind_job(m);
  m.def("solve", &solve_native, py::arg("network"), py::arg("job"), py::arg("threads"),
        py::arg("slots"), py::arg("poll"));

  py::class_<Session>(m, "Session", "Rounds of the solver with the evaluations left to the caller.")
      .def(py::init<const PyJob&, int>(), py::arg("job"), py::arg("slots"))
      .def("refill", &Session::refill)
      .def("margin_loss", &Session::margin_loss, py::arg("logits").noconvert())
      .def("advance", &Session::advance, py::arg("gradients").noconvert())
      .def("slot_rows", &Session::slot_rows)
      .def("interrupt", &Session::interrupt)
      .def_property_readonly("counts", &Session::counts)
      .def_property_readonly("results", [](const Session& s) { return s.results; });

  m.def(
      "slot_bytes",
      [](Params params, bool own_bounds) {
        params.stride = row_stride(params.n);
        return slot_floats(params, own_bounds) * sizeof(float);
      },
      py::arg("params"), py::arg("own_bounds"), "Memory of the solver for an image in work.");
  m.def("problem_layout", &problem_layout,
        "Where kernels outside the engine find the scalars of a slot: bytes; csrc/problem.h.");
  bind_cuda(m);
  bind_arrays(m);

  m.def("isa", [] { return isa().name; }, "The instruction set in use: base, v3 or v4.");
}

// The part of the module for a GPU. Arrays on the device are addresses, used on the given stream.
#include "bindings.h"

#include "cuda/queue.h"

namespace advcore {
namespace {

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
    clear_numbers(job);
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

}  // namespace

void bind_cuda(py::module_& m) {
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
      .def_property_readonly("fillings", [](const PyCudaQueue& q) { return q.queue->fillings(); })
      .def_property_readonly("rounds", [](const PyCudaQueue& q) { return q.queue->rounds(); })
      .def_property_readonly("seconds", [](const PyCudaQueue& q) { return q.queue->seconds(); })
      .def_property_readonly("finished", [](const PyCudaQueue& q) { return q.queue->finished(); })
      .def_property_readonly("succeeded", [](const PyCudaQueue& q) { return q.queue->succeeded(); })
      .def_property_readonly("evaluations",
                             [](const PyCudaQueue& q) { return q.queue->evaluations(); })
      .def_property_readonly("results", [](const PyCudaQueue& q) { return q.results; });

  m.def(
      "cuda_arena_bytes",
      [](Params params, bool own_bounds, int slots, int64_t images) {
        params.stride = row_stride(params.n);
        return cuda_arena(params, own_bounds, slots, images).bytes;
      },
      "Device memory of a CudaSession, or of a CudaQueue with so many images; needs no GPU.",
      py::arg("params"), py::arg("own_bounds"), py::arg("slots"), py::arg("images") = 0);
  m.def("cuda_queue_missing", &cuda_queue_missing,
        "Why this build cannot run native networks on a GPU; empty: it can.");
  m.def(
      "cuda_status",
      [] {
        const CudaStatus status = cuda_status();
        return py::make_tuple(status.built, status.devices, status.reason);
      },
      "(whether CUDA is in this build, devices, why there is none)");
}

}  // namespace advcore

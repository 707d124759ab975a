// The part of the module for a GPU. Arrays on the device are addresses, used on the given stream.
#include "bindings.h"

#include "cuda/queue.h"

namespace advcore {
namespace {

// A Session (module.cpp) on a GPU. Arrays are addresses of device memory, used on the given stream.
class CudaSession : public Run {
 public:
  CudaSession(const PyJob& inputs, int slots, int device, uintptr_t arena, uintptr_t stream)
      : Run(inputs) {
    clear_results(params, job);
    const py::gil_scoped_release release;
    pool_ = std::make_unique<CudaSlotPool>(params, job, work, slots, device,
                                           reinterpret_cast<void*>(arena),
                                           reinterpret_cast<void*>(stream));
  }

  // Slots of this round's rows, and which of them record their scales; None where the rows are
  // those of the round before.
  std::optional<std::pair<Array<int32_t>, Array<bool>>> refill() {
    {
      const py::gil_scoped_release release;
      pool_->refill();
    }
    if (!pool_->fresh()) return std::nullopt;
    const std::vector<int>& rows = pool_->rows();
    const py::ssize_t count = static_cast<py::ssize_t>(rows.size());
    Array<int32_t> slots(count);
    Array<bool> record_scales(count);
    for (py::ssize_t row = 0; row < count; ++row) {
      const int slot = rows[static_cast<size_t>(row)];
      slots.mutable_at(row) = slot;
      record_scales.mutable_at(row) = params.smoothable && pool_->is_new(slot);
    }
    return std::pair(slots, record_scales);
  }
  bool smoothed() const { return pool_->smoothed(); }
  void gather(uintptr_t x, uintptr_t k) { pool_->gather(floats(x), floats(k)); }
  void margin_loss(uintptr_t logits, uintptr_t dlogits) {
    pool_->margin_losses(floats(logits), floats(dlogits));
  }
  void advance(uintptr_t gradients) { pool_->advance(floats(gradients)); }
  bool waits_next() const { return pool_->waits_next(); }
  void abandon() { pool_->abandon(); }
  void interrupt() {
    work.stop = true;
    const py::gil_scoped_release release;
    pool_->interrupt();
  }

 private:
  static float* floats(uintptr_t address) { return reinterpret_cast<float*>(address); }

  std::unique_ptr<CudaSlotPool> pool_;
};

// A whole run on a GPU; csrc/cuda/queue.h has the contract.
class PyCudaQueue : public Run {
 public:
  PyCudaQueue(const PyJob& inputs, int slots, int64_t capacity, int device, uintptr_t arena,
              uintptr_t stream)
      : Run(inputs) {
    clear_numbers(job);
    const py::gil_scoped_release release;
    queue = std::make_unique<CudaQueue>(params, job, work, slots, capacity, device,
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
  void close() {
    const py::gil_scoped_release release;
    queue->close();
  }

  std::unique_ptr<CudaQueue> queue;
};

}  // namespace

void bind_cuda(py::module_& m) {
  py::class_<CudaSession>(m, "CudaSession",
                          "Session on a GPU; csrc/cuda/slot_pool.h has the contract.")
      .def(py::init<const PyJob&, int, int, uintptr_t, uintptr_t>(), py::arg("job"),
           py::arg("slots"), py::arg("device"), py::arg("arena"), py::arg("stream"))
      .def("refill", &CudaSession::refill)
      .def_property_readonly("smoothed", &CudaSession::smoothed)
      .def("gather", &CudaSession::gather, py::arg("x"), py::arg("k"))
      .def("margin_loss", &CudaSession::margin_loss, py::arg("logits"), py::arg("dlogits"))
      .def("advance", &CudaSession::advance, py::arg("gradients"))
      .def("interrupt", &CudaSession::interrupt)
      .def("waits_next", &CudaSession::waits_next)
      .def("abandon", &CudaSession::abandon)
      .def_property_readonly("counts", &CudaSession::counts)
      .def_property_readonly("results", [](const CudaSession& s) { return s.results; });
  py::class_<PyCudaQueue>(m, "CudaQueue", "A whole run on a GPU; csrc/cuda/queue.h.")
      .def(py::init<const PyJob&, int, int64_t, int, uintptr_t, uintptr_t>(), py::arg("job"),
           py::arg("slots"), py::arg("capacity"), py::arg("device"), py::arg("arena"),
           py::arg("stream"))
      .def("slot_rows", &PyCudaQueue::slot_rows)
      .def("add", &PyCudaQueue::add, py::arg("code"), py::arg("name"), py::arg("grid"),
           py::arg("threads"), py::arg("shared"), py::arg("arguments"))
      .def("wait", &PyCudaQueue::wait, py::arg("seconds"))
      .def("stop", [](PyCudaQueue& q) { q.queue->stop(); })
      .def("close", &PyCudaQueue::close)
      .def("abandon", [](PyCudaQueue& q) { q.queue->abandon(); })
      .def_property_readonly("fillings", [](const PyCudaQueue& q) { return q.queue->fillings(); })
      .def_property_readonly("rounds", [](const PyCudaQueue& q) { return q.queue->rounds(); })
      .def_property_readonly("seconds", [](const PyCudaQueue& q) { return q.queue->seconds(); })
      .def_property_readonly("counts", [](const PyCudaQueue& q) { return q.queue->counts(); })
      .def_property_readonly("results", [](const PyCudaQueue& q) { return q.results; });

  m.def(
      "cuda_arena_bytes",
      [](Params params, bool own_bounds, int slots, int64_t images) {
        params.stride = row_stride(params.n);
        return cuda_arena(params, own_bounds, slots, images).bytes;
      },
      "Device memory of a CudaSession, or of a CudaQueue with so many images; needs no GPU.",
      py::arg("params"), py::arg("own_bounds"), py::arg("slots"), py::arg("images") = 0);
  m.def(
      "cuda_probe",
      [](int device) {
        const CudaProbe probe = cuda_probe(device);
        return py::make_tuple(probe.driver, probe.missing);
      },
      "(CUDA version of the driver, why the solver cannot run on the device; empty: it can)",
      py::arg("device"));
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

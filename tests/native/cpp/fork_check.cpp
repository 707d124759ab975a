// The control flow of a CUDA block, run by host threads, against the serial team: every round of
// whole runs on the models of the solver's checks, from the same state. Under ThreadSanitizer a
// race of leader and workers is an error.
#include "check.h"
#include "host_block.h"
#include "instances.h"

namespace {

namespace forked = advcore::forked;

struct Difference {
  int rounds = 0, verbs = 0, branched = 0;
  double largest = 0;
};

// The state of a slot in another one of the same shape.
void take_over(const Slot& from, Slot& to) {
  const advcore::Params& params = from.params;
  const size_t bytes = static_cast<size_t>(params.stride) * sizeof(float);
  const Problem &a = from.p, &b = to.p;
  float* const vectors[][2] = {{a.x0, b.x0},
                               {a.x, b.x},
                               {a.trial, b.trial},
                               {a.gradient, b.gradient},
                               {a.trial_gradient, b.trial_gradient},
                               {a.best, b.best},
                               {a.stage_point, b.stage_point}};
  for (const auto& [source, target] : vectors) std::memcpy(target, source, bytes);
  const size_t ring = static_cast<size_t>(advcore::slot_vectors(params, false)) - 7;
  std::memcpy(b.ring, a.ring, ring * bytes);
  to.p.state = a.state;
}

bool same_branch(const State& a, const State& b) {
  return a.phase == b.phase && a.status == b.status && a.request.k == b.request.k &&
         a.search.stage == b.search.stage && a.pairs.count == b.pairs.count &&
         a.bundle.count == b.bundle.count && a.counts.evaluations == b.counts.evaluations &&
         a.counts.forwards == b.counts.forwards && a.counts.iterations == b.counts.iterations &&
         a.request.want_gradient == b.request.want_gradient &&
         a.best.prediction == b.best.prediction;
}

double apart(const Slot& slot, const float* a, const float* b) {
  const double size = distance(slot, a);
  return dense::norm(dense::minus(slot.vector(a), slot.vector(b))) / std::max(size, 1e-3);
}

void expect_same_loss(const Slot& slot, const State& serial, const State& twin,
                      const float* dlogits, const float* twin_dlogits) {
  const auto near = [](float a, float b) {
    return std::fabs(static_cast<double>(a - b)) < 1e-5 * (1 + std::fabs(static_cast<double>(a)));
  };
  expect(near(serial.eval.margin, twin.eval.margin) &&
             near(serial.eval.log_odds, twin.eval.log_odds) &&
             near(serial.request.T, twin.request.T) &&
             serial.eval.runner_up == twin.eval.runner_up &&
             serial.eval.prediction == twin.eval.prediction,
         "margin loss: margin %g and %g, class %d and %d", static_cast<double>(serial.eval.margin),
         static_cast<double>(twin.eval.margin), serial.eval.prediction, twin.eval.prediction);
  for (int j = 0; serial.request.want_gradient && serial.eval.finite && j < slot.params.classes;
       ++j)
    expect(near(dlogits[j], twin_dlogits[j]), "dlogits %d: %g and %g", j,
           static_cast<double>(dlogits[j]), static_cast<double>(twin_dlogits[j]));
}

void check_run(const advcore::IsaTable& isa, Instance& at, Difference& total) {
  Slot& serial = at.slot;
  Slot twin(serial.params.n, serial.params);
  std::memcpy(twin.lo, serial.lo, sizeof(float) * serial.size());
  std::memcpy(twin.hi, serial.hi, sizeof(float) * serial.size());
  twin.p.starts = serial.p.starts;
  serial.poison(), twin.poison();
  std::memcpy(twin.p.x0, serial.p.x0, sizeof(float) * serial.size());
  const size_t padded = static_cast<size_t>(advcore::padded(serial.params.classes));
  const advcore::AlignedFloats rows = advcore::allocate(4 * padded);
  float *const z = rows.get(), *const dlogits = z + padded, *const twin_z = dlogits + padded;
  float* const twin_dlogits = twin_z + padded;
  const advcore::Params& params = serial.params;

  isa.begin(params, serial.p, at.label);
  forked::conduct([&](const forked::Team& team, forked::Work&) {
    forked::begin(team, params, twin.p, at.label);
  });
  State& s = serial.p.state;
  expect(same_branch(s, twin.p.state) && apart(serial, serial.p.trial, twin.p.trial) == 0,
         "another beginning");
  for (int count = 0; s.phase != Phase::done && count < most_rounds(params); ++count) {
    take_over(serial, twin);
    const dense::Vector logits =
        at.model.forward(serial.p.trial, static_cast<double>(s.request.k), s.request.record_scales);
    write_logits(logits, z, padded), write_logits(logits, twin_z, padded);
    isa.margin_loss(params, s, z, dlogits);
    forked::Machine<forked::Team>* machine = nullptr;
    alignas(16) static unsigned char memory[sizeof *machine];  // where all threads may look
    total.verbs += forked::conduct([&](const forked::Team& team, forked::Work& work) {
      forked::margin_loss(team, params, twin.p.state, twin_z, twin_dlogits);
      expect_same_loss(serial, s, twin.p.state, dlogits, twin_dlogits);
      take_over(serial, twin);
      if (s.request.want_gradient) {
        serial.set(serial.p.trial_gradient, at.model.backward(dlogits));
        team.copy_row(params.stride, serial.p.trial_gradient, twin.p.trial_gradient);
      }
      machine =
          new (memory) forked::Machine<forked::Team>{team, params, twin.p, twin.p.state, work};
      machine->run();
    });
    isa.advance(params, serial.p);
    ++total.rounds;
    if (!same_branch(s, twin.p.state)) {  // a comparison within rounding
      ++total.branched;
      continue;
    }
    const double difference = apart(serial, serial.p.trial, twin.p.trial);
    if (s.phase != Phase::done) total.largest = std::max(total.largest, difference);
    expect(s.phase == Phase::done || difference < 2e-3, "phase %d: trials differ by %.1e",
           static_cast<int>(s.phase), difference);
  }
}

}  // namespace

int main() {
  const advcore::IsaTable& isa = advcore::isa();
  Random rng(51);
  Difference total;
  for (int repeat = 0; repeat < 8; ++repeat) {
    const bool kinked = repeat % 2 == 1;
    const int n = repeat == 7 ? 300 : 1 + static_cast<int>(rng() % 60);
    const int classes = 2 + static_cast<int>(rng() % 20);
    Instance at = instance(kinked ? Model::Kind::relu : Model::Kind::tanh, n,
                           random_params(rng, kinked, classes), true, rng);
    const std::vector<float> starts = random_starts(at.slot, rng);
    at.slot.p.starts = starts.data();
    check_run(isa, at, total);
  }
  expect(total.branched <= total.rounds / 50, "%d of %d rounds took another branch", total.branched,
         total.rounds);
  std::printf("%s fork: %d rounds, %d verbs, trials within %.1e, %d other branches\n", isa.name,
              total.rounds, total.verbs, total.largest, total.branched);
  if (failures) std::printf("%d checks failed\n", failures);
  return failures ? 1 : 0;
}

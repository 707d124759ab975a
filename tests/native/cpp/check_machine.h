// The state machine on analytic models: exact optima, transcripts, failures, budgets, ends.
#pragma once

#include "check.h"
#include "driver.h"
#include "instances.h"

namespace {

// Half-spaces in which the class is at least `margin` above each of `rivals`, at distance scale.
dense::Polytope half_spaces(const Instance& at, int reached, const std::vector<int>& rivals,
                            double margin) {
  dense::Polytope set;
  const Slot& slot = at.slot;
  set.x0 = set.q = slot.vector(slot.p.x0);
  set.lo = slot.vector(slot.lo), set.hi = slot.vector(slot.hi);
  const size_t n = slot.size(), to = static_cast<size_t>(reached);
  for (const int rival : rivals) {
    const size_t from = static_cast<size_t>(rival);
    dense::Vector row(n);
    double offset = at.model.b[to] - at.model.b[from] - margin;
    for (size_t i = 0; i < n; ++i) {
      row[i] = at.model.W[to * n + i] - at.model.W[from * n + i];
      offset += row[i] * set.x0[i];
    }
    const double length = dense::norm(row);
    for (double& v : row) v /= length;
    set.rows.push_back(row), set.offset.push_back(offset / length);
  }
  return set;
}

struct Gaps {
  double worst = 0;
  int solved = 0, active = 0;  // problems, and those with variables on a bound
};

void check_affine_targeted(const advcore::IsaTable& isa, int n, int classes, bool bounded,
                           float confidence, Random& rng, Gaps& gaps) {
  Params params = smooth_params(classes);
  params.confidence = confidence;
  Instance at = instance(Model::Kind::affine, n, params, bounded, rng);
  std::vector<int> rivals;
  for (int j = 0; j < classes; ++j)
    if (j != at.label) rivals.push_back(j);
  const dense::Polytope set = half_spaces(at, at.label, rivals, static_cast<double>(confidence));
  const dense::Vector dual = dense::solve_dual(set);
  const Trace trace = run(isa, at.slot, at.model, at.label);
  expect_consistent(isa, at.slot, at.model, at.label, trace);
  if (set.violation(dual) > 1e-8) return;  // out of reach, or too hard for the reference
  const dense::Vector x = set.at(dual);
  const double exact = dense::norm(dense::minus(x, set.x0));
  for (size_t i = 0; i < x.size(); ++i)
    if (x[i] != set.x0[i] && (x[i] == set.lo[i] || x[i] == set.hi[i])) {
      ++gaps.active;
      break;
    }
  if (trace.state.best.norm >= kNothing) {  // only where the box leaves hardly any room
    const double room = 0.05 * std::fabs(static_cast<double>(trace.rounds[0].eval.margin));
    const dense::Polytope inside = half_spaces(at, at.label, rivals, confidence + room);
    const double missed = inside.violation(dense::solve_dual(inside));
    expect(missed > 1e-6, "%s affine n %d K %d: not found, optimum %g", isa.name, n, classes,
           exact);
    return;
  }
  const double gap = static_cast<double>(trace.state.best.norm) / exact - 1;
  expect(gap > -1e-5 && gap < 5e-4, "%s affine n %d K %d: distortion %g, optimum %g, gap %.1e",
         isa.name, n, classes, static_cast<double>(trace.state.best.norm), exact, gap);
  gaps.worst = std::max(gaps.worst, gap), ++gaps.solved;
}

void check_affine_untargeted(const advcore::IsaTable& isa, int n, int classes, bool bounded,
                             Random& rng, Gaps& gaps) {
  Params params = smooth_params(classes);
  params.targeted = false;
  Instance at = instance(Model::Kind::affine, n, params, bounded, rng);
  const Trace trace = run(isa, at.slot, at.model, at.label);
  expect_consistent(isa, at.slot, at.model, at.label, trace);
  const double required_margin = static_cast<double>(params.confidence);
  double least = 1e300, reached = 1e300;  // of any class, of the class reached
  for (int j = 0; j < classes; ++j) {
    if (j == at.label) continue;
    const dense::Polytope set = half_spaces(at, j, {at.label}, required_margin);
    const double dual = dense::solve_line(set);
    if (!std::isfinite(dual)) continue;
    const double exact = dense::norm(dense::minus(set.at({dual}), set.x0));
    least = std::min(least, exact);
    if (j == trace.state.best.prediction) reached = exact;
  }
  if (least == 1e300) return;
  const double norm = static_cast<double>(trace.state.best.norm);
  expect(norm > least * (1 - 1e-5) && norm < reached * (1 + 5e-4),
         "%s untargeted n %d K %d: %g, least %g, of class %d %g", isa.name, n, classes, norm, least,
         trace.state.best.prediction, reached);
  ++gaps.solved, gaps.active += norm < least * (1 + 5e-4);
}

void check_affine(const advcore::IsaTable& isa) {
  Random rng(41);
  Gaps targeted, untargeted;
  for (const int n : {1, 2, 7, 50, 300})
    for (const int classes : {2, 3, 10})
      for (const bool bounded : {false, true})
        for (int repeat = 0; repeat < (n > 100 ? 2 : 6); ++repeat) {
          const float confidence = repeat % 3 == 0 ? 0.1f : 1e-3f;
          check_affine_targeted(isa, n, classes, bounded, confidence, rng, targeted);
          check_affine_untargeted(isa, n, classes, bounded, rng, untargeted);
        }
  expect(targeted.solved > 60 && targeted.active > 20, "%d optima known, %d on bounds",
         targeted.solved, targeted.active);
  std::printf(
      "%s affine: %d exact optima, %d on bounds, largest gap %.1e; untargeted %d of %d "
      "smallest over the classes\n",
      isa.name, targeted.solved, targeted.active, targeted.worst, untargeted.active,
      untargeted.solved);
}

// ---- any model, any options

// Feeds the recorded evaluations to a slot full of NaN: it must ask for the same trials.
void check_replay(const advcore::IsaTable& isa, const Instance& at, const Trace& trace) {
  Slot slot(at.slot.params.n, at.slot.params);
  slot.poison();
  slot.set(slot.p.x0, at.slot.vector(at.slot.p.x0));
  slot.set(slot.lo, at.slot.vector(at.slot.lo));
  slot.set(slot.hi, at.slot.vector(at.slot.hi));
  slot.p.starts = at.slot.p.starts;
  Problem& p = slot.p;
  isa.begin(slot.params, p, at.label);
  const size_t length = static_cast<size_t>(slot.params.stride);
  for (size_t k = 0; k < trace.rounds.size(); ++k) {
    const Round& round = trace.rounds[k];
    if (p.state.phase != round.phase || !same_bits({p.trial, p.trial + length}, round.trial)) {
      expect(false, "%s: the replay asks for another trial in round %zu, phase %d, not %d",
             isa.name, k, static_cast<int>(p.state.phase), static_cast<int>(round.phase));
      return;
    }
    p.state.eval = round.eval;
    p.state.request.T = round.T;
    std::copy(round.gradient.begin(), round.gradient.end(), p.trial_gradient);
    isa.advance(slot.params, p);
  }
  expect(p.state.phase == Phase::done && p.state.best.norm == trace.state.best.norm &&
             p.state.status == trace.state.status,
         "%s: the replay ends in phase %d, %g, not %g", isa.name, static_cast<int>(p.state.phase),
         static_cast<double>(p.state.best.norm), static_cast<double>(trace.state.best.norm));
  if (p.state.best.norm < kNothing)
    expect(same_bits({p.best, p.best + length}, trace.best), "%s: the replay finds another image",
           isa.name);
}

void check_machine(const advcore::IsaTable& isa) {
  Random rng(42);
  int visits[kPhases] = {}, successes = 0, rounds = 0;
  for (int repeat = 0; repeat < 160; ++repeat) {
    const bool kinked = repeat % 2 == 1;
    const int n = 1 + static_cast<int>(rng() % 40), classes = 2 + static_cast<int>(rng() % 6);
    Instance at = instance(kinked ? Model::Kind::relu : Model::Kind::tanh, n,
                           random_params(rng, kinked, classes), repeat % 5 != 0, rng);
    const std::vector<float> starts = random_starts(at.slot, rng);
    at.slot.p.starts = starts.data();
    const Trace trace = run(isa, at.slot, at.model, at.label);
    expect_consistent(isa, at.slot, at.model, at.label, trace);
    check_replay(isa, at, trace);
    for (int phase = 0; phase < kPhases; ++phase) visits[phase] += trace.visits[phase];
    rounds += static_cast<int>(trace.rounds.size());
    successes += trace.state.best.norm < kNothing;
  }
  for (int phase = 0; phase < static_cast<int>(Phase::done); ++phase)
    expect(visits[phase] > 0, "%s: no run was ever in phase %d", isa.name, phase);
  std::printf("%s machine: 160 random runs, %d found an image, %.0f rounds each\n", isa.name,
              successes, rounds / 160.0);
}

// One failure in every pass in turn, and every budget up to the whole run.
void check_failures_and_budgets(const advcore::IsaTable& isa) {
  Random rng(43);
  for (int repeat = 0; repeat < 6; ++repeat) {
    const bool kinked = repeat % 2 == 1;
    Params params = kinked ? kinked_params(4) : smooth_params(4);
    params.targeted = repeat < 4;
    params.schedule[0].descent.steps = repeat % 3 == 0 ? 0 : 6;
    add_programme(params);
    params.starts = repeat / 2 % 2;
    Instance at = instance(kinked ? Model::Kind::relu : Model::Kind::tanh, 20, params, true, rng);
    const std::vector<float> starts = random_starts(at.slot, rng);
    at.slot.p.starts = starts.data();
    const Trace whole = run(isa, at.slot, at.model, at.label);
    const int passes = static_cast<int>(whole.rounds.size());
    for (int pass = 1; pass <= passes; ++pass)
      for (const Failing::What what : {Failing::What::logits, Failing::What::gradient}) {
        Failing failing(at.model, what, pass);
        const Trace trace = run(isa, at.slot, failing, at.label);
        failing.at = -1;
        expect_consistent(isa, at.slot, failing, at.label, trace);
        if (pass == 1 && what == Failing::What::logits)
          expect(trace.state.status == Status::non_finite, "NaN at the clean image: status %d",
                 static_cast<int>(trace.state.status));
      }
    const int whole_queries = 2 * whole.state.counts.evaluations + whole.state.counts.forwards;
    for (int queries = 2; queries <= whole_queries + 1; ++queries) {
      params.max_queries = queries;
      Slot slot(20, params);
      slot.bound(0, 1);
      slot.set(slot.p.x0, at.slot.vector(at.slot.p.x0));
      slot.p.starts = starts.data();
      const Trace trace = run(isa, slot, at.model, at.label);
      const int spent = 2 * trace.state.counts.evaluations + trace.state.counts.forwards;
      expect(spent <= queries && (queries >= whole_queries || spent + 2 > queries),
             "%d queries of %d", spent, queries);
      expect(trace.rounds.size() <= whole.rounds.size(), "%zu rounds", trace.rounds.size());
      for (size_t k = 0; k < trace.rounds.size(); ++k)
        expect(same_bits(trace.rounds[k].trial, whole.rounds[k].trial),
               "%d queries: trial %zu differs from that of the whole run", queries, k);
    }
    params.max_queries = 0x7fffffff;
    for (int budget = 1; budget <= whole.state.counts.evaluations + 1; ++budget) {
      params.max_evaluations = budget;
      Slot slot(20, params);
      slot.bound(0, 1);
      slot.set(slot.p.x0, at.slot.vector(at.slot.p.x0));
      slot.p.starts = starts.data();
      const Trace trace = run(isa, slot, at.model, at.label);
      expect_consistent(isa, slot, at.model, at.label, trace);
      const bool cut_short = budget < whole.state.counts.evaluations;
      expect(!cut_short || trace.state.counts.evaluations == budget, "budget %d: %d evaluations",
             budget, trace.state.counts.evaluations);
      expect(!cut_short || trace.state.status == Status::budget, "budget %d of %d: status %d",
             budget, whole.state.counts.evaluations, static_cast<int>(trace.state.status));
      for (size_t k = 0; k < trace.rounds.size() && k < whole.rounds.size(); ++k)
        expect(same_bits(trace.rounds[k].trial, whole.rounds[k].trial),
               "budget %d: trial %zu differs from that of the whole run", budget, k);
    }
  }
}

// No slope at the clean image: the random point brings the search under way, the same each time.
void check_flat_start(const advcore::IsaTable& isa) {
  Random rng(44);
  int found = 0;
  for (int repeat = 0; repeat < 10; ++repeat) {
    Instance at = instance(Model::Kind::tanh, 20, smooth_params(3), true, rng);
    Flat flat(at.model, at.slot.vector(at.slot.p.x0));
    const Trace once = run(isa, at.slot, flat, at.label);
    const Trace again = run(isa, at.slot, flat, at.label);
    expect_consistent(isa, at.slot, flat, at.label, once);
    expect(once.rounds.size() > 2 && once.rounds.size() == again.rounds.size() &&
               once.rounds[1].trial != once.rounds[0].trial,
           "%s flat start: %zu and %zu rounds", isa.name, once.rounds.size(), again.rounds.size());
    for (size_t k = 0; k < once.rounds.size() && k < again.rounds.size(); ++k)
      expect(same_bits(once.rounds[k].trial, again.rounds[k].trial),
             "%s flat start: trial %zu is not repeated", isa.name, k);
    found += once.state.best.norm < kNothing;
  }
  expect(found > 0, "%s: no image was found from a flat start", isa.name);
}

}  // namespace

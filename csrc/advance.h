// The state machine of one image. `advance` consumes one evaluation (margin, smoothed log-odds and
// the gradient of the latter) at p.trial and leaves the next point to evaluate there, or
// Phase::done. It never calls a network.
//
//   start -> stage_origin -> [stage_resume ->] stage ... -> push -> polish_start
//         -> polish <-> polish_probe -> done        then, for each given start, seed -> bisect
//         -> polish_start ...
//
// A pass through the stages is one fused c-search on each network of the smoothing schedule; push
// hands its point over to the exact network; the polish projects x0 onto the bundle of linearised
// margins there. Best-so-far holds the smallest adversarial point ever evaluated on the
// exact network, whatever the phase.
#pragma once

namespace ADVCORE_NS {
namespace {

constexpr float kNone = 3e38f;
constexpr float kReach = 0.1f;
constexpr int kStale = 4;  // rounds of the polish without progress

template <class Team>
struct Machine {
  const Team& team;
  const Params& params;
  Problem& p;
  State s;

  bool exact_loss() const { return params.loss == Loss::cross_entropy; }
  const Schedule& schedule() const { return params.schedule[s.schedule]; }

  void swap(float*& a, float*& b) {
    team.sync();
    if (team.leader()) {
      float* const t = a;
      a = b;
      b = t;
    }
    team.sync();
  }

  void ask(Phase phase, bool gradient, float k, float T) {
    s.phase = phase;
    s.want_gradient = gradient;
    s.k = k;
    s.T = T;
  }
  void ask_exact(Phase phase, bool gradient) { ask(phase, gradient, 0, 0); }

  void run() {
    ++(s.want_gradient ? s.evaluations : s.forwards);
    s.measure = false;
    if (s.k == 0 && s.eval.finite) record_best();
    switch (s.phase) {
      case Phase::start: start(); break;
      case Phase::stage_origin: stage_origin(); break;
      case Phase::stage_resume: stage_resume(); break;
      case Phase::stage: stage(); break;
      case Phase::push: push(); break;
      case Phase::bisect: bisect(); break;
      case Phase::polish_start: polish_start(); break;
      case Phase::polish: polish(); break;
      case Phase::polish_probe: polish_probe(); break;
      case Phase::seed: seed(); break;
      case Phase::done: break;
    }
    if (s.phase != Phase::done && s.evaluations >= params.max_evaluations) finish(Status::budget);
  }

  void record_best() {
    const float margin = s.eval.margin + s.eval.kappa;
    if (s.eval.margin < 0) {
      if (s.best_norm == kNone) s.best_margin = max(s.best_margin, margin);
      if (s.phase == Phase::start) s.best_prediction = s.eval.prediction;
      return;
    }
    const float norm = distortion(team, params, p, p.trial);
    if (!(norm < s.best_norm)) return;
    copy(team, params, p.trial, p.best);
    s.best_norm = norm;
    s.best_margin = margin;
    s.best_prediction = s.eval.prediction;
  }

  void finish(Status status) {
    const bool searched = status != Status::budget && status != Status::non_finite;
    if (s.best_norm == kNone && searched) status = s.nans > 0 ? Status::non_finite : Status::not_found;
    s.status = status;
    s.phase = Phase::done;
  }

  // An attempt is over: the next schedule, the next given start, or the end. The status is that of
  // the attempt which found the best image.
  void end_attempt(Status status) {
    if (s.best_norm < s.attempt_best) {
      s.attempt_best = s.best_norm;
      s.status = status;
    }
    const int wanted = s.best_norm < kNone ? params.attempts : params.schedules;
    release_class();
    if (s.starts_tried == 0 && s.schedule + 1 < wanted) {
      ++s.schedule;
      s.c = 0;
      return begin_stage(0);
    }
    if (s.starts_tried == params.starts) return finish(s.best_norm < kNone ? s.status : status);
    team.copy_row(params.n, p.starts + (size_t)s.starts_tried * params.n, p.trial);
    ++s.starts_tried;
    ask_exact(Phase::seed, false);
  }

  // ---- stages: fused c-search

  void start() {
    if (!s.eval.finite) {
      ++s.nans;
      return finish(Status::non_finite);
    }
    if (s.eval.margin >= 0) return finish(Status::already_adversarial);
    if (s.want_gradient) return stage_origin();  // smooth networks: this was the first stage's
    begin_stage(0);
  }

  // The first stage starts at x0; a later one where the last stopped, with its c and its pairs:
  // what they say about the smoother network is a good start for this one (8% fewer evaluations
  // than a fresh ring, at the same distortion).
  void begin_stage(int stage) {
    s.stage = stage;
    s.since = s.rounds = s.solves = 0;
    s.stage_best = kNone;
    s.shift = s.c_low = s.c_high = 0;
    const bool resume = stage > 0 && s.c > 0;
    copy(team, params, resume ? p.stage_point : p.x0, p.trial);
    const float T = resume ? schedule().temperature[stage] * abs(s.margin0) : -1.0f;
    ask(resume ? Phase::stage_resume : Phase::stage_origin, true, schedule().smoothing[stage],
        exact_loss() ? 1.0f : T);
  }

  // The trial becomes the accepted point.
  void accept(float norm2) {
    swap(p.x, p.trial);
    swap(p.gradient, p.trial_gradient);
    s.margin = s.eval.margin;
    s.log_odds = s.eval.log_odds;
    s.sigma = sigma_of(s.log_odds);
    s.loss = loss_of(s.log_odds);
    s.norm2 = norm2;
  }
  float sigma_of(float log_odds) const { return 1 / (1 + __builtin_expf(min(log_odds / s.T, 80.f))); }
  float loss_of(float log_odds) const {
    const float u = -log_odds / s.T;
    return s.T * (max(u, 0.0f) + __builtin_log1pf(__builtin_expf(-abs(u))));
  }

  void stage_origin() {
    if (!s.eval.finite) {
      ++s.nans;
      return end_attempt(Status::not_found);
    }
    accept(0);
    s.margin0 = s.margin;
    s.goal = goal();
    clear_ring(s);
    if (s.margin >= 0) {  // the smoothed network is fooled by the clean image: nothing to search
      s.stage_best = 0;
      s.stage_class = s.eval.runner_up;
      copy(team, params, p.x, p.stage_point);
      s.c = 0;
      return end_stage(Status::stalled);
    }
    start_search();
  }

  // From the accepted point: its linearised margin gives the first c and the first trial.
  void start_search() {
    s.cuts = 0;
    const float norm = write_cut(team, params, p, s, 0, p.gradient, p.x, s.margin);
    if (norm == 0) return s.random_start ? end_attempt(Status::not_found) : random_start();
    s.cuts = 1;
    project(team, params, p, s, 0, p.trial);
    s.cuts = 0;
    // Where the network is saturated at x0 its linearisation says nothing about the boundary: the
    // first step goes no further than kReach of the box, 0.1 rms for images in [0, 1].
    float range2[1];
    team.template sums<1>(params.padded_n, range2, [=, this](int i, Lane* acc) {
      const Lane range = load(p.hi, i) - load(p.lo, i);
      acc[0] += select(range < 1e30f, range * range, broadcast(1.0f));
    });
    const float far = distortion(team, params, p, p.trial);
    const float reach = kReach * __builtin_sqrtf(range2[0]);
    if (far > reach) shrink(p.trial, reach / far);
    // On a two-class tie c* = 1 / (4 lambda), lambda the multiplier of the linearised margin: for
    // a linear one, c* = |m| / (4 ||r||^2).
    const float lambda = s.dual[0] / norm;
    s.c = max(1 / (4 * max(lambda, 1e-30f)), abs(s.margin) / (4 * min(far * far, reach * reach)));
    if (params.c_init > 0) {
      s.c = params.c_init;
      if (params.unsquared) s.c /= max(2 * distortion(team, params, p, p.trial), 1e-12f);
    }
    s.c0 = s.c_last = s.c;
    s.accept_any = true;
    ask(Phase::stage, true, s.k, s.T);
  }

  // x = clip(x0 + t (x - x0)), in place
  void shrink(float* x, float t) {
    team.each(params.padded_n, [=, this](int i) {
      const Lane x0 = load(p.x0, i);
      store(x, i, clip(x0 + t * (load(x, i) - x0), load(p.lo, i), load(p.hi, i)));
    });
    team.sync();
  }

  // Zero gradient at x0: once more from a random point, keyed by seed, image and label.
  void random_start() {
    s.random_start = s.random_pending = true;
    uint64_t key = params.seed * 0x9e3779b97f4a7c15ull + (uint64_t)s.label;
    for (int i = 0; i < params.n; ++i) {
      uint32_t bits;
      __builtin_memcpy(&bits, p.x0 + i, 4);
      key = (key ^ bits) * 0x100000001b3ull;
    }
    if (team.leader()) {
      for (int i = 0; i < params.n; ++i) {
        uint64_t z = key + 0x9e3779b97f4a7c15ull * (uint64_t)(i + 1);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        const float u = (float)((z ^ (z >> 31)) >> 40) * 0x1p-23f - 1;  // [-1, 1)
        const float range = p.hi[i] - p.lo[i] < 1e30f ? p.hi[i] - p.lo[i] : 1.0f;
        p.trial[i] = min(max(p.x0[i] + 0.1f * range * u, p.lo[i]), p.hi[i]);
      }
    }
    team.sync();
    ask(Phase::stage, true, s.k, s.T);
  }

  void stage_resume() {
    if (!s.eval.finite) {
      ++s.nans;
      return end_stage(Status::stalled);
    }
    const float norm = distortion(team, params, p, p.trial);
    accept(norm * norm);
    s.c0 = s.c;
    s.goal = goal();
    note_stage_best(norm, p.x);
    propose();
  }

  // The margin to aim at: a little inside, in proportion to T.
  float goal() const { return 0.1f * schedule().temperature[s.stage] * abs(s.margin0); }

  // s's, s'y and ||trial - x0||^2 of s = trial - x, y = g(trial) - g(x).
  void displacement(float* dots) {
    const float old_sigma = s.sigma, new_sigma = sigma_of(s.eval.log_odds);
    team.template sums<3>(params.padded_n, dots, [=, this](int i, Lane* acc) {
      const Lane t = load(p.trial, i), d = t - load(p.x, i), r = t - load(p.x0, i);
      acc[0] += d * d;
      acc[1] += d * (old_sigma * load(p.gradient, i) - new_sigma * load(p.trial_gradient, i));
      acc[2] += r * r;
    });
  }
  bool worth_keeping(const float* dots) const {
    return dots[0] > 0 && dots[1] > 1e-6f * 2 * s.c * dots[0];
  }
  void push_displacement(const float* dots) {
    push_pair(team, params, p, s, p.x, p.gradient, s.sigma, p.trial, p.trial_gradient,
              sigma_of(s.eval.log_odds), dots[0], dots[1]);
  }

  // Returns whether the best of this stage improved by more than the tolerance.
  bool note_stage_best(float norm, const float* point) {
    if (!(s.eval.margin >= 0 && norm < s.stage_best)) return false;
    const bool much = s.stage_best - norm > params.tolerance * s.stage_best;
    s.stage_best = norm;
    s.stage_class = s.eval.runner_up;
    copy(team, params, point, p.stage_point);
    return much;
  }

  void stage() {
    ++s.rounds;
    if (s.random_pending) {
      s.random_pending = false;
      const float norm = distortion(team, params, p, p.trial);
      if (s.eval.finite) accept(norm * norm);
      return start_search();
    }
    float dots[3];
    displacement(dots);
    const float new_loss = loss_of(s.eval.log_odds), norm2 = dots[2];
    if (!s.eval.finite || !(dots[1] - dots[1] == 0)) {
      s.shift = max(4 * s.shift, s.c);
      s.accept_any = false;
      if (++s.nans >= 3) return end_stage(Status::stalled);
      return propose();
    }
    const float norm = __builtin_sqrtf(norm2);
    const bool near = s.stage_best < kNone && norm >= 0.97f * s.stage_best;
    if (note_stage_best(norm, p.trial))
      s.since = 0;
    else if (near)  // a short step says more about being at the end than a long one
      s.since += __builtin_sqrtf(dots[0]) < 0.01f * norm ? 3 : 1;

    float slope = 0;  // (g + 2 c r)'(trial - x)
    {
      float sum[1];
      const float sigma = s.sigma, c2 = 2 * s.c;
      team.template sums<1>(params.padded_n, sum, [=, this](int i, Lane* acc) {
        const Lane x = load(p.x, i);
        acc[0] += (load(p.trial, i) - x) *
                  (c2 * (x - load(p.x0, i)) - sigma * load(p.gradient, i));
      });
      slope = sum[0];
    }
    if (worth_keeping(dots)) push_displacement(dots);
    const float before = s.loss + s.c * s.norm2, after = new_loss + s.c * norm2;
    const bool first = s.accept_any;
    const bool accepted = first || after <= before + 1e-4f * slope + 2e-7f * before;
    if (!first) {
      const float ratio = (before - after) / max(-0.5f * slope, 1e-37f);
      if (ratio < 0.05f) s.shift = max(4 * s.shift, s.c);
      if (ratio > 0.6f) s.shift *= 0.25f;
      if (s.shift < 1e-3f * s.c) s.shift = 0;
    }
    if (accepted) accept(norm2);
    s.accept_any = false;

    const bool still = accepted && !first && __builtin_sqrtf(dots[0]) < params.tolerance * norm;
    if (params.c_search == CSearch::bisection) {
      if (still || s.rounds >= schedule().budget[s.stage]) {
        if (!bisect_c(s, s.margin >= 0)) return end_stage(Status::converged);
        s.rounds = 0;
      }
      return propose();
    }
    if (still && abs(__builtin_logf(s.c / s.c_last)) < params.tolerance) {
      if (s.stage_best < kNone) return end_stage(Status::converged);
      s.goal = 2 * s.goal + goal();
    }
    if (s.stage_best < kNone && s.since >= params.patience) return end_stage(Status::stalled);
    // A network is not left empty-handed before three times its budget.
    const int patience = s.stage_best == kNone ? 3 : 1;
    if (s.rounds >= patience * schedule().budget[s.stage]) return end_stage(Status::stalled);
    propose();
  }

  void propose() {
    ++s.iterations;
    if (s.sigma < 1e-6f && s.margin > s.goal) return step_back();
    // A small theta: outside the span of the pairs the curvature of the penalty problem is 2 c.
    Model model;
    model.pairs = s.pairs;
    model.theta = 0.2f * s.c;
    if (s.pairs > 0)
      model.theta = min(model.theta, s.sy[s.newest][s.newest] / s.ss[s.newest][s.newest]);
    model.shift = s.shift;
    model.sigma = s.sigma;
    model.margin = s.margin;
    float* const free = p.trial;         // both are overwritten by the next trial
    float* const r = p.trial_gradient;
    const float sigma = s.sigma, c2 = 2 * s.c;
    team.each(params.padded_n, [=, this](int i) {
      const Lane x = load(p.x, i), ri = x - load(p.x0, i);
      const Lane total = c2 * ri - sigma * load(p.gradient, i);
      store(r, i, ri);
      store(free, i, free_variable(x, total, load(p.lo, i), load(p.hi, i)));
    });
    team.sync();
    const float* v[kMaxBasis];
    const int m = s.pairs, count = 2 * m + 2;
    for (int j = 0; j < m; ++j) {
      v[j] = ring_y(params, p, j);
      v[m + j] = ring_s(params, p, j);
    }
    v[2 * m] = p.gradient;
    v[2 * m + 1] = r;
    masked_gram(team, params.padded_n, free, v, count, model.gram);

    s.c_last = s.c;
    if (params.c_search == CSearch::fused) {
      // The shift bounds the step, not c: with it no c would reach the goal, and c would run down.
      model.shift = 0;
      s.c = choose_c(params, s, model);
      model.shift = s.shift;
    }
    const Step step = model_step(params, s, model, Shifts{} + (double)s.c);
    const double inverse = 1 / step.tau[0];
    bool sound = step.slope[0] < 0 && step.slope[0] > -1e300;
    float weight[kMaxBasis];
    for (int j = 0; j < 2 * m; ++j)
      weight[j] = (float)(sound ? step.q[j][0] * (j < m ? 1.0 : (double)model.theta) * inverse * inverse : 0.0);
    weight[2 * m] = (float)(-s.sigma * inverse);
    weight[2 * m + 1] = (float)(2 * s.c * inverse);
    team.each(params.padded_n, [=, this, &v, &weight](int i) {
      Lane d = Lane{};
      for (int j = 0; j < count; ++j) d += weight[j] * load(v[j], i);
      const Lane x = load(p.x, i) - load(free, i) * d;
      store(p.trial, i, clip(x, load(p.lo, i), load(p.hi, i)));
    });
    team.sync();
    ask(Phase::stage, true, s.k, s.T);
  }

  // So far inside the target's region that the loss and its gradient vanish: back along the ray
  // toward x0, to where the linearised margin reaches the goal.
  void step_back() {
    float dot[1];
    team.template sums<1>(params.padded_n, dot, [=, this](int i, Lane* acc) {
      acc[0] += load(p.gradient, i) * (load(p.x, i) - load(p.x0, i));
    });
    const float t = dot[0] > 0 ? 1 - (s.margin - s.goal) / dot[0] : 0.5f;
    between(team, params, p, min(max(t, 0.1f), 0.95f), p.trial);
    s.c_last = s.c;
    s.accept_any = true;
    ask(Phase::stage, true, s.k, s.T);
  }

  void end_stage(Status status) {
    if (s.k == 0 && params.c_search == CSearch::fused) s.penalty_norm = __builtin_sqrtf(s.norm2);
    if (s.stage_best == kNone) copy(team, params, p.x, p.stage_point);
    if (s.stage + 1 < schedule().stages) return begin_stage(s.stage + 1);
    const bool adversarial = s.k == 0 && s.stage_best < kNone;
    if (exact_loss()) return end_attempt(adversarial ? status : Status::not_found);
    swap(p.x, p.stage_point);
    if (adversarial) {
      hold_class(s.stage_class);
      return ask_center();
    }
    s.tries = 0;
    copy(team, params, p.x, p.trial);
    ask_exact(Phase::push, false);
  }

  // ---- handover to the exact network

  // Untargeted: from here on the class reached is held, against the class to leave alone; a bundle
  // of cuts of several classes would ask for all of them at once.
  void hold_class(int reached) {
    if (params.targeted) return;
    s.against = s.label;
    s.label = reached;
    s.targeted = true;
  }
  void release_class() {
    if (s.against < 0) return;
    s.label = s.against;
    s.against = -1;
    s.targeted = false;
  }

  void push() {
    if (s.eval.finite && s.eval.margin >= 0) {
      hold_class(s.eval.runner_up);
      swap(p.x, p.trial);
      return ask_center();
    }
    if (++s.tries > 14) return end_attempt(Status::not_found);
    swap(p.x, p.trial);
    between(team, params, p, 1.08f, p.trial);
    ask_exact(Phase::push, false);
  }

  // The polish starts at x. No bisection toward x0 before it: its first projection covers that
  // distance too (6 forward passes more on each of four networks gave the same mean distortion).
  void ask_center() {
    copy(team, params, p.x, p.trial);
    ask_exact(Phase::polish_start, true);
  }

  // ---- polish: proximal bundle on the exact margin

  void polish_start() {
    if (!s.eval.finite || s.eval.margin < 0) return end_attempt(Status::stalled);
    s.center_norm = s.center_before = distortion(team, params, p, p.trial);
    s.margin_low = s.eval.margin;
    s.cuts = s.cut_rounds = s.stale = 0;
    s.prox = s.curvature = 0;
    swap(p.x, p.trial);
    if (!add_cut(p.trial_gradient, p.x)) return end_attempt(Status::stalled);
    propose_cut();
  }

  bool add_cut(const float* gradient, const float* at) {
    // In reserve, so that rounding does not turn a point on the cut into a miss.
    const int slot = cut_slot(s);
    const float margin = s.eval.margin - min(0.25f * s.eval.kappa, 0.5f * s.eval.rounding);
    if (write_cut(team, params, p, s, slot, gradient, at, margin) == 0) return false;
    s.born[slot] = s.cut_rounds;
    if (slot == s.cuts) ++s.cuts;
    return true;
  }

  // The curvature of the Lagrangian 1/2 ||x - x0||^2 - lambda m(x) along the step d, from how far
  // the margin at the trial is below its linear model there: 2 lambda miss / ||d||^2. It is the
  // weight of the prox term whose step is Newton's.
  void note_curvature() {
    float dots[2];
    team.template sums<2>(params.padded_n, dots, [=, this](int i, Lane* acc) {
      const Lane d = load(p.trial, i) - load(p.x, i), g = load(p.trial_gradient, i);
      acc[0] += d * d;
      acc[1] += g * g;
    });
    float multiplier = 0;
    for (int j = 0; j < s.cuts; ++j) multiplier += s.dual[j];
    const float miss = max(-s.eval.margin, 0.0f) / __builtin_sqrtf(max(dots[1], 1e-37f));
    const float seen = 2 * multiplier * miss / max(dots[0], 1e-37f);
    s.curvature = max(0.5f * s.curvature, min(seen, 1e4f));
  }

  void propose_cut() {
    if (s.cut_rounds >= params.polish_budget) return end_attempt(Status::stalled);
    if (s.stale >= kStale) return end_attempt(Status::stalled);
    keep_center(team, params, p, s);
    for (;;) {
      project(team, params, p, s, s.prox / (1 + s.prox), p.trial);
      s.trial_norm = distortion(team, params, p, p.trial);
      if (s.center_norm - s.trial_norm >= params.polish_tolerance * s.center_norm) break;
      if (s.prox <= max(1e-3f, 2 * s.curvature)) return end_attempt(Status::converged);
      s.prox = max(0.1f * s.prox, s.curvature);  // it held the trial back: again in this round
    }
    ++s.cut_rounds;
    ++s.iterations;
    ask_exact(Phase::polish, true);
  }

  void polish() {
    if (!s.eval.finite) {
      ++s.nans;
      return end_attempt(Status::stalled);
    }
    note_curvature();
    add_cut(p.trial_gradient, p.trial);
    if (s.eval.margin >= 0) {  // serious step
      swap(p.x, p.trial);
      s.center_norm = s.trial_norm;
      s.margin_low = s.eval.margin;
      s.prox = max(0.25f * s.prox, s.curvature);
      return end_cut_round();
    }
    // Null step: between centre and trial ||r|| is below the centre's, look there for the boundary.
    swap(p.gradient, p.trial);
    s.t_low = 0;
    s.t_high = 1;
    s.margin_high = s.eval.margin;
    s.tries = 0;
    probe(0.02f);
  }

  void probe(float least) {
    const float fall = max(s.margin_low - s.margin_high, 1e-37f);
    const float part = min(max(0.95f * s.margin_low / fall, least), 0.9f);
    s.t = s.t_low + (s.t_high - s.t_low) * part;
    segment(s.t);
    ask_exact(Phase::polish_probe, false);
  }
  void segment(float t) {  // trial = x + t (failed trial - x)
    team.each(params.padded_n, [=, this](int i) {
      const Lane x = load(p.x, i);
      store(p.trial, i, clip(x + t * (load(p.gradient, i) - x), load(p.lo, i), load(p.hi, i)));
    });
    team.sync();
  }

  void polish_probe() {
    if (s.eval.finite && s.eval.margin >= 0) {
      s.t_low = s.t;
      s.margin_low = s.eval.margin;
    } else {
      s.t_high = s.t;
      s.margin_high = s.eval.finite ? s.eval.margin : s.margin_high;
    }
    if (++s.tries < 2) return probe(0.05f);
    if (s.t_low > 0) {
      segment(s.t_low);
      swap(p.x, p.trial);
      s.center_norm = distortion(team, params, p, p.x);
    }
    s.prox = max(s.prox, s.curvature);
    if (s.t_low < 0.25f) s.prox = max(2 * s.prox, 0.25f);
    end_cut_round();
  }

  // Stale: no gain of the tolerance over several rounds together.
  void end_cut_round() {
    if (s.center_norm < (1 - params.polish_tolerance) * s.center_before) {
      s.center_before = s.center_norm;
      s.stale = 0;
    } else {
      ++s.stale;
    }
    propose_cut();
  }

  // ---- a start given by the caller

  // It may be far away: 12 bisections bring it to the boundary on the way to x0.
  void seed() {
    if (!s.eval.finite || s.eval.margin < 0) return end_attempt(Status::not_found);
    hold_class(s.eval.runner_up);
    swap(p.x, p.trial);
    s.t_low = 0;
    s.t_high = 1;
    s.tries = 12;
    ask_between();
  }
  void ask_between() {
    s.t = 0.5f * (s.t_low + s.t_high);
    between(team, params, p, s.t, p.trial);
    ask_exact(Phase::bisect, false);
  }
  void bisect() {
    (s.eval.finite && s.eval.margin >= 0 ? s.t_high : s.t_low) = s.t;
    if (--s.tries > 0) return ask_between();
    if (s.t_high < 1) {
      between(team, params, p, s.t_high, p.trial);
      swap(p.x, p.trial);
    }
    ask_center();
  }
};

// Puts an image into the slot and asks for its first evaluation. label: target, or class to leave.
template <class Team>
void begin(const Team& team, const Params& params, Problem& p, int label) {
  State s;
  s.targeted = params.targeted;
  s.label = label;
  s.phase = Phase::start;
  s.measure = params.smoothable;
  // Where the first stage is the exact network, its evaluation at x0 is this one.
  s.want_gradient = params.schedule[0].smoothing[0] == 0;
  s.k = 0;
  s.T = !s.want_gradient ? 0.0f : params.loss == Loss::cross_entropy ? 1.0f : -1.0f;
  copy(team, params, p.x0, p.trial);
  if (team.leader()) p.state = s;
  team.sync();
}

template <class Team>
void advance(const Team& team, const Params& params, Problem& p) {
  Machine<Team> machine{team, params, p, p.state};
  machine.run();
  team.sync();
  if (team.leader()) p.state = machine.s;
  team.sync();
}

}  // namespace
}  // namespace ADVCORE_NS

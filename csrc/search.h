// The L-BFGS search on one network, in which c is chosen anew every round. No line search: a
// rejected trial still feeds its pair, and a Levenberg-Marquardt shift takes the place of
// backtracking.
#pragma once

namespace ADVCORE_NS {
namespace {

// The trial becomes the accepted point.
template <class Team>
ADVCORE_FN void Machine<Team>::accept(float norm2) {
  swap(p.x, p.trial);
  swap(p.gradient, p.trial_gradient);
  s.margin = s.eval.margin;
  s.log_odds = s.eval.log_odds;
  s.sigma = sigma_of(s.log_odds);
  s.loss = loss_of(s.log_odds);
  s.norm2 = norm2;
}

template <class Team>
ADVCORE_FN float Machine<Team>::sigma_of(float log_odds) const {
  return 1 / (1 + __builtin_expf(min(log_odds / s.T, 80.f)));
}

template <class Team>
ADVCORE_FN float Machine<Team>::loss_of(float log_odds) const {
  const float u = -log_odds / s.T;
  return s.T * (max(u, 0.0f) + __builtin_log1pf(__builtin_expf(-abs(u))));
}

// From the accepted point: its linearised margin gives the first c and the first trial.
template <class Team>
ADVCORE_FN void Machine<Team>::start_search() {
  s.cuts = 0;
  const float norm = write_cut(team, params, p, s, 0, p.gradient, p.x, s.margin);
  if (!(norm >= 0)) {
    note_failure(p.x);
    return end_attempt(Status::not_found);
  }
  if (norm == 0) return s.moved ? end_attempt(Status::not_found) : random_start();
  s.cuts = 1;
  project(team, params, p, s, work, 0, p.trial);
  s.cuts = 0;
  // Where the network is saturated at x0 its linearisation says nothing about the boundary: the
  // first step goes no further than kReach of the box, 0.1 rms for images in [0, 1].
  const float *const lo = p.lo, *const hi = p.hi;
  float range2[1];
  team.template sums<1>(params.stride, range2, [=](int i, Lane* acc) {
    const Lane range = load(hi, i) - load(lo, i);
    acc[0] += select(range < 1e30f, range * range, broadcast(1.0f));
  });
  const float far = distortion(team, params, p, p.trial);
  const float reach = kReach * __builtin_sqrtf(range2[0]);
  if (range2[0] == 0) return finish(Status::not_found);  // nothing can move
  if (far == 0) {  // nothing here can move; or a random start whose linear margin admits x0
    if (s.norm2 == 0) return end_attempt(Status::not_found);
    s.c = s.c0 = s.c_last = max(s.clean_margin, abs(s.margin)) / (4 * s.norm2);
    note_stage_best(__builtin_sqrtf(s.norm2), p.x);
    return propose();
  }
  // Another class that is further away by the linear model than the best found is left alone.
  if (s.exclusions > 0 && far > kPrune * rival()) return end_attempt(Status::stalled);
  if (far > reach) between(team, params, p, p.x0, p.trial, reach / far, p.trial);
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

// Zero gradient at x0: once more from a random point, keyed by seed, image and label.
template <class Team>
ADVCORE_FN void Machine<Team>::random_start() {
  s.moved = s.move_pending = true;
  uint64_t key = params.seed * 0x9e3779b97f4a7c15ull + (uint64_t)s.label;
  for (int i = 0; i < params.n; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, p.x0 + i, 4);
    key = (key ^ bits) * 0x100000001b3ull;
  }
  for (int i = 0; i < params.n; ++i) {
    uint64_t z = key + 0x9e3779b97f4a7c15ull * (uint64_t)(i + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    const float u = (float)((z ^ (z >> 31)) >> 40) * 0x1p-23f - 1;  // [-1, 1)
    const float range = p.hi[i] - p.lo[i] < 1e30f ? p.hi[i] - p.lo[i] : 1.0f;
    p.trial[i] = min(max(p.x0[i] + 0.1f * range * u, p.lo[i]), p.hi[i]);
  }
  ask(Phase::stage, true, s.k, s.T);
}

// At an image of one value. Where the way from x0 ends in a region without a gradient, another
// network of the same kind is often open from there.
template <class Team>
ADVCORE_FN void Machine<Team>::far_start() {
  s.moved = s.move_pending = true;
  const float part = schedule().origin;
  const float *const lower = p.lo, *const upper = p.hi, *const clean = p.x0;
  float* const trial = p.trial;
  team.each(params.stride, [=](int i) {
    const Lane lo = load(lower, i), hi = load(upper, i), range = hi - lo;
    store(trial, i, select(range < 1e30f, lo + part * range, load(clean, i)));
  });
  ask(Phase::stage, true, s.k, s.T);
}

// The margin to aim at: a little inside, in proportion to T.
template <class Team>
ADVCORE_FN float Machine<Team>::goal() const {
  const float part = exact_loss() ? 0.005f : 0.1f;  // the minimiser itself is the result
  return part * schedule().temperature[s.stage] * min(s.clean_margin, abs(s.margin0));
}

template <class Team>
ADVCORE_FN Move Machine<Team>::move() const {
  const float old_sigma = s.sigma, new_sigma = sigma_of(s.eval.log_odds), c2 = 2 * s.c;
  Move out;
  const float *const clean = p.x0, *const point = p.x, *const trial = p.trial;
  const float *const gradient = p.gradient, *const trial_gradient = p.trial_gradient;
  float dots[4];
  team.template sums<4>(params.stride, dots, [=](int i, Lane* acc) {
    const Lane x0 = load(clean, i), x = load(point, i), t = load(trial, i), d = t - x, r = t - x0;
    const Lane g = -old_sigma * load(gradient, i);
    acc[0] += d * d;
    acc[1] += d * (-new_sigma * load(trial_gradient, i) - g);
    acc[2] += d * (g + c2 * (x - x0));
    acc[3] += r * r;
  });
  out.ss = dots[0], out.sy = dots[1], out.slope = dots[2], out.norm2 = dots[3];
  return out;
}

// Pairs whose curvature is noise beside that of the penalty are left out.
template <class Team>
ADVCORE_FN void Machine<Team>::keep_pair(const Move& move) {
  if (!(move.ss > 0 && move.sy > 1e-6f * 2 * s.c * move.ss)) return;
  push_pair(team, params, p, s, p.x, p.gradient, s.sigma, p.trial, p.trial_gradient,
            sigma_of(s.eval.log_odds), move.ss, move.sy);
}

// Returns whether the best of this stage improved by more than the tolerance.
template <class Team>
ADVCORE_FN bool Machine<Team>::note_stage_best(float norm, const float* point) {
  if (!(s.eval.margin >= 0 && norm < s.stage_best)) return false;
  const bool much = s.stage_best - norm > params.tolerance * s.stage_best;
  s.stage_best = norm;
  s.stage_class = s.eval.runner_up;
  copy(team, params, point, p.stage_point);
  return much;
}

template <class Team>
ADVCORE_FN void Machine<Team>::stage() {
  ++s.rounds;
  if (s.move_pending) {
    s.move_pending = false;
    const float norm = distortion(team, params, p, p.trial);
    if (!s.eval.finite) {
      note_failure(p.trial);
      return start_search();
    }
    accept(norm * norm);
    const bool sloped = write_cut(team, params, p, s, 0, p.gradient, p.x, s.margin) > 0;
    if (schedule().origin < 0 || norm == 0 || !sloped) return start_search();
    s.c = s.c0 = s.c_last = max(s.clean_margin, abs(s.margin)) / (4 * s.norm2);
    return propose();
  }
  const Move step = move();
  const float new_loss = loss_of(s.eval.log_odds), norm2 = step.norm2;
  if (!s.eval.finite || !(step.sy - step.sy == 0)) {
    s.shift = max(4 * s.shift, s.c);
    s.accept_any = false;
    note_failure(p.trial);
    if (s.nans >= 3) return end_stage(Status::stalled);
    return propose();
  }
  const float norm = __builtin_sqrtf(norm2);
  const bool near = s.stage_best < kNone && norm >= 0.97f * s.stage_best;
  if (note_stage_best(norm, p.trial))
    s.since = 0;
  else if (near)  // a short step says more about being at the end than a long one
    s.since += __builtin_sqrtf(step.ss) < 0.01f * norm ? 3 : 1;

  keep_pair(step);
  const float before = s.loss + s.c * s.norm2, after = new_loss + s.c * norm2;
  const bool first = s.accept_any;
  const bool accepted = first || after <= before + 1e-4f * step.slope + 2e-7f * before;
  if (!first) {
    const float ratio = (before - after) / max(-0.5f * step.slope, 1e-37f);
    // A promise below the rounding of the loss says nothing about the model; the bisection needs
    // the shift there to come to rest.
    if (ratio < 0.05f && (bisecting() || -step.slope > 1e-6f * before)) {
      // The shift with which a step along this one would have ended at the minimum of the parabola
      // through both values and the slope; at least four times the last.
      const float bend = max(after - before - step.slope, 1e-37f);
      const float part = max(-0.5f * step.slope / bend, 0.1f);
      s.shift = max(max(4 * s.shift, s.c), 2 * s.c * (1 / part - 1));
    }
    if (ratio > 0.6f) s.shift *= 0.25f;
    if (s.shift < 1e-3f * s.c) s.shift = 0;
  }
  if (accepted) accept(norm2);
  s.accept_any = false;
  if (accepted && s.k == 0 && s.margin >= 0 && !bisecting()) s.penalty_norm = norm;

  const bool still = accepted && !first && __builtin_sqrtf(step.ss) < params.tolerance * norm;
  if (bisecting()) {
    if (still || s.rounds >= schedule().budget[s.stage]) {
      if (!bisect_c(s, s.margin >= 0)) return end_stage(Status::converged);
      s.rounds = 0;
    }
    return propose();
  }
  // Near the boundary, with short steps: the distortion on this network is known well enough.
  const bool at_boundary = s.stage_best < kNone && s.sigma < 0.9f && accepted && !first;
  const float length = __builtin_sqrtf(step.ss);
  const bool settled = at_boundary && length < params.pass_on * norm;
  if (settled && !s.second && s.exclusions > 0 && norm > kFar * rival()) {
    hold_class(s.stage_class);
    return end_attempt(Status::stalled);
  }
  if (s.second && at_boundary && length < kShort * norm && norm > kBehind * s.first_best)
    return back_to_first();
  const bool last = s.stage + 1 == schedule().stages;
  if (settled && !last) return leave_network();
  if (settled && params.walk_budget > 0) return end_stage(Status::stalled);
  if (still && abs(__builtin_logf(s.c / s.c_last)) < params.tolerance) {
    // The minimiser that is reported must be adversarial itself.
    if (exact_loss() ? s.margin >= 0 : s.stage_best < kNone) return end_stage(Status::converged);
    s.goal = 2 * s.goal + goal();
  }
  if (s.stage_best < kNone && s.since >= params.patience && !(exact_loss() && s.margin < 0))
    return end_stage(Status::stalled);
  if (!exact_loss() && s.stage_best == kNone && s.rounds % kPace == 0) {
    const bool stuck = s.margin - s.pace_margin < kCrawl * abs(s.margin);
    s.pace_margin = s.margin;
    if (stuck) return end_stage(Status::stalled);
  }
  // While the search has found nothing at all, a network on which it gets on is left only after
  // three times its budget.
  const int patience = s.stage_best == kNone && !s.reached && !s.second ? 3 : 1;
  if (s.rounds >= patience * schedule().budget[s.stage]) return end_stage(Status::stalled);
  propose();
}

template <class Team>
ADVCORE_FN void Machine<Team>::propose() {
  ++s.iterations;
  if (s.sigma < 1e-6f && s.margin > s.goal) return step_back();
  // A small theta: outside the span of the pairs the curvature of the penalty problem is 2 c.
  Model& model = work.model;
  model.pairs = s.pairs;
  model.theta = 0.2f * s.c;
  if (s.pairs > 0)
    model.theta = min(model.theta, s.sy[s.newest][s.newest] / s.ss[s.newest][s.newest]);
  model.shift = s.shift;
  model.sigma = s.sigma;
  model.margin = s.margin;
  float* const free = p.trial;  // both are overwritten by the next trial
  float* const r = p.trial_gradient;
  const float sigma = s.sigma, c2 = 2 * s.c;
  const float *const point = p.x, *const clean = p.x0, *const gradient = p.gradient;
  const float *const lo = p.lo, *const hi = p.hi;
  team.each(params.stride, [=](int i) {
    const Lane x = load(point, i), ri = x - load(clean, i);
    const Lane total = c2 * ri - sigma * load(gradient, i);
    store(r, i, ri);
    store(free, i, free_variable(x, total, load(lo, i), load(hi, i)));
  });
  const float* v[kMaxBasis] = {};
  const int m = s.pairs, count = 2 * m + 2;
  for (int j = 0; j < m; ++j) {
    v[j] = ring_y(params, p, j);
    v[m + j] = ring_s(params, p, j);
  }
  v[2 * m] = p.gradient;
  v[2 * m + 1] = r;
  masked_gram(team, params.stride, free, v, count, model.gram);

  assemble(params, s, model);
  s.c_last = s.c;
  if (!bisecting()) {
    // The shift bounds the step, not c: with it no c would reach the goal, and c would run down.
    model.shift = 0;
    s.c = choose_c(team, params, s, work);
    model.shift = s.shift;
  }
  double* const q = work.q;
  const auto at = solve_model<double>(model, s.c, reinterpret_cast<double*>(work.step.K), q);
  const double slope = model_slope(model, at, q);
  const bool sound = slope < 0 && slope > -1e300;
  float weight[kMaxBasis] = {};
  for (int j = 0; j < 2 * m; ++j)
    weight[j] =
        (float)(sound ? q[j] * (j < m ? 1.0 : (double)model.theta) * at.inverse * at.inverse : 0.0);
  weight[2 * m] = (float)(-s.sigma * at.inverse);
  weight[2 * m + 1] = (float)(2 * s.c * at.inverse);
  team.each(params.stride, [=](int i) {  // `free` is the trial
    Lane d = Lane{};
    for (int j = 0; j < count; ++j) d += weight[j] * load(v[j], i);
    const Lane x = load(point, i) - load(free, i) * d;
    store(free, i, clip(x, load(lo, i), load(hi, i)));
  });
  ask(Phase::stage, true, s.k, s.T);
}

// So far inside the target's region that the loss and its gradient vanish: back along the ray
// toward x0, to where the linearised margin reaches the goal.
template <class Team>
ADVCORE_FN void Machine<Team>::step_back() {
  const float *const gradient = p.gradient, *const x = p.x, *const x0 = p.x0;
  float dot[1];
  team.template sums<1>(params.stride, dot, [=](int i, Lane* acc) {
    acc[0] += load(gradient, i) * (load(x, i) - load(x0, i));
  });
  const float t = dot[0] > 0 ? 1 - (s.margin - s.goal) / dot[0] : 0.5f;
  between(team, params, p, p.x0, p.x, min(max(t, 0.1f), 0.95f), p.trial);
  s.c_last = s.c;
  s.accept_any = true;
  ask(Phase::stage, true, s.k, s.T);
}

}  // namespace
}  // namespace ADVCORE_NS

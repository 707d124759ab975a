// The search on one network: projected L-BFGS on the penalty problem min l(x) + c ||x - x0||^2, in
// which c is chosen anew every round. There is no line search: a rejected trial still feeds its
// pair, and Levenberg-Marquardt damping takes the place of backtracking.
#pragma once

#include "problem.h"
#include "solver/box.h"
#include "solver/bundle.h"
#include "solver/c_search.h"
#include "solver/history.h"
#include "solver/machine.h"

namespace ADVCORE_NS {
namespace {

// The first step goes no further than this part of the box's diagonal: 0.1 rms for images in
// [0, 1]. Where the network is saturated at x0 its linearisation says nothing about the boundary.
constexpr float kReach = 0.1f;
// A search for another class is dropped when its linearised distance is this many times the best
// distortion.
constexpr float kPrune = 5.0f;
// A trial at least this far out, as a part of the stage's best distortion, counts as near it.
constexpr float kNearBest = 0.97f;
// A step shorter than this part of ||r|| counts three times among the rounds near the best: it says
// more about being at the end than a long one.
constexpr float kCreep = 0.01f;
// A stage ends at this many evaluations of the image that were not finite.
constexpr int kMaxNonfinite = 3;
// The sigmoid of the loss below which loss and gradient count as vanished.
constexpr float kVanished = 1e-6f;

// The trial becomes the accepted point.
template <class Team>
ADVCORE_FN void Machine<Team>::accept(float norm2) {
  swap(p.x, p.trial);
  swap(p.gradient, p.trial_gradient);
  s.point.margin = s.eval.margin;
  s.point.log_odds = s.eval.log_odds;
  s.point.sigma = sigma_of(s.point.log_odds);
  s.point.loss = loss_of(s.point.log_odds);
  s.point.norm2 = norm2;
}

template <class Team>
ADVCORE_FN float Machine<Team>::sigma_of(float log_odds) const {
  return 1 / (1 + __builtin_expf(min(log_odds / s.request.T, 80.f)));
}

template <class Team>
ADVCORE_FN float Machine<Team>::loss_of(float log_odds) const {
  const float u = -log_odds / s.request.T;
  return s.request.T * (max(u, 0.0f) + __builtin_log1pf(__builtin_expf(-abs(u))));
}

// The diagonal of the box; a variable without bounds counts as 1.
template <class Team>
ADVCORE_FN float box_diagonal(const Team& team, const Params& params, const Problem& p) {
  const float *const lo = p.lo, *const hi = p.hi;
  float range2[1];
  team.template sums<1>(params.stride, range2, [=](int i, Lane* acc) {
    const Lane range = load(hi, i) - load(lo, i);
    acc[0] += select(range < 1e30f, range * range, broadcast(1.0f));
  });
  return __builtin_sqrtf(range2[0]);
}

// From the accepted point: the projection of x0 onto its linearised margin is the first trial, and
// gives the first c.
template <class Team>
ADVCORE_FN void Machine<Team>::start_search() {
  State::Search& search = s.search;
  s.bundle.count = 0;
  const float norm = write_cut(team, params, p, s.bundle, 0, p.gradient, p.x, s.point.margin);
  if (!(norm >= 0)) {
    note_failure(p.x);
    return end_restart(Status::not_found);
  }
  if (norm > 0 && s.point.norm2 == 0) s.restarts.sloped_at_x0 = true;
  if (norm == 0)
    return search.started_away_from_x0 ? end_restart(Status::not_found) : random_start();
  s.bundle.count = 1;
  project(team, params, p, s.bundle, work, 0, p.trial);
  s.bundle.count = 0;
  const float diagonal = box_diagonal(team, params, p), reach = kReach * diagonal;
  const float distance = distortion(team, params, p, p.trial);
  if (diagonal == 0) return finish(Status::not_found);  // Nothing can move.
  if (distance == 0) {  // Nothing here can move, or the linear margin of a random start admits x0.
    if (s.point.norm2 == 0) return end_restart(Status::not_found);
    search.c = linear_c(max(s.clean_margin, abs(s.point.margin)), s.point.norm2);
    search.first_c = search.last_c = search.c;
    note_stage_best(__builtin_sqrtf(s.point.norm2), p.x);
    return propose();
  }
  if (s.request.exclusions > 0 && distance > kPrune * rival_norm())
    return end_restart(Status::stalled);
  if (distance > reach) between(team, params, p, p.x0, p.trial, reach / distance, p.trial);
  const float lambda = s.bundle.dual[0] / norm;
  search.c = first_c(lambda, abs(s.point.margin), min(distance * distance, reach * reach));
  if (params.c_init > 0) {
    search.c = params.c_init;
    if (params.unsquared) search.c /= max(2 * distortion(team, params, p, p.trial), 1e-12f);
  }
  search.first_c = search.last_c = search.c;
  search.fresh_model = true;
  ask_stage();
}

// Where the gradient at x0 is zero the search begins at a random point, keyed by seed, image and
// class, by the generator splitmix64.
template <class Team>
ADVCORE_FN void Machine<Team>::random_start() {
  s.search.started_away_from_x0 = s.search.start_pending = true;
  random_point();
  ask_stage();
}

template <class Team>
ADVCORE_FN void Machine<Team>::random_point() {
  uint64_t key = params.seed * 0x9e3779b97f4a7c15ull + (uint64_t)s.request.class_index;
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
}

// The search begins at an image of one value. Where the way from x0 ends in a region without a
// gradient, another such image often leads on.
template <class Team>
ADVCORE_FN void Machine<Team>::far_start() {
  if (write_cut(team, params, p, s.bundle, 0, p.gradient, p.x, s.point.margin) > 0)
    s.restarts.sloped_at_x0 = true;
  s.search.started_away_from_x0 = s.search.start_pending = true;
  far_point();
  ask_stage();
}

template <class Team>
ADVCORE_FN void Machine<Team>::far_point() {
  const float part = schedule().origin;
  const float *const lower = p.lo, *const upper = p.hi, *const clean = p.x0;
  float* const trial = p.trial;
  team.each(params.stride, [=](int i) {
    const Lane lo = load(lower, i), hi = load(upper, i), range = hi - lo;
    store(trial, i, select(range < 1e30f, lo + part * range, load(clean, i)));
  });
}

// The evaluation is that of a beginning away from x0.
template <class Team>
ADVCORE_FN void Machine<Team>::start_arrived() {
  State::Search& search = s.search;
  search.start_pending = false;
  const float norm = distortion(team, params, p, p.trial);
  if (!s.eval.finite) {
    note_failure(p.trial);
    return start_search();
  }
  accept(norm * norm);
  const bool sloped = write_cut(team, params, p, s.bundle, 0, p.gradient, p.x, s.point.margin) > 0;
  if (schedule().origin < 0 || norm == 0 || !sloped) return start_search();
  search.c = linear_c(max(s.clean_margin, abs(s.point.margin)), s.point.norm2);
  search.first_c = search.last_c = search.c;
  propose();
}

template <class Team>
ADVCORE_FN Step Machine<Team>::step_products() const {
  const float old_sigma = s.point.sigma, new_sigma = sigma_of(s.eval.log_odds), c2 = 2 * s.search.c;
  Step out;
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

// A pair whose curvature is noise beside that of the penalty is left out.
template <class Team>
ADVCORE_FN void Machine<Team>::keep_pair(const Step& step) {
  if (!(step.ss > 0 && step.sy > 1e-6f * 2 * s.search.c * step.ss)) return;
  push_pair(team, params, p, s.pairs, p.x, p.gradient, s.point.sigma, p.trial, p.trial_gradient,
            sigma_of(s.eval.log_odds), step.ss, step.sy);
}

// Returns whether the best of this stage improved by more than the tolerance.
template <class Team>
ADVCORE_FN bool Machine<Team>::note_stage_best(float norm, const float* point) {
  State::Search& search = s.search;
  if (!(s.eval.margin >= 0 && norm < search.stage_best)) return false;
  const bool improved = search.stage_best - norm > params.tolerance * search.stage_best;
  search.stage_best = norm;
  search.stage_class = s.eval.runner_up;
  copy(team, params, point, p.stage_point);
  return improved;
}

// One round of a stage: the evaluation of the trial is there.
template <class Team>
ADVCORE_FN void Machine<Team>::stage() {
  ++s.search.rounds;
  if (s.search.start_pending) return start_arrived();
  const Step step = step_products();
  if (!s.eval.finite || !(step.sy - step.sy == 0)) return reject_nonfinite();
  note_progress(step);
  const Round round = take_step(step);
  if (bisecting()) {
    const bool short_step =
        round.accepted && round.predicted && round.length < params.tolerance * round.norm;
    const bool solved = short_step || s.search.rounds >= schedule().budget[s.search.stage];
    if (solved && !bisect_c(s, s.point.margin >= 0)) return end_stage(Status::converged);
    return propose();
  }
  const StageEnd end = stage_end(round);
  if (end != StageEnd::none) return leave_stage(end);
  // At rest outside the boundary: aim further inside.
  if (at_rest(round)) s.search.target_margin = 2 * s.search.target_margin + next_target_margin();
  if (!look_early()) propose();
}

// The step was too long, or the model has failed.
template <class Team>
ADVCORE_FN void Machine<Team>::reject_nonfinite() {
  s.search.damping = max(4 * s.search.damping, s.search.c);
  s.search.fresh_model = false;
  note_failure(p.trial);
  if (s.search.nonfinite_count >= kMaxNonfinite) return end_stage(Status::stalled);
  propose();
}

// Notes the best point of the stage, and counts the rounds near it that bring no better one.
template <class Team>
ADVCORE_FN void Machine<Team>::note_progress(const Step& step) {
  State::Search& search = s.search;
  const float norm = __builtin_sqrtf(step.norm2);
  const bool near_best = search.stage_best < kNone && norm >= kNearBest * search.stage_best;
  if (note_stage_best(norm, p.trial))
    search.rounds_since_improvement = 0;
  else if (near_best)
    search.rounds_since_improvement += __builtin_sqrtf(step.ss) < kCreep * norm ? 3 : 1;
}

// Keeps the pair of the step, accepts the trial or not (Armijo's rule), and adapts the damping.
template <class Team>
ADVCORE_FN Round Machine<Team>::take_step(const Step& step) {
  State::Search& search = s.search;
  keep_pair(step);
  const float new_loss = loss_of(s.eval.log_odds), norm = __builtin_sqrtf(step.norm2);
  const float old_value = s.point.loss + search.c * s.point.norm2;
  const float new_value = new_loss + search.c * step.norm2;
  const bool predicted = !search.fresh_model;
  const bool accepted =
      !predicted || new_value <= old_value + 1e-4f * step.slope + 2e-7f * old_value;
  if (predicted) adapt_damping(old_value, new_value, step.slope);
  if (accepted) accept(step.norm2);
  search.fresh_model = false;
  if (accepted && s.request.k == 0 && s.point.margin >= 0 && !bisecting())
    search.penalty_norm = norm;
  return {__builtin_sqrtf(step.ss), norm, accepted, predicted};
}

// Levenberg-Marquardt damping, from the gain of the penalty function beside the gain that the model
// promised.
template <class Team>
ADVCORE_FN void Machine<Team>::adapt_damping(float old_value, float new_value, float slope) {
  State::Search& search = s.search;
  const float ratio = (old_value - new_value) / max(-0.5f * slope, 1e-37f);
  // A promise below the rounding of the loss says nothing about the model. The bisection needs the
  // damping there to come to rest.
  if (ratio < 0.05f && (bisecting() || -slope > 1e-6f * old_value)) {
    // With this damping a step along the last one would have ended at the minimum of the parabola
    // through both values and the slope. At the least it is four times the last damping.
    const float bend = max(new_value - old_value - slope, 1e-37f);
    const float part = max(-0.5f * slope / bend, 0.1f);
    search.damping = max(max(4 * search.damping, search.c), 2 * search.c * (1 / part - 1));
  }
  if (ratio > 0.6f) search.damping *= 0.25f;
  if (search.damping < 1e-3f * search.c) search.damping = 0;
}

// Fills the model of the round: the Gram blocks of the vectors v, which are Y, S, the gradient and
// r, over the free variables. Returns the number of vectors. `free_mask` and `r` are written.
template <class Team>
ADVCORE_FN int Machine<Team>::fill_model(const float** v, float* free_mask, float* r) {
  // A small theta: outside the span of the pairs the curvature of the penalty problem is 2 c.
  Model& model = work.model;
  const State::Pairs& pairs = s.pairs;
  model.pairs = pairs.count;
  model.theta = 0.2f * s.search.c;
  if (pairs.count > 0)
    model.theta = min(model.theta,
                      pairs.sy[pairs.newest][pairs.newest] / pairs.ss[pairs.newest][pairs.newest]);
  model.damping = s.search.damping;
  model.sigma = s.point.sigma;
  model.margin = s.point.margin;
  const float sigma = s.point.sigma, c2 = 2 * s.search.c;
  const float *const point = p.x, *const clean = p.x0, *const gradient = p.gradient;
  const float *const lo = p.lo, *const hi = p.hi;
  team.each(params.stride, [=](int i) {
    const Lane x = load(point, i), ri = x - load(clean, i);
    const Lane total = c2 * ri - sigma * load(gradient, i);
    store(r, i, ri);
    store(free_mask, i, free_variable(x, total, load(lo, i), load(hi, i)));
  });
  const int m = pairs.count, count = 2 * m + 2;
  for (int j = 0; j < m; ++j) {
    v[j] = ring_y(params, p, j);
    v[m + j] = ring_s(params, p, j);
  }
  v[2 * m] = p.gradient;
  v[2 * m + 1] = r;
  masked_gram(team, params.stride, free_mask, v, count, model.gram);
  assemble(params, pairs, model);
  return count;
}

// The next trial: c from the model, and the projected quasi-Newton step for that c.
template <class Team>
ADVCORE_FN void Machine<Team>::propose() {
  ++s.counts.iterations;
  if (s.point.sigma < kVanished && s.point.margin > s.search.target_margin) return step_back();
  Model& model = work.model;
  const float* v[kMaxBasis] = {};
  float* const free_mask = p.trial;  // The next trial overwrites both.
  const int count = fill_model(v, free_mask, p.trial_gradient), m = model.pairs;
  s.search.last_c = s.search.c;
  if (!bisecting()) {
    // The damping bounds the step, not c: with it no c would reach the target, and c would run
    // down.
    model.damping = 0;
    s.search.c = choose_c(team, s.search, work);
    model.damping = s.search.damping;
  }
  double* const q = work.q;
  const auto solution =
      solve_model<double>(model, s.search.c, reinterpret_cast<double*>(work.trials.K), q);
  const double slope = model_slope(model, solution, q);
  const bool descends = slope < 0 && slope > -1e300;
  float weight[kMaxBasis] = {};
  for (int j = 0; j < 2 * m; ++j)
    weight[j] = (float)(descends ? q[j] * (j < m ? 1.0 : (double)model.theta) * solution.inverse *
                                       solution.inverse
                                 : 0.0);
  weight[2 * m] = (float)(-s.point.sigma * solution.inverse);
  weight[2 * m + 1] = (float)(2 * s.search.c * solution.inverse);
  const float *const point = p.x, *const lo = p.lo, *const hi = p.hi;
  team.each(params.stride, [=](int i) {  // `free_mask` is the trial.
    Lane d = Lane{};
    for (int j = 0; j < count; ++j) d += weight[j] * load(v[j], i);
    const Lane x = load(point, i) - load(free_mask, i) * d;
    store(free_mask, i, clip(x, load(lo, i), load(hi, i)));
  });
  ask_stage();
}

// The point is so far inside the target's region that the loss and its gradient vanish: back along
// the ray toward x0, to where the linearised margin reaches the target margin.
template <class Team>
ADVCORE_FN void Machine<Team>::step_back() {
  const float *const gradient = p.gradient, *const x = p.x, *const x0 = p.x0;
  float dot[1];
  team.template sums<1>(params.stride, dot, [=](int i, Lane* acc) {
    acc[0] += load(gradient, i) * (load(x, i) - load(x0, i));
  });
  const float t = dot[0] > 0 ? 1 - (s.point.margin - s.search.target_margin) / dot[0] : 0.5f;
  between(team, params, p, p.x0, p.x, min(max(t, 0.1f), 0.95f), p.trial);
  s.search.last_c = s.search.c;
  s.search.fresh_model = true;
  ask_stage();
}

}  // namespace
}  // namespace ADVCORE_NS

// The search in another norm than l2: normalised gradient steps with momentum, each followed by a
// return to a ball of that norm around x0, which closes in on the boundary (after DDN, Rony et al.
// 2019, and FMN, Pintor et al. 2021). Smoothing and temperature are annealed on the way: the
// network is smooth at first and exact for the last part (Schedule in params.h).
//
// The search by L-BFGS does not carry over. Sign-like steps on variables of a tiny gradient end in
// bad minima, and its result in l2, polished in linf, is 1.26 times as far as the end of a walk.
#pragma once

#include "problem.h"
#include "solver/box.h"
#include "solver/machine.h"
#include "solver/search.h"

namespace ADVCORE_NS {
namespace {

// The part of the last directions in the next one.
constexpr float kMomentum = 0.7f;
// Before an adversarial point is met the ball grows by this factor at most, and by a first reach: a
// part of the range of a value in linf, that range in l1.
constexpr float kMaxGrowth = 1.2f;
constexpr float kFirstReach = 0.01f;
// The length in l2 of a step of an l1 ball of radius 1, times the root of the number of variables.
constexpr float kSparseStep = 5;
// Passes for the threshold of the projection onto an l1 ball, at most.
constexpr int kMaxBallPasses = 30;

template <class Team>
ADVCORE_FN int Machine<Team>::walk_budget() const {
  const Schedule& stages = schedule();
  int budget = 0;
  for (int i = 0; i < stages.stages; ++i) budget += stages.budget[i];
  return budget;
}

template <class Team>
ADVCORE_FN void Machine<Team>::begin_walk() {
  s.walk = {};
  s.search.stage = 0;
  s.search.stage_best = kNone;
  schedule().origin >= 0 ? far_point() : copy(team, params, p.x0, p.trial);
  ask_walk();
}

template <class Team>
ADVCORE_FN void Machine<Team>::ask_walk() {
  const Schedule& stages = schedule();
  const float round = (float)s.walk.rounds, time = round / (float)walk_budget();
  const float first = stages.temperature[0], last = stages.temperature[stages.stages - 1];
  const float T = s.clean_margin * first * __builtin_expf(time * __builtin_logf(last / first));
  const float k = stages.smoothing[0] * max(1 - round / (float)stages.budget[0], 0.0f);
  ask(Phase::walk, true, k, Temperature::given, max(T, 4 * s.eval.rounding));
}

// The gradient counts by the variables that can follow it.
ADVCORE_INLINE Lane movable(Lane g, Lane x, Lane lo, Lane hi) {
  return select(((g > 0.0f) & (x < hi)) | ((g < 0.0f) & (x > lo)), g, Lane{});
}

template <class Team>
ADVCORE_FN WalkPoint Machine<Team>::walk_products() const {
  const float *const gradient = p.trial_gradient, *const point = p.trial;
  const float *const lo = p.lo, *const hi = p.hi;
  float sums[3];
  team.template sums<3>(params.stride, sums, [=](int i, Lane* acc) {
    const Lane g = movable(load(gradient, i), load(point, i), load(lo, i), load(hi, i));
    acc[0] += g * g;
    acc[1] += abs(g);
    acc[2] += select(g == 0.0f, Lane{}, broadcast(1.0f));
  });
  float dual = sums[1];
  if (params.norm == Norm::l1)
    dual = team.maximum(params.stride, [=](int i) {
      return abs(movable(load(gradient, i), load(point, i), load(lo, i), load(hi, i)));
    });
  return {distortion(team, params, p, p.trial), sums[0], dual, sums[2]};
}

template <class Team>
ADVCORE_FN void Machine<Team>::walk() {
  State::Walk& walk = s.walk;
  if (!s.eval.finite) {
    note_failure(p.trial);
    return end_walk();
  }
  const WalkPoint point = walk_products();
  if (!(point.gradient2 < 1e36f)) {  // Or NaN.
    note_failure(p.trial);
    return end_walk();
  }
  if (s.request.k == 0) note_stage_best(point.norm, p.trial);
  if (point.norm == 0 && s.eval.margin >= 0) {  // The clean image fools the smoothed network.
    s.restarts.sloped_at_x0 = walk.sloped = true;
    walk.rounds = max(walk.rounds + 1, schedule().budget[0]);
    return walk.rounds < walk_budget() ? ask_walk() : end_walk();
  }
  const bool usable = point.gradient2 > 1e-36f;
  if (usable && point.norm == 0) s.restarts.sloped_at_x0 = true;
  walk.sloped = walk.sloped || usable;
  if (!walk.sloped) return no_slope(point.norm);
  if (++walk.rounds >= walk_budget()) return end_walk();
  const float time = (float)walk.rounds / (float)(walk_budget() + 1);
  const float annealing = 1 - time * time * (3 - 2 * time);  // From 1 to 0.
  walk.radius = next_radius(point, annealing);
  const float root = __builtin_sqrtf(max(point.free, 1.0f));
  const float size = params.norm == Norm::linf ? root : kSparseStep / root;
  const DescentSettings& steps = schedule().descent;
  step_walk(point, (steps.last_step + (steps.first_step - steps.last_step) * annealing) * size *
                       walk.radius);
  ++s.counts.iterations;
  ask_walk();
}

// No gradient yet: from x0 the walk goes on at a random point.
template <class Team>
ADVCORE_FN void Machine<Team>::no_slope(float norm) {
  if (box_diagonal(team, params, p) == 0) return finish(Status::not_found);  // Nothing can move.
  if (norm > 0 || ++s.walk.rounds >= walk_budget()) return end_restart(Status::not_found);
  random_point();
  ask_walk();
}

template <class Team>
ADVCORE_FN float Machine<Team>::next_radius(const WalkPoint& point, float annealing) {
  State::Walk& walk = s.walk;
  const float rate =
      kLastRadiusRate + (schedule().descent.radius_rate - kLastRadiusRate) * annealing;
  if (s.eval.margin >= 0) {
    walk.reached = true;
    return min(min(walk.radius, point.norm) * (1 - rate), s.search.stage_best);
  }
  if (walk.reached) return walk.radius * (1 + rate);
  // The mean range of a value.
  const float range = box_diagonal(team, params, p) / __builtin_sqrtf((float)params.n);
  const float reach = params.norm == Norm::linf ? kFirstReach * range : range;
  const float linear = abs(s.eval.margin) / max(point.dual, 1e-30f);
  return min(point.norm + linear, kMaxGrowth * point.norm + reach);
}

// The step of length `length` along the mean of the last directions, and back to the ball.
template <class Team>
ADVCORE_FN void Machine<Team>::step_walk(const WalkPoint& point, float length) {
  const float *const clean = p.x0, *const gradient = p.trial_gradient;
  const float *const lower = p.lo, *const upper = p.hi;
  float *const trial = p.trial, *const mean = p.gradient;
  const bool moving = s.walk.moving;  // Else the mean holds anything.
  const float kept = moving ? kMomentum : 0;
  const float weight = (1 - kept) / __builtin_sqrtf(max(point.gradient2, 1e-37f));
  float d2[1];
  team.template sums<1>(params.stride, d2, [=](int i, Lane* acc) {
    const Lane g = movable(load(gradient, i), load(trial, i), load(lower, i), load(upper, i));
    Lane v = weight * g;
    if (moving) v += kept * load(mean, i);
    store(mean, i, v);
    const Lane d = select(g == 0.0f, Lane{}, v);
    acc[0] += d * d;
  });
  s.walk.moving = true;
  const float step = length / __builtin_sqrtf(max(d2[0], 1e-37f));
  // The ball of linf is a box; that of l1 takes more than one pass.
  const float radius = params.norm == Norm::linf ? s.walk.radius : kNone;
  team.each(params.stride, [=](int i) {
    const Lane x0 = load(clean, i), x = load(trial, i), lo = load(lower, i), hi = load(upper, i);
    const Lane g = movable(load(gradient, i), x, lo, hi);
    const Lane d = select(g == 0.0f, Lane{}, load(mean, i));
    const Lane r = clip(x + step * d, lo, hi) - x0;
    store(trial, i, clip(x0 + clip(r, broadcast(-radius), broadcast(radius)), lo, hi));
  });
  if (params.norm == Norm::l1) shrink_to_radius();
}

// The projection of p.trial onto the l1 ball: each |r| is lowered by t, down to 0. Newton's method
// for t is monotone from the left, as the sum of (|r| - t)+ is convex.
template <class Team>
ADVCORE_FN void Machine<Team>::shrink_to_radius() {
  const float *const clean = p.x0, *const lower = p.lo, *const upper = p.hi;
  float* const trial = p.trial;
  float t = 0;
  for (int pass = 0; pass < kMaxBallPasses; ++pass) {
    float sums[2];
    team.template sums<2>(params.stride, sums, [=](int i, Lane* acc) {
      const Lane excess = abs(load(trial, i) - load(clean, i)) - t;
      acc[0] += max(excess, Lane{});
      acc[1] += select(excess > 0.0f, broadcast(1.0f), Lane{});
    });
    if (!(sums[0] > (1 + 1e-6f) * s.walk.radius) || !(sums[1] > 0)) break;
    t += (sums[0] - s.walk.radius) / sums[1];
  }
  if (t == 0) return;
  team.each(params.stride, [=](int i) {
    const Lane x0 = load(clean, i), r = load(trial, i) - x0, size = max(abs(r) - t, Lane{});
    const Lane x = x0 + select(r > 0.0f, size, -size);
    store(trial, i, clip(x, load(lower, i), load(upper, i)));
  });
}

template <class Team>
ADVCORE_FN void Machine<Team>::end_walk() {
  const bool found = s.search.stage_best < kNone;
  copy(team, params, found ? p.stage_point : p.trial, p.x);
  if (found) {
    s.restarts.converged_on_last_network = true;
    hold_class(s.search.stage_class);
  }
  s.polish.pushes = 0;
  distortion(team, params, p, p.x) > 0 ? ask_centre() : end_restart(Status::not_found);
}

}  // namespace
}  // namespace ADVCORE_NS

// Between the stages and the polish: normalised gradient descent on the exact network with a
// shrinking sphere (DDN, Rony et al. 2019; FMN, Pintor et al. 2021). Each step, a third of ||r||
// long at first and short at the end, is followed by a return to a sphere around x0, which shrinks
// where the point is adversarial and grows where it is not.
//
// r becomes a running mean of gradients around the boundary, so that kinks finer than the steps are
// averaged out; pairs and cuts take each gradient at its word and stop at the first of them. On
// RayS's network 30 steps gain 0.3% where 50 more iterations of the polish gain 0.03%. A first step
// of ||r|| gains another 0.1 to 0.3% there and loses 0.2 to 0.4% on ResNet 2b.
//
// Where the descent is the search (DescentSettings::temperature > 0) the sphere may have to grow.
// The steps do not grow with it: then r is a longer mean the farther it is. With steps as long as
// ||r|| and hundreds of classes, each gradient is that of another runner-up, r is never their mean,
// and the sphere grew to 20 to 400 times the distance of the image (docs/decisions.md).
#pragma once

#include "problem.h"
#include "solver/box.h"
#include "solver/machine.h"

namespace ADVCORE_NS {
namespace {

// The relative change of the radius in the last round, at most.
constexpr float kLastRadiusRate = 0.001f;
// An image found within this many times the first radius is no accident: the search has converged.
constexpr float kNearFirstRadius = 1.25f;
// The T of the descent of a fallback is this many times as large.
constexpr float kWarmer = 4;

// The descent begins at p.x, where the stages ended, or beyond it.
template <class Team>
ADVCORE_FN void Machine<Team>::ask_descent() {
  State::Descent& descent = s.descent;
  s.polish.may_go_on = false;
  descent.rounds = 0;
  descent.T = schedule().descent.temperature * s.clean_margin;
  if (schedule().fallback) descent.T *= kWarmer;
  s.search.stage_best = kNone;
  descent.radius = descent.first_radius = distortion(team, params, p, p.x);
  if (descent.T > 0 && schedule().stages > 0 && descent.linear_radius == 0)
    descent.linear_radius = descent.first_radius;
  if (!(descent.radius > 0)) return ask_centre();  // The smoothed networks were fooled by x0.
  copy(team, params, p.x, p.trial);
  const float start = schedule().descent.start;
  if (start != 1) {
    between(team, params, p, p.x0, p.x, start, p.trial);
    descent.radius = distortion(team, params, p, p.trial);
  }
  ask_step();
}

template <class Team>
ADVCORE_FN void Machine<Team>::ask_step() {
  const float T = s.descent.T;
  ask(Phase::descent, true, 0, T > 0 ? Temperature::given : Temperature::exact, T);
}

template <class Team>
ADVCORE_FN void Machine<Team>::descend() {
  State::Descent& descent = s.descent;
  const DescentSettings& settings = schedule().descent;
  if (!s.eval.finite) {
    note_failure(p.trial);
    return end_descent();
  }
  const float *const clean = p.x0, *const gradient = p.trial_gradient;
  float* const trial = p.trial;
  float dots[3];
  team.template sums<3>(params.stride, dots, [=](int i, Lane* acc) {
    const Lane g = load(gradient, i), r = load(trial, i) - load(clean, i);
    acc[0] += g * g;
    acc[1] += g * r;
    acc[2] += r * r;
  });
  const float gradient_norm = __builtin_sqrtf(dots[0]), norm = __builtin_sqrtf(dots[2]);
  note_stage_best(norm, p.trial);
  const bool usable = gradient_norm > 1e-18f && gradient_norm < 1e18f;
  if (++descent.rounds > settings.steps || !usable) return end_descent();
  const float time = (float)descent.rounds / (float)(settings.steps + 1);
  float t = time;
  for (int i = 1; i < settings.power; ++i) t *= time;
  const float annealing = 1 - t * t * (3 - 2 * t);  // From 1 to 0.
  // The radius goes no further than half-way to where the linearised margin is zero along r.
  float rate = kLastRadiusRate + (settings.radius_rate - kLastRadiusRate) * annealing;
  if (dots[1] > 0) rate = min(rate, 0.5f * abs(s.eval.margin) / dots[1]);
  descent.radius = s.eval.margin >= 0
                       ? min(min(descent.radius, norm) * (1 - rate), s.search.stage_best)
                       : descent.radius * (1 + rate);
  const float reach = settings.reach * descent.first_radius;
  const float length = reach > 0 ? min(descent.radius, reach) : descent.radius;
  const float step = (settings.last_step + (settings.first_step - settings.last_step) * annealing) *
                     length / gradient_norm;
  const float stepped2 = dots[2] + step * (2 * dots[1] + step * dots[0]);
  const float scale = descent.radius / __builtin_sqrtf(max(stepped2, 1e-37f));
  const float *const lo = p.lo, *const hi = p.hi;
  team.each(params.stride, [=](int i) {
    const Lane x0 = load(clean, i), r = load(trial, i) - x0 + step * load(gradient, i);
    store(trial, i, clip(x0 + scale * r, load(lo, i), load(hi, i)));
  });
  ++s.counts.iterations;
  ask_step();
}

template <class Team>
ADVCORE_FN void Machine<Team>::end_descent() {
  if (s.search.stage_best < kNone) {
    copy(team, params, p.stage_point, p.x);
    // A refinement begins at an image, and says nothing about the way there.
    const int last = schedule().stages - 1;
    if (last >= 0 && (schedule().smoothing[last] == 0 ||
                      s.search.stage_best < kNearFirstRadius * s.descent.first_radius))
      s.restarts.converged_on_last_network = true;
  }
  ask_centre();
}

}  // namespace
}  // namespace ADVCORE_NS

// Between the stages and the polish: normalised gradient steps on the exact network, a third of
// ||r|| long at first and short at the end, each followed by a return to a sphere around x0 that
// shrinks where the point is adversarial and grows where it is not (Rony et al. 2019, Pintor et al.
// 2021). r becomes a running mean of gradients around the boundary, so that kinks finer than the
// steps are averaged out; pairs and cuts take each gradient at its word and stop at the first of
// them. On RayS's network 30 steps gain 0.3% where 50 more rounds of the polish gain 0.03%; a first
// step of ||r|| gains another 0.1 to 0.3% there and loses 0.2 to 0.4% on ResNet 2b.
#pragma once

namespace ADVCORE_NS {
namespace {

constexpr float kLastTurn = 0.001f;  // change of the radius in the last round, at most
constexpr float kNear = 1.25f;       // of the first radius: an image found within is no accident

// At p.x, where the stages ended.
template <class Team>
ADVCORE_FN void Machine<Team>::ask_walk() {
  s.rounds = 0;
  s.stage_best = kNone;
  s.radius = s.radius_before = distortion(team, params, p, p.x);
  if (!(s.radius > 0)) return ask_center();  // the smoothed networks were fooled by x0
  copy(team, params, p.x, p.trial);
  ask_exact(Phase::walk, true);
}

template <class Team>
ADVCORE_FN void Machine<Team>::walk() {
  if (!s.eval.finite) {
    note_failure(p.trial);
    return end_walk();
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
  const float steep = __builtin_sqrtf(dots[0]), norm = __builtin_sqrtf(dots[2]);
  note_stage_best(norm, p.trial);
  if (++s.rounds > params.walk_budget || !(steep > 1e-18f && steep < 1e18f)) return end_walk();
  const float time = (float)s.rounds / (float)(params.walk_budget + 1);
  float t = time;
  for (int i = 1; i < params.walk_power; ++i) t *= time;
  const float warmth = 1 - t * t * (3 - 2 * t);  // from 1 to 0
  // No further than half-way to where the linearised margin is zero along r.
  float turn = kLastTurn + (params.walk_turn - kLastTurn) * warmth;
  if (dots[1] > 0) turn = min(turn, 0.5f * abs(s.eval.margin) / dots[1]);
  s.radius = s.eval.margin >= 0 ? min(min(s.radius, norm) * (1 - turn), s.stage_best)
                                : s.radius * (1 + turn);
  const float step =
      (params.walk_last + (params.walk_first - params.walk_last) * warmth) * s.radius / steep;
  const float ahead2 = dots[2] + step * (2 * dots[1] + step * dots[0]);
  const float scale = s.radius / __builtin_sqrtf(max(ahead2, 1e-37f));
  const float *const lo = p.lo, *const hi = p.hi;
  team.each(params.stride, [=](int i) {
    const Lane x0 = load(clean, i), r = load(trial, i) - x0 + step * load(gradient, i);
    store(trial, i, clip(x0 + scale * r, load(lo, i), load(hi, i)));
  });
  ++s.iterations;
  ask_exact(Phase::walk, true);
}

template <class Team>
ADVCORE_FN void Machine<Team>::end_walk() {
  if (s.stage_best < kNone) {
    copy(team, params, p.stage_point, p.x);
    const Schedule& of = schedule();
    const bool alone = of.smoothing[of.stages - 1] == 0;  // no smoothed network led here
    s.settled = s.settled || alone || s.stage_best < kNear * s.radius_before;
  }
  ask_center();
}

}  // namespace
}  // namespace ADVCORE_NS

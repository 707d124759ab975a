// Random problems for the checks of the state machine.
#pragma once

#include "driver.h"

namespace {

struct Instance {
  Slot slot;
  Model model;
  int label, clean;  // clean: the class of the clean image
};

// An image of [0, 1] pixels and a class to reach (targeted) or to leave.
Instance instance(Model::Kind kind, int n, Params params, bool bounded, Random& rng) {
  Instance out{Slot(n, params), Model(kind, n, params.classes, rng), 0, 0};
  if (bounded) out.slot.bound(0, 1);
  dense::Vector x0(out.slot.size());
  const bool binary = uniform(rng) < 0.3;  // every variable on a bound
  for (double& v : x0) {
    v = std::clamp(uniform(rng, -0.5, 1.5), 0.0, 1.0);
    if (binary) v = std::round(v);
  }
  out.slot.set(out.slot.p.x0, x0);
  const dense::Vector z = out.model.forward(out.slot.p.x0, 0, false);
  out.clean = static_cast<int>(std::max_element(z.begin(), z.end()) - z.begin());
  const int other = 1 + static_cast<int>(rng() % static_cast<unsigned>(params.classes - 1));
  out.label = params.targeted ? (out.clean + other) % params.classes : out.clean;
  return out;
}

// Behind the searches: the polish goes on, classes are ranked, one is searched for, and the best
// image is refined.
void add_programme(Params& params) {
  const auto add = [&params](const advcore::Schedule& search) {
    params.schedule[params.schedules++] = search;
  };
  advcore::Schedule search = params.schedule[0], refinement;
  params.schedule[0].polish_tolerance = 1e-2f;
  refinement.stages = 0;
  add(refinement);
  search.ranked = 3;
  add(search);
  search.ranked = 0;
  search.class_limit = 2;
  add(search);
  refinement.descent.steps = 5;
  add(refinement);
  params.attempts = params.schedules;
}

Params random_params(Random& rng, bool kinked, int classes) {
  const auto coin = [&rng](double p) { return uniform(rng) < p; };
  Params params = kinked ? kinked_params(classes) : smooth_params(classes);
  params.targeted = coin(0.6);
  params.history = 1 + static_cast<int>(rng() % advcore::kMaxHistory);
  params.starts = static_cast<int>(rng() % 3);
  if (coin(0.2)) params.loss = advcore::Loss::cross_entropy;
  if (coin(0.2)) params.c_search = advcore::CSearch::bisection;
  if (coin(0.2)) params.c_init = static_cast<float>(std::exp(uniform(rng, -10, 10)));
  params.unsquared = coin(0.5);
  if (coin(0.3)) params.confidence = 1;
  if (coin(0.4)) {  // a second pass, tried always or where the first finds nothing
    params.schedules = 2;
    params.attempts = coin(0.5) ? 2 : 1;
    params.schedule[1] = params.schedule[0];
    for (float& temperature : params.schedule[1].temperature) temperature = 0.1f;
  }
  if (coin(0.2)) params.schedule[0].budget[0] = 2;
  if (params.loss == advcore::Loss::margin && params.c_search == advcore::CSearch::fused) {
    advcore::DescentSettings descent;
    if (coin(0.5)) descent.steps = 1 + static_cast<int>(rng() % 20);
    if (coin(0.3)) {  // The descent is the search, as on large images.
      descent.temperature = 0.05f;
      descent.start = 2;
      descent.reach = 1;
    }
    Random own(rng);  // Which norm it is changes no other run.
    const double part = uniform(own);
    if (part < 0.5) params.norm = part < 0.25 ? advcore::Norm::linf : advcore::Norm::l1;
    for (int i = 0; i < params.schedules; ++i) params.schedule[i].descent = descent;
    if (coin(0.6)) add_programme(params);
  }
  return params;
}

// Images of any class, as starts of the run.
std::vector<float> random_starts(const Slot& slot, Random& rng) {
  std::vector<float> starts;
  for (int k = 0; k < slot.params.starts * slot.params.n; ++k)
    starts.push_back(static_cast<float>(uniform(rng)));
  return starts;
}

}  // namespace

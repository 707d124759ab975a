// The choice of c on closed forms, and the bracket of the bisection.
#pragma once

#include "check.h"
#include "check_direction.h"
#include "slot.h"
#include "solver_parts.h"

namespace {

// Without pairs at x = x0 the predicted margin is m + sigma ||G||^2 / (theta + 2 c + damping).
void check_choose_c() {
  Random rng(15);
  Params params;
  double worst = 0;
  for (int repeat = 0; repeat < 200; ++repeat) {
    State s;
    s.search.c = static_cast<float>(std::exp(uniform(rng, -5, 5))), s.search.first_c = s.search.c;
    s.search.damping = repeat % 2 ? 0.3f * s.search.c : 0.0f;
    parts::Work work;
    parts::Model& model = work.model = {};
    model.theta = 0.2f * s.search.c, model.damping = s.search.damping, model.sigma = 0.4f,
    model.margin = -2;
    const double wanted = static_cast<double>(s.search.c) * std::exp(uniform(rng, -1.2, 1.2));
    model.gram[0][0] = 10 * s.search.c;
    const double reached =
        -2 + 0.4 * static_cast<double>(model.gram[0][0]) /
                 (2 * wanted + static_cast<double>(model.theta + s.search.damping));
    s.search.target_margin = static_cast<float>(reached);
    const double got = static_cast<double>(parts::choose_c(Team{}, s.search, work));
    const double expected = std::clamp(wanted, static_cast<double>(s.search.c) / 2,
                                       static_cast<double>(s.search.c) * 2);
    const double error = std::fabs(std::log(got / expected));
    worst = std::max(worst, error);
    expect(error < 0.005, "c %g: expected %g within a factor of 2 of %g", got, expected,
           static_cast<double>(s.search.c));
    s.search.first_c =
        1e7f * s.search.c;  // the floor is 1e-6 of the first c, the ceiling 1e6 of it
    expect(parts::choose_c(Team{}, s.search, work) == 1e-6f * s.search.first_c, "c left its floor");
    s.search.first_c = 1e-7f * s.search.c;
    expect(parts::choose_c(Team{}, s.search, work) == 1e6f * s.search.first_c,
           "c left its ceiling");
  }
  // A random curve, not monotone: beyond the c chosen no value of the grid reaches the goal.
  for (int repeat = 0; repeat < 200; ++repeat) {
    Slot slot(20, params);
    State s;
    for (int k = 0; k < 4; ++k) {
      const dense::Vector step = normals(rng, 20);
      dense::Vector change = step;
      for (double& v : change) v *= uniform(rng, 0.01, 5);
      push(slot, s, rng, step, change);
    }
    const Penalty at(slot, rng);
    s = at.state(s);
    parts::Work work;
    model_of(slot, s, at, 0.2 * at.c, work.model);
    const auto margins = [&](double low, double high) {
      std::vector<double> c;
      for (int j = 0; j < kTrialCs; ++j)
        c.push_back(static_cast<double>(s.search.c) *
                    std::exp(low + (high - low) * j / (kTrialCs - 1)));
      return predicted_margins(work, c);
    };
    const double reach = std::log(static_cast<double>(parts::kMaxCChange));
    const std::vector<double> grid = margins(-reach, reach);
    const double fraction = uniform(rng);
    s.search.target_margin =
        static_cast<float>(grid[0] + fraction * (grid[kTrialCs - 1] - grid[0]));
    const double chosen =
        std::log(static_cast<double>(parts::choose_c(Team{}, s.search, work) / s.search.c));
    const double spacing = 2 * reach / (kTrialCs - 1);
    bool any = false;
    for (int j = 0; j < kTrialCs; ++j) {
      const double log_c = j * spacing - reach,
                   excess =
                       grid[static_cast<size_t>(j)] - static_cast<double>(s.search.target_margin);
      any = any || excess >= 0;
      expect(excess < 1e-4 || log_c < chosen + 1e-5,
             "log c %g chosen, but %g reaches the goal too, by %g", chosen, log_c, excess);
    }
    const double excess = margins(chosen, chosen)[0] - static_cast<double>(s.search.target_margin);
    expect(!any || excess > -0.02 * std::fabs(grid[0] - grid[kTrialCs - 1]) - 1e-4,
           "the margin predicted at the c chosen misses the goal by %g", -excess);
    expect(any || std::fabs(chosen + reach) < 1e-5, "none reaches the goal, log c is %g", chosen);
  }
  std::printf("choice of c on a closed form: largest error of log c %.1e\n", worst);
}

// An image that is adversarial for c up to `limit`: the bracket closes around it.
void check_bisection() {
  for (const float limit : {1e-8f, 0.03f, 1.0f, 17.0f, 1e9f}) {
    State s;
    s.search.c = 1;
    s.search.damping = 3;
    bool open = true;
    float last = -1;
    for (int solve = 0; open; ++solve) {
      const bool adversarial = s.search.c <= limit;
      s.point.norm2 = 1 / s.search.c;
      if (adversarial) last = std::sqrt(s.point.norm2);
      open = parts::bisect_c(s, adversarial);
      expect(s.bracket.solves == solve + 1 && solve < 41, "bisection %g: solve %d of 40", limit,
             s.bracket.solves);
      if (solve > 40) break;
      expect(!open || s.search.damping == 0, "bisection %g: the damping is kept for another c",
             limit);
    }
    expect(
        s.bracket.low <= limit && limit < s.bracket.high && s.bracket.high < 1.001f * s.bracket.low,
        "bisection: %g is not bracketed tightly by %g, %g", limit, s.bracket.low, s.bracket.high);
    expect(s.search.penalty_norm == last,
           "bisection %g: distortion %g, not the last adversarial %g", limit, s.search.penalty_norm,
           last);
  }
  for (const bool always : {true, false}) {  // no bracket: it ends by itself
    State s;
    s.search.c = 1;
    int solves = 0;
    while (solves < 100 && parts::bisect_c(s, always)) ++solves;
    expect(solves < 41 && (always ? s.bracket.high : s.bracket.low) == 0, "open bracket: %d solves",
           solves);
  }
}

}  // namespace

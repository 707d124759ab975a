// How far a run is. A new field goes into the struct and the two functions below it, into the table
// of names, and into `Progress` of the Python layer.
#pragma once

#include "outcome.h"

namespace advcore {

// The counts of the finished images.
struct Counts {
  int64_t finished = 0;
  int64_t succeeded = 0;    // with an adversarial image
  int64_t evaluations = 0;  // forwards with their backward
};

struct CountField {
  const char* name;
  int64_t Counts::* field;
};
constexpr CountField kCountFields[] = {
    {"finished", &Counts::finished},
    {"succeeded", &Counts::succeeded},
    {"evaluations", &Counts::evaluations},
};

// The counts of one finished image.
ADVCORE_BOTH Counts counts_of(const Outcome& o) { return {1, o.distortion < kNone, o.evaluations}; }

// Calls add(total, value) for each field: a sum, or an atomic one.
template <class Add>
ADVCORE_BOTH void add_counts(Counts& total, const Counts& more, Add add) {
  add(total.finished, more.finished);
  add(total.succeeded, more.succeeded);
  add(total.evaluations, more.evaluations);
}

}  // namespace advcore

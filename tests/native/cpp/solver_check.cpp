// Checks of the solver against plain double computations: its parts for one vector length, compiled
// with this program; head and state machine for every instruction set that this CPU has (or
// ADVCORE_ISA alone).
#include <cstdlib>

#include "check_c.h"
#include "check_direction.h"
#include "check_machine.h"
#include "check_margin_loss.h"
#include "check_projection.h"
#include "check_solves.h"

int main() {
  check_quasi_definite();
  check_positive();
  check_directions();
  check_choose_c();
  check_bisection();
  check_projections();
  for (const char* name : {"base", "v3", "v4"}) {
    const advcore::IsaTable* const table = advcore::find_isa(name);
    if (!table || (std::getenv("ADVCORE_ISA") && table != &advcore::isa())) continue;
    check_margin_losses(*table);
    check_affine(*table);
    check_machine(*table);
    check_failures_and_budgets(*table);
    check_flat_start(*table);
  }
  if (failures) std::printf("%d checks failed\n", failures);
  return failures ? 1 : 0;
}

#include "check_solves.h"
#include "check_direction.h"
#include "check_c.h"
#include "check_projection.h"
int main() {
  check_quasi_definite();
  check_positive();
  check_directions();
  check_choose_c();
  check_bisection();
  check_projections();
  return failures ? 1 : 0;
}

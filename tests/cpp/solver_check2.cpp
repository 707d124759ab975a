#include "check_head.h"
#include "check_machine.h"
int main() { for (const char* n : {"base","v3","v4"}) if (auto* t = advcore::find_isa(n)) {check_heads(*t);
check_affine(*t); check_machine(*t); check_failures_and_budgets(*t); check_flat_start(*t);} return failures?1:0; }

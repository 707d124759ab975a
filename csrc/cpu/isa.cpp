#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace advcore {

namespace base {
extern const IsaTable kTable;
}
#if defined(__x86_64__)
namespace v3 {
extern const IsaTable kTable;
}
namespace v4 {
extern const IsaTable kTable;
}
#endif

namespace {

constexpr const char* kNames[] = {"base", "v3", "v4"};  // From narrow to wide.

const IsaTable& choose() {
  const char* const cap = std::getenv("ADVCORE_ISA");
  const IsaTable* best = &base::kTable;
  for (const char* name : kNames) {
    if (const IsaTable* table = find_isa(name)) best = table;
    if (cap && std::strcmp(cap, name) == 0) return *best;
  }
  if (cap && *cap)
    throw std::invalid_argument("ADVCORE_ISA must be base, v3 or v4, not " + std::string(cap));
  return *best;
}

}  // namespace

const IsaTable& isa() {
  static const IsaTable& chosen = choose();
  return chosen;
}

const IsaTable* find_isa(const char* name) {
  if (std::strcmp(name, "base") == 0) return &base::kTable;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (std::strcmp(name, "v3") == 0 && __builtin_cpu_supports("x86-64-v3")) return &v3::kTable;
  if (std::strcmp(name, "v4") == 0 && __builtin_cpu_supports("x86-64-v4")) return &v4::kTable;
#endif
  return nullptr;
}

}  // namespace advcore

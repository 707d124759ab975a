// Counting and printing of failed checks, for the check programs.
#pragma once

#include <cstdarg>
#include <cstdio>

inline int failures = 0;

__attribute__((format(printf, 2, 3))) inline void expect(bool holds, const char* format, ...) {
  if (holds || ++failures > 20) return;
  std::va_list args;
  va_start(args, format);
  std::fputs("FAILED: ", stdout);
  std::vprintf(format, args);
  std::fputs("\n", stdout);
  va_end(args);
}

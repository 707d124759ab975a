// Names that the system's C++ headers use and glibc 2.28 does not have. They are linked into the
// wheel's module and hidden there, so that the machine's own glibc is never asked for them.
#include <pthread.h>
#include <time.h>

#define HIDDEN __attribute__((visibility("hidden")))

// glibc 2.32: true lets shared pointers count without atomics.
HIDDEN char __libc_single_threaded = 0;

// glibc 2.30. The deadline is carried over to the wall clock, the only one of the older wait.
// libstdc++ did the same then, and it looks at its own clock again after the wait.
HIDDEN int pthread_cond_clockwait(pthread_cond_t* condition, pthread_mutex_t* mutex,
                                  clockid_t clock, const struct timespec* deadline) {
  struct timespec now, wall;
  clock_gettime(clock, &now);
  clock_gettime(CLOCK_REALTIME, &wall);
  wall.tv_sec += deadline->tv_sec - now.tv_sec;
  wall.tv_nsec += deadline->tv_nsec - now.tv_nsec;
  if (wall.tv_nsec < 0) wall.tv_nsec += 1000000000, --wall.tv_sec;
  if (wall.tv_nsec >= 1000000000) wall.tv_nsec -= 1000000000, ++wall.tv_sec;
  return pthread_cond_timedwait(condition, mutex, &wall);
}

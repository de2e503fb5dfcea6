/* Faults at the door of the kernel: preloaded before libc, it counts every call that touches files
 * below a folder, whoever makes it (Python, or Rust inside safetensors), and at one of them kills
 * the process, fails, or writes short. It can set the clock back, too.
 *
 *   cc -shared -fPIC -o shim.so shim.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { OFF, COUNT, KILL_BEFORE, KILL_AFTER, FAIL_ONCE, FAIL_FROM, SHORT_WRITE };

static char root[4096];
static size_t root_length;
static int mode = OFF, error_number;
static long place, calls;
static unsigned char ours[4096];

void fault_arm(const char *folder, int how, long at, int error) {
  strncpy(root, folder, sizeof root - 1);
  root_length = strlen(root);
  place = at;
  error_number = error;
  calls = 0;
  mode = how;
}

long fault_calls(void) { return calls; }

static int below(const char *path) {
  return mode != OFF && path && strncmp(path, root, root_length) == 0;
}

static int held(int fd) { return mode != OFF && fd >= 0 && fd < 4096 && ours[fd]; }

static void hold(int fd, int is_ours) {
  if (fd >= 0 && fd < 4096) ours[fd] = is_ours;
}

/* The call's number, or -1 when it must fail; kills where asked. */
static long enter(void) {
  long number = __sync_add_and_fetch(&calls, 1);
  if (mode == KILL_BEFORE && number == place) kill(getpid(), SIGKILL);
  if ((mode == FAIL_ONCE && number == place) || (mode == FAIL_FROM && number >= place)) {
    errno = error_number;
    return -1;
  }
  return number;
}

static void leave(long number) {
  if (mode == KILL_AFTER && number == place) kill(getpid(), SIGKILL);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CALL(type, is_ours, call)   \
  do {                              \
    if (!(is_ours)) return (call);  \
    long number = enter();          \
    if (number < 0) return -1;      \
    type result = (call);           \
    leave(number);                  \
    return result;                  \
  } while (0)

static int opened(int fd, long number) {
  hold(fd, 1);
  leave(number);
  return fd;
}

#define OPEN(name)                                                  \
  int name(const char *path, int flags, ...) {                      \
    va_list more;                                                   \
    va_start(more, flags);                                          \
    mode_t rights = va_arg(more, mode_t);                           \
    va_end(more);                                                   \
    if (!below(path)) {                                             \
      int fd = NEXT(name)(path, flags, rights);                     \
      hold(fd, 0);                                                  \
      return fd;                                                    \
    }                                                               \
    long number = enter();                                          \
    if (number < 0) return -1;                                      \
    return opened(NEXT(name)(path, flags, rights), number);         \
  }
OPEN(open)
OPEN(open64)

ssize_t write(int fd, const void *bytes, size_t length) {
  if (!held(fd)) return NEXT(write)(fd, bytes, length);
  long number = enter();
  if (number < 0) return -1;
  if (mode == SHORT_WRITE && number >= place && length > 1) length /= 2;
  ssize_t result = NEXT(write)(fd, bytes, length);
  leave(number);
  return result;
}
int fsync(int fd) { CALL(int, held(fd), NEXT(fsync)(fd)); }
int fdatasync(int fd) { CALL(int, held(fd), NEXT(fdatasync)(fd)); }
int rename(const char *a, const char *b) { CALL(int, below(a) || below(b), NEXT(rename)(a, b)); }
int mkdir(const char *path, mode_t rights) { CALL(int, below(path), NEXT(mkdir)(path, rights)); }
int unlink(const char *path) { CALL(int, below(path), NEXT(unlink)(path)); }
int rmdir(const char *path) { CALL(int, below(path), NEXT(rmdir)(path)); }
int symlink(const char *to, const char *at) { CALL(int, below(at), NEXT(symlink)(to, at)); }
int chmod(const char *path, mode_t rights) { CALL(int, below(path), NEXT(chmod)(path, rights)); }
int unlinkat(int fd, const char *path, int flags) {
  CALL(int, held(fd) || below(path), NEXT(unlinkat)(fd, path, flags));
}

static long set_back, looks_before, looks;

/* Let the wall clock show so many seconds less, once it was looked at so often. */
void fault_clock(long seconds, long after) {
  set_back = seconds;
  looks_before = after;
  looks = 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = NEXT(clock_gettime);
  int result = real(clock, now);
  if (set_back && clock == CLOCK_REALTIME && __sync_add_and_fetch(&looks, 1) > looks_before)
    now->tv_sec -= set_back;
  return result;
}

time_t time(time_t *into) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (into) *into = now.tv_sec;
  return now.tv_sec;
}

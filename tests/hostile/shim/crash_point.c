/* LD_PRELOAD shim: the process ends, as by SIGKILL, before the JPO_CRASH_AT-th call (from 1) that changes something
 * below JPO_CRASH_DIR: opening for writing, write, pwrite, fsync, fdatasync, ftruncate, rename, unlink, rmdir, mkdir.
 * Instead: JPO_CRASH_INTERRUPT=1 sends SIGINT there; JPO_CRASH_FAIL=ERRNO lets this and every later call fail with that
 * error (JPO_CRASH_ONLY=rename: renames alone); JPO_CRASH_SHORT=1 lets every write from there on take half of what it
 * is given; JPO_CRASH_CLOCK=SECONDS sets the time of day back by so much. JPO_CRASH_COUNT=FILE gets the number of calls
 * at exit. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static long calls, behind; /* behind: seconds that the time of day stands back */
static int halved;         /* writes are short */

static int below(const char *path) {
    const char *dir = getenv("JPO_CRASH_DIR");
    return dir && path && !strncmp(path, dir, strlen(dir));
}

static int file_below(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return below(path);
}

/* For a process that forks one child for each run (tests/hostile/commands.py). */
void jpo_crash_reset(void) { calls = behind = 0, halved = 0; }
long jpo_crash_calls(void) { return calls; }

/* Nonzero where the call must fail, errno set. */
static int point_of(const char *name) {
    const char *at = getenv("JPO_CRASH_AT"), *fail = getenv("JPO_CRASH_FAIL"), *only = getenv("JPO_CRASH_ONLY");
    const char *clock = getenv("JPO_CRASH_CLOCK");
    if (only && strcmp(only, name)) return 0;
    long index = __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED), wanted = at ? atol(at) : 0;
    if (fail && wanted && index >= wanted) {
        errno = atoi(fail);
        return 1;
    }
    if (fail || index != wanted) return 0;
    if (getenv("JPO_CRASH_SHORT")) return halved = 1, 0;
    if (clock) return behind = atol(clock), 0;
    raise(getenv("JPO_CRASH_INTERRUPT") ? SIGINT : SIGKILL);
    return 0;
}

static int point(void) { return point_of(""); }

__attribute__((destructor)) static void report(void) {
    const char *path = getenv("JPO_CRASH_COUNT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    fprintf(file, "%ld\n", calls);
    fclose(file);
}

#define NEXT(name) (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define OPENING(name)                                                             \
    int name(const char *path, int flags, ...) {                                  \
        va_list rest;                                                             \
        va_start(rest, flags);                                                    \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;   \
        va_end(rest);                                                             \
        if ((flags & O_ACCMODE) != O_RDONLY && below(path) && point()) return -1; \
        return (NEXT(name))(path, flags, mode);                                   \
    }
OPENING(open)
OPENING(open64)

ssize_t write(int file, const void *data, size_t size) {
    if (file > 2 && file_below(file)) {
        if (point()) return -1;
        if (halved && size > 1) size /= 2;
    }
    return (NEXT(write))(file, data, size);
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
    if (file_below(file)) {
        if (point()) return -1;
        if (halved && size > 1) size /= 2;
    }
    return (NEXT(pwrite64))(file, data, size, at);
}
int fdatasync(int file) { return file_below(file) && point() ? -1 : (NEXT(fdatasync))(file); }
int clock_gettime(clockid_t clock, struct timespec *now) {
    int status = (NEXT(clock_gettime))(clock, now);
    if (status == 0 && clock == CLOCK_REALTIME) now->tv_sec -= behind;
    return status;
}
int fsync(int file) { return file_below(file) && point() ? -1 : (NEXT(fsync))(file); }
int ftruncate64(int file, off64_t size) { return file_below(file) && point() ? -1 : (NEXT(ftruncate64))(file, size); }
int rename(const char *from, const char *to) { return below(to) && point_of("rename") ? -1 : (NEXT(rename))(from, to); }
int unlink(const char *path) { return below(path) && point() ? -1 : (NEXT(unlink))(path); }
int rmdir(const char *path) { return below(path) && point() ? -1 : (NEXT(rmdir))(path); }
int mkdir(const char *path, mode_t mode) { return below(path) && point() ? -1 : (NEXT(mkdir))(path, mode); }

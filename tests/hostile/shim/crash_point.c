/* LD_PRELOAD shim: the process ends, as by SIGKILL, before the JPO_CRASH_AT-th call (from 1) that changes something below
 * JPO_CRASH_DIR: opening for writing, write, fsync, ftruncate, rename, unlink, rmdir, mkdir. JPO_CRASH_INTERRUPT=1 sends
 * SIGINT there instead; JPO_CRASH_FAIL=ERRNO lets this and every later call fail with that error.
 * JPO_CRASH_COUNT=FILE gets the number of calls at exit. */
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
#include <unistd.h>

static long calls;

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

/* Nonzero where the call must fail, errno set. */
static int point(void) {
    const char *at = getenv("JPO_CRASH_AT"), *fail = getenv("JPO_CRASH_FAIL");
    long index = __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED), wanted = at ? atol(at) : 0;
    if (fail && wanted && index >= wanted) {
        errno = atoi(fail);
        return 1;
    }
    if (fail || index != wanted) return 0;
    raise(getenv("JPO_CRASH_INTERRUPT") ? SIGINT : SIGKILL);
    return 0;
}

__attribute__((destructor)) static void report(void) {
    const char *path = getenv("JPO_CRASH_COUNT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    fprintf(file, "%ld\n", calls);
    fclose(file);
}

#define NEXT(name) (__typeof__(&name)) dlsym(RTLD_NEXT, #name)
#define OPENING(name)                                                                        \
    int name(const char *path, int flags, ...) {                                             \
        va_list rest;                                                                        \
        va_start(rest, flags);                                                               \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;              \
        va_end(rest);                                                                        \
        if ((flags & O_ACCMODE) != O_RDONLY && below(path) && point()) return -1;            \
        return (NEXT(name))(path, flags, mode);                                              \
    }
OPENING(open)
OPENING(open64)

ssize_t write(int file, const void *data, size_t size) {
    if (file > 2 && file_below(file) && point()) return -1;
    return (NEXT(write))(file, data, size);
}
int fsync(int file) { return file_below(file) && point() ? -1 : (NEXT(fsync))(file); }
int ftruncate64(int file, off64_t size) { return file_below(file) && point() ? -1 : (NEXT(ftruncate64))(file, size); }
int rename(const char *from, const char *to) { return below(to) && point() ? -1 : (NEXT(rename))(from, to); }
int unlink(const char *path) { return below(path) && point() ? -1 : (NEXT(unlink))(path); }
int rmdir(const char *path) { return below(path) && point() ? -1 : (NEXT(rmdir))(path); }
int mkdir(const char *path, mode_t mode) { return below(path) && point() ? -1 : (NEXT(mkdir))(path, mode); }

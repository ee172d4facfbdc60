/* LD_PRELOAD shim: the allocation with index JPO_FAIL_AT (from 1), counted in our own library alone, fails; with
 * JPO_FAIL_ALWAYS=1 every later one fails too. malloc, calloc, realloc, aligned_alloc and anonymous mmap are counted
 * where the caller's address lies in _core's file, until jpo_fail_no_more. JPO_FAIL_COUNT=FILE gets the number of calls
 * at exit. jpo_fail_from counts anew within a process (tests/hostile/sweep.py). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static long calls, fail_at = -1;
static int always, ended;

static int ours(const void *caller) {
    Dl_info info;
    return dladdr(caller, &info) && info.dli_fname && strstr(info.dli_fname, "_core.");
}

static int fails(const void *caller) {
    if (ended || !ours(caller)) return 0;
    if (fail_at < 0) {
        const char *at = getenv("JPO_FAIL_AT");
        fail_at = at ? atol(at) : 0, always = getenv("JPO_FAIL_ALWAYS") != NULL;
    }
    long index = __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
    if (!fail_at || (index != fail_at && !(always && index > fail_at))) return 0;
    errno = ENOMEM;
    return 1;
}

/* The call with index `at` from now on fails, 0: none; `forever`: every later one too. */
void jpo_fail_from(long at, int forever) { calls = 0, fail_at = at, always = forever; }

/* None fails or is counted any more: in a coverage build, libgcov's own at exit, which it does not check, are in our
 * file. */
void jpo_fail_no_more(void) { ended = 1; }

__attribute__((destructor)) static void report(void) {
    const char *path = getenv("JPO_FAIL_COUNT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    fprintf(file, "%ld\n", calls);
    fclose(file);
}

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

void *malloc(size_t size) { return fails(__builtin_return_address(0)) ? NULL : __libc_malloc(size); }
void *calloc(size_t count, size_t size) {
    return fails(__builtin_return_address(0)) ? NULL : __libc_calloc(count, size);
}
void *realloc(void *old, size_t size) { return fails(__builtin_return_address(0)) ? NULL : __libc_realloc(old, size); }
void *aligned_alloc(size_t align, size_t size) {
    return fails(__builtin_return_address(0)) ? NULL : __libc_memalign(align, size);
}

void *mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset) {
    static void *(*next)(void *, size_t, int, int, int, off_t);
    if (!next) *(void **)&next = dlsym(RTLD_NEXT, "mmap");
    if ((flags & MAP_ANONYMOUS) && fails(__builtin_return_address(0))) return MAP_FAILED;
    return next(at, bytes, protection, flags, file, offset);
}

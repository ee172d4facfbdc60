#include "base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#if defined(__x86_64__)
#define CPU_RELAX() __builtin_ia32_pause()
#else
#define CPU_RELAX() ((void)0)
#endif

/* A worker spins this many polls (about 20 microseconds) before it sleeps: the regions of a decoding step follow
 * one another closely. */
enum { SPIN_POLLS = 1500 };

static struct {
    pthread_mutex_t caller; /* one parallel region at a time */
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    int wanted, running; /* threads asked for; workers alive (0 when wanted == 1) */
    pthread_t worker[JPO_MAX_THREADS];
    atomic_ulong region; /* generation number: workers wait for it to change */
    atomic_long next;    /* next task to hand out */
    atomic_int busy;     /* workers that have not finished the region */
    atomic_bool stop;
    long count;
    jpo_task run;
    void *context;
    bool ready;
} pool = {.caller = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .done = PTHREAD_COND_INITIALIZER};

static _Thread_local int region_thread = -1; /* which thread of a region this is; -1 outside */

static void drain(int thread) {
    region_thread = thread;
    for (long task; (task = atomic_fetch_add_explicit(&pool.next, 1, memory_order_relaxed)) < pool.count;)
        pool.run(pool.context, task, thread);
    region_thread = -1;
}

static void *work(void *argument) {
    int thread = (int)(intptr_t)argument;
    unsigned long seen = 0;
    for (;;) {
        int polls = 0;
        while (atomic_load_explicit(&pool.region, memory_order_acquire) == seen && polls++ < SPIN_POLLS) CPU_RELAX();
        pthread_mutex_lock(&pool.lock);
        while (atomic_load(&pool.region) == seen) pthread_cond_wait(&pool.wake, &pool.lock);
        pthread_mutex_unlock(&pool.lock);
        seen = atomic_load(&pool.region);
        if (atomic_load(&pool.stop)) return NULL;
        drain(thread);
        if (atomic_fetch_sub(&pool.busy, 1) == 1) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.done);
            pthread_mutex_unlock(&pool.lock);
        }
    }
}

static void pin(pthread_t thread, int index) {
#if defined(__linux__)
    const char *setting = getenv("JPO_PIN");
    cpu_set_t allowed, one;
    if ((setting && setting[0] == '0') || sched_getaffinity(0, sizeof allowed, &allowed)) return;
    int left = index % CPU_COUNT(&allowed);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed) || left-- > 0) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        pthread_setaffinity_np(thread, sizeof one, &one);
        return;
    }
#else
    (void)thread, (void)index;
#endif
}

static void announce(void) {
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.region, 1);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
}

static void stop_workers(void) {
    if (!pool.running) return;
    atomic_store(&pool.stop, true);
    announce();
    for (int i = 0; i < pool.running; i++) pthread_join(pool.worker[i], NULL);
    atomic_store(&pool.stop, false);
    pool.running = 0;
}

/* In the child of a fork only the calling thread exists: forget the workers; the next region starts new ones. */
static void after_fork_child(void) {
    pthread_mutex_init(&pool.caller, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_cond_init(&pool.done, NULL);
    pool.running = 0;
    region_thread = -1;
}
static void before_fork(void) { pthread_mutex_lock(&pool.caller); }
static void after_fork_parent(void) { pthread_mutex_unlock(&pool.caller); }

static int allowed_processors(void) {
#if defined(__linux__)
    cpu_set_t allowed;
    if (!sched_getaffinity(0, sizeof allowed, &allowed)) return CPU_COUNT(&allowed);
#endif
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
}

static int clamp_threads(long count) { return count < 1 ? 1 : count > JPO_MAX_THREADS ? JPO_MAX_THREADS : (int)count; }

static void make_ready(void) {
    if (pool.ready) return;
    pool.ready = true;
    const char *setting = getenv("JPO_NUM_THREADS");
    long count = setting ? strtol(setting, NULL, 10) : 0;
    if (!pool.wanted) pool.wanted = clamp_threads(count > 0 ? count : allowed_processors());
    pthread_atfork(before_fork, after_fork_parent, after_fork_child);
}

static void start_workers(void) {
    atomic_store(&pool.region, 0);
    for (int i = 0; i < pool.wanted && pool.wanted > 1; i++) {
        if (pthread_create(&pool.worker[i], NULL, work, (void *)(intptr_t)i)) break; /* fewer threads, same result */
        pin(pool.worker[i], i);
        pool.running = i + 1;
    }
}

int jpo_threads_count(void) {
    pthread_mutex_lock(&pool.caller);
    make_ready();
    int count = pool.wanted;
    pthread_mutex_unlock(&pool.caller);
    return count;
}

void jpo_threads_set(int count) {
    pthread_mutex_lock(&pool.caller);
    make_ready();
    stop_workers();
    pool.wanted = clamp_threads(count);
    pthread_mutex_unlock(&pool.caller);
}

void jpo_parallel(int64_t count, jpo_task run, void *context) {
    if (count <= 0) return;
    if (region_thread >= 0) {
        for (int64_t task = 0; task < count; task++) run(context, task, region_thread);
        return;
    }
    pthread_mutex_lock(&pool.caller);
    make_ready();
    if (!pool.running && pool.wanted > 1 && count > 1) start_workers();
    pool.run = run, pool.context = context, pool.count = (long)count;
    atomic_store(&pool.next, 0);
    if (!pool.running || count == 1) {
        drain(0);
    } else {
        atomic_store(&pool.busy, pool.running);
        announce();
        int polls = 0;
        while (atomic_load_explicit(&pool.busy, memory_order_acquire) && polls++ < SPIN_POLLS) CPU_RELAX();
        pthread_mutex_lock(&pool.lock);
        while (atomic_load(&pool.busy)) pthread_cond_wait(&pool.done, &pool.lock);
        pthread_mutex_unlock(&pool.lock);
    }
    pthread_mutex_unlock(&pool.caller);
}

/* The pool's workers, the dealing of tasks, and the rule that a computation keeps its number of threads. */
#include "base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <sys/resource.h>
#include <unistd.h>

#if defined(__x86_64__)
#define CPU_RELAX() __builtin_ia32_pause()
#else
#define CPU_RELAX() ((void)0)
#endif

/* A waiting thread spins this many polls (about 100 microseconds) before it sleeps: regions follow one another closely,
 * and to wake a sleeper costs 50 microseconds on a virtual machine. */
enum { SPIN_POLLS = 8000 };

enum { COUNT_REGIONS = 16 };             /* a worker counts its preemptions in every so many-th region */
static const double POLL_SECONDS = 0.05; /* between two polls of a computation */

/* A thread's own run of tasks, on a cache line of its own. Neighbouring tasks read neighbouring memory, so that a
 * thread takes its own in order, and then what others have left. */
typedef struct {
    _Alignas(64) atomic_long next;
    long end;
} task_run;

static struct {
    pthread_mutex_t gate;   /* guards asked and computations; taken before `caller` */
    pthread_cond_t idle;    /* no computation runs any more */
    int asked;              /* the number of threads that the next computation gets */
    int computations;       /* threads between jpo_compute_begin and jpo_compute_end */
    pthread_mutex_t caller; /* one parallel region at a time */
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    atomic_int wanted; /* threads in use, the caller's among them: constant while a computation runs */
    int running;       /* workers alive */
    pthread_t worker[JPO_MAX_THREADS];
    int place[JPO_MAX_THREADS + 1];         /* the processor of each worker, and last the caller's; -1: not pinned */
    atomic_long preempted[JPO_MAX_THREADS]; /* how often each worker had to leave its processor to somebody else */
    long preempted_before;                  /* their sum when it was last looked at */
    double looked, loosened;                /* seconds: the last look; when the workers were set free, 0: not */
    atomic_ulong region;                    /* generation number: workers wait for it to change */
    atomic_int busy;                        /* workers that have not finished the region */
    atomic_int sleepers;                    /* workers that wait on `wake` */
    atomic_bool waiting;                    /* the caller waits on `done` */
    atomic_bool stop;
    atomic_bool pause;               /* threads begin no further task: the caller wants to poll */
    task_run tasks[JPO_MAX_THREADS]; /* one for each thread that they were dealt to */
    int runs;                        /* of these */
    jpo_task run;
    void *context;
} pool = {.gate = PTHREAD_MUTEX_INITIALIZER,
          .idle = PTHREAD_COND_INITIALIZER,
          .caller = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .done = PTHREAD_COND_INITIALIZER};

static _Thread_local int region_thread = -1; /* which thread of a region this is; -1 outside */
static _Thread_local int depth;              /* computations that this thread is inside of, one within another */

/* The computation of this thread: whom it asks, when it last did, and whether the answer was to stop. */
static _Thread_local struct {
    jpo_poll poll;
    double last;
    bool interrupted;
} computation;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void drain(int thread) {
    region_thread = thread;
    for (int i = 0; i < pool.runs; i++) {
        task_run *run = &pool.tasks[(thread + i) % pool.runs];
        while (!atomic_load_explicit(&pool.pause, memory_order_relaxed)) {
            long task = atomic_fetch_add_explicit(&run->next, 1, memory_order_relaxed);
            if (task >= run->end) break;
            pool.run(pool.context, task, thread);
            if (thread == 0 && computation.poll && now() - computation.last > POLL_SECONDS)
                atomic_store_explicit(&pool.pause, true, memory_order_relaxed);
        }
    }
    region_thread = -1;
}

static void deal(long count) {
    const long threads = pool.runs = pool.running + 1;
    for (long i = 0, first = 0; i < threads; i++) {
        long end = first + (count - first) / (threads - i);
        pool.tasks[i].end = end;
        atomic_store_explicit(&pool.tasks[i].next, first, memory_order_relaxed);
        first = end;
    }
}

/* Sleeping is announced before the last look at `region`, and announce() looks at `sleepers` after it has changed
 * `region`: one of the two sees the other. `waiting` and `busy` work the same way. */
static void wait_for_region(unsigned long seen) {
    int polls = 0;
    while (atomic_load_explicit(&pool.region, memory_order_acquire) == seen && polls++ < SPIN_POLLS) CPU_RELAX();
    if (atomic_load(&pool.region) != seen) return;
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.sleepers, 1);
    while (atomic_load(&pool.region) == seen) pthread_cond_wait(&pool.wake, &pool.lock);
    atomic_fetch_sub(&pool.sleepers, 1);
    pthread_mutex_unlock(&pool.lock);
}

static void count_preemptions(int thread) {
#if defined(__linux__)
    struct rusage usage;
    if (!getrusage(RUSAGE_THREAD, &usage))
        atomic_store_explicit(&pool.preempted[thread - 1], usage.ru_nivcsw, memory_order_relaxed);
#else
    (void)thread;
#endif
}

static void *work(void *argument) {
    int thread = (int)(intptr_t)argument;
    unsigned long seen = 0;
    for (;;) {
        wait_for_region(seen);
        seen = atomic_load(&pool.region);
        if (atomic_load(&pool.stop)) return NULL;
        drain(thread);
        if (seen % COUNT_REGIONS == 0) count_preemptions(thread);
        if (atomic_fetch_sub(&pool.busy, 1) == 1 && atomic_load(&pool.waiting)) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.done);
            pthread_mutex_unlock(&pool.lock);
        }
    }
}

static void wait_for_workers(void) {
    int polls = 0;
    while (atomic_load_explicit(&pool.busy, memory_order_acquire) && polls++ < SPIN_POLLS) CPU_RELAX();
    if (!atomic_load(&pool.busy)) return;
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.waiting, true);
    while (atomic_load(&pool.busy)) pthread_cond_wait(&pool.done, &pool.lock);
    atomic_store(&pool.waiting, false);
    pthread_mutex_unlock(&pool.lock);
}

#if defined(__linux__)
static bool pin(pthread_t thread, int cpu) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET((size_t)cpu, &one);
    return !pthread_setaffinity_np(thread, sizeof one, &one);
}

/* Deals the allowed processors: the caller's own to the caller, the others to the workers in turn. */
static void pin_workers(void) {
    const char *setting = getenv("JPO_PIN");
    cpu_set_t allowed;
    int own = sched_getcpu(), cpu = own;
    for (int i = 0; i <= JPO_MAX_THREADS; i++) pool.place[i] = -1;
    pool.loosened = 0;
    if ((setting && setting[0] == '0') || own < 0 || sched_getaffinity(0, sizeof allowed, &allowed)) return;
    pool.place[JPO_MAX_THREADS] = own;
    for (int i = 0; i < pool.running; i++) {
        do cpu = (cpu + 1) % CPU_SETSIZE;
        while (!CPU_ISSET((size_t)cpu, &allowed));
        if (pin(pool.worker[i], cpu)) pool.place[i] = cpu;
    }
}

static void loosen_workers(void) {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
    for (int i = 0; i < pool.running; i++) pthread_setaffinity_np(pool.worker[i], sizeof allowed, &allowed);
    for (int i = 0; i <= JPO_MAX_THREADS; i++) pool.place[i] = -1;
}

/* A pinned worker that shares its processor with another program waits while others stand idle. Where workers are
 * preempted often, somebody else computes there, such as a second process of ours: they are set free, the kernel
 * balances the load, and after a while they are pinned again, to see whether the processor is ours now. */
static void watch_neighbours(void) {
    enum { PREEMPTIONS_A_SECOND = 40, FREE_SECONDS = 10 };
    const double time = now();
    if (time - pool.looked < 0.1 || (pool.place[JPO_MAX_THREADS] < 0 && !pool.loosened)) return;
    long preempted = 0;
    for (int i = 0; i < pool.running; i++) preempted += atomic_load_explicit(&pool.preempted[i], memory_order_relaxed);
    const double seconds = time - pool.looked, often = (double)(preempted - pool.preempted_before);
    pool.preempted_before = preempted, pool.looked = time;
    if (!pool.loosened && seconds < 1 && often > PREEMPTIONS_A_SECOND * seconds * pool.running) {
        loosen_workers();
        pool.loosened = time;
    } else if (pool.loosened && time - pool.loosened > FREE_SECONDS) {
        pin_workers();
    }
}

/* Where the kernel has moved the caller onto a worker's processor, the two change places. */
static void make_room(void) {
    int own = sched_getcpu(), *home = &pool.place[JPO_MAX_THREADS];
    watch_neighbours();
    if (own < 0 || *home < 0 || own == *home) return;
    for (int i = 0; i < pool.running; i++)
        if (pool.place[i] == own && pin(pool.worker[i], *home)) pool.place[i] = *home;
    *home = own;
}
#else
static void pin_workers(void) {}
static void make_room(void) {}
#endif

static void announce(void) {
    atomic_fetch_add(&pool.region, 1);
    if (!atomic_load(&pool.sleepers)) return;
    pthread_mutex_lock(&pool.lock);
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
    pthread_mutex_init(&pool.gate, NULL);
    pthread_cond_init(&pool.idle, NULL);
    pthread_mutex_init(&pool.caller, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_cond_init(&pool.done, NULL);
    pool.running = 0;
    pool.computations = depth > 0;
    atomic_store(&pool.sleepers, 0);
    atomic_store(&pool.waiting, false);
    region_thread = -1;
}
static void before_fork(void) {
    pthread_mutex_lock(&pool.gate);
    pthread_mutex_lock(&pool.caller);
}
static void after_fork_parent(void) {
    pthread_mutex_unlock(&pool.caller);
    pthread_mutex_unlock(&pool.gate);
}

static int allowed_processors(void) {
#if defined(__linux__)
    cpu_set_t allowed;
    if (!sched_getaffinity(0, sizeof allowed, &allowed)) return CPU_COUNT(&allowed);
#endif
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
}

static int clamp_threads(long count) { return count < 1 ? 1 : count > JPO_MAX_THREADS ? JPO_MAX_THREADS : (int)count; }

static void first_use(void) {
    const char *setting = getenv("JPO_NUM_THREADS");
    long count = setting ? strtol(setting, NULL, 10) : 0;
    pool.asked = clamp_threads(count > 0 ? count : allowed_processors());
    atomic_store(&pool.wanted, pool.asked);
    pthread_atfork(before_fork, after_fork_parent, after_fork_child);
}

static void make_ready(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, first_use);
}

static void start_workers(void) {
    atomic_store(&pool.region, 0);
    for (int i = 0; i < pool.wanted - 1; i++) {
        if (pthread_create(&pool.worker[i], NULL, work, (void *)(intptr_t)(i + 1)))
            break; /* fewer threads, same result */
        pool.running = i + 1;
    }
    pin_workers();
}

/* ---- computations: what is sized by the number of threads must meet the same number in its regions ---- */

/* Makes the asked number the one in use; `gate` is held and no computation runs. */
static void apply_asked(void) {
    if (pool.asked == atomic_load(&pool.wanted)) return;
    pthread_mutex_lock(&pool.caller);
    stop_workers();
    atomic_store(&pool.wanted, pool.asked);
    pthread_mutex_unlock(&pool.caller);
}

void jpo_compute_begin(jpo_poll poll) {
    if (depth++) return;
    make_ready();
    computation.poll = poll, computation.last = poll ? now() : 0, computation.interrupted = false;
    pthread_mutex_lock(&pool.gate);
    /* a new number waits for the computations in progress, and new computations wait for it */
    while (pool.computations && pool.asked != atomic_load(&pool.wanted)) pthread_cond_wait(&pool.idle, &pool.gate);
    apply_asked();
    pool.computations++;
    pthread_mutex_unlock(&pool.gate);
}

bool jpo_compute_end(void) {
    const bool interrupted = computation.interrupted;
    if (--depth) return interrupted;
    computation.poll = NULL, computation.interrupted = false;
    pthread_mutex_lock(&pool.gate);
    if (!--pool.computations) {
        apply_asked();
        pthread_cond_broadcast(&pool.idle);
    }
    pthread_mutex_unlock(&pool.gate);
    return interrupted;
}

bool jpo_compute_interrupted(void) { return computation.interrupted; }

bool jpo_compute_idle(void (*change)(void *), void *context) {
    pthread_mutex_lock(&pool.gate);
    bool idle = !pool.computations;
    if (idle) change(context);
    pthread_mutex_unlock(&pool.gate);
    return idle;
}

int jpo_threads_count(void) {
    make_ready();
    return atomic_load(&pool.wanted);
}

int jpo_threads_asked(void) {
    make_ready();
    pthread_mutex_lock(&pool.gate);
    int count = pool.asked;
    pthread_mutex_unlock(&pool.gate);
    return count;
}

void jpo_threads_set(int count) {
    make_ready();
    pthread_mutex_lock(&pool.gate);
    pool.asked = clamp_threads(count);
    if (!pool.computations) apply_asked();
    pthread_mutex_unlock(&pool.gate);
}

/* One run over the dealt tasks, to their end or to the pause. */
static void run_region(jpo_task run, void *context, bool alone) {
    pool.run = run, pool.context = context;
    atomic_store_explicit(&pool.pause, false, memory_order_relaxed);
    if (alone) {
        drain(0);
        return;
    }
    make_room();
    atomic_store(&pool.busy, pool.running);
    announce();
    drain(0);
    wait_for_workers();
}

/* What a pause left, kept while the pool may serve another caller. */
typedef struct {
    long next[JPO_MAX_THREADS], end[JPO_MAX_THREADS];
    int runs;
} leftover;

static bool save_leftover(leftover *rest) {
    bool some = false;
    rest->runs = pool.runs;
    for (int i = 0; i < rest->runs; i++) {
        rest->next[i] = atomic_load(&pool.tasks[i].next), rest->end[i] = pool.tasks[i].end;
        some |= rest->next[i] < rest->end[i];
    }
    return some;
}

static void deal_leftover(const leftover *rest) {
    pool.runs = rest->runs; /* of more threads than there are now, after a fork in a handler */
    for (int i = 0; i < rest->runs; i++) {
        pool.tasks[i].end = rest->end[i];
        atomic_store(&pool.tasks[i].next, rest->next[i]);
    }
}

/* Asks the computation's poll; true where it goes on. */
static bool go_on(void) {
    computation.interrupted = computation.poll() != 0;
    computation.last = now();
    return !computation.interrupted;
}

void jpo_parallel(int64_t count, jpo_task run, void *context) {
    if (count <= 0 || computation.interrupted) return;
    if (region_thread >= 0) {
        for (int64_t task = 0; task < count; task++) run(context, task, region_thread);
        return;
    }
    leftover rest;
    make_ready();
    pthread_mutex_lock(&pool.caller);
    if (!pool.running && pool.wanted > 1 && count > 1) start_workers();
    deal((long)count);
    for (;;) {
        run_region(run, context, !pool.running || count == 1);
        bool paused = atomic_load_explicit(&pool.pause, memory_order_relaxed) && save_leftover(&rest);
        pthread_mutex_unlock(&pool.caller); /* a signal handler may compute, or fork */
        if (!paused || !go_on()) return;
        pthread_mutex_lock(&pool.caller);
        deal_leftover(&rest);
    }
}

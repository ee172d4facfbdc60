/* The one thread pool: pthreads, pinned within the allowed set (JPO_PIN=0 turns that off), sized by
 * jpo_threads_set or JPO_NUM_THREADS, else by the allowed processors. The caller works along as thread 0 and is never
 * pinned: it keeps the processor that it is found on, and a worker pinned there is moved to the one that it left.
 * Where another program computes on a worker's processor, workers are set free for some seconds, so that two processes
 * on one machine share it evenly. Results must not depend on the number of threads: cut the OUTPUT into fixed tasks;
 * which thread runs a task is not fixed, its arithmetic is. */
#ifndef JPO_BASE_THREADS_H
#define JPO_BASE_THREADS_H

#include <stdbool.h>
#include <stdint.h>

enum { JPO_MAX_THREADS = 256 };

/* Runs one task. `thread` in [0, jpo_threads_count()) names the scratch that this call may use. */
typedef void (*jpo_task)(void *context, int64_t task, int thread);

/* Runs tasks 0..count-1 and returns when all are done. Not reentrant from a task (a nested call runs inline).
 * Calls from several threads are served one after the other. */
void jpo_parallel(int64_t count, jpo_task run, void *context);

/* Nonzero: stop. Called on the caller's own thread between tasks, about twenty times a second. */
typedef int (*jpo_poll)(void);

/* A computation: between the two calls, which may nest, jpo_threads_count() stays what it is, so that scratch sized by
 * it fits every region. csrc/bind opens one around every call into the layers below (JPO_COMPUTE_BEGIN). Where poll is
 * given and says stop, this region and all that follow in the computation leave their tasks undone, and
 * jpo_compute_end returns true: what was computed must be thrown away. */
void jpo_compute_begin(jpo_poll poll);
bool jpo_compute_end(void);
bool jpo_compute_interrupted(void); /* the poll of this thread's computation has said stop */
/* Calls change(context) while no computation runs and none can begin; false, without a call, where one runs. */
bool jpo_compute_idle(void (*change)(void *), void *context);

int jpo_threads_count(void);     /* in use: constant within a computation */
int jpo_threads_asked(void);     /* what the next computation gets */
void jpo_threads_set(int count); /* clamped to 1..JPO_MAX_THREADS; at once, or when the computations in progress end */

#endif

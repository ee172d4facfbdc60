/* Root-mean-square norm of rows, and below it its gradient (ops/rmsnorm.h). */
#include "ops/rmsnorm.h"

#include <stddef.h>

#include "base/size.h"
#include "base/threads.h"
#include "kernels/kernels.h"

enum { ROW_BLOCK = 16 };

typedef struct {
    float *y, *rstd, *dw;
    const float *x, *w, *dy, *saved_rstd;
    int64_t rows, hidden;
    float eps;
    const jpo_kernels *kernels;
} norm_job;

static void forward_task(void *context, int64_t task, int thread) {
    (void)thread;
    norm_job *job = context;
    int64_t end = jpo_min64(job->rows, (task + 1) * ROW_BLOCK);
    for (int64_t row = task * ROW_BLOCK; row < end; row++) {
        float rstd;
        job->kernels->rmsnorm(job->y + row * job->hidden, &rstd, job->x + row * job->hidden, job->w, job->hidden,
                              job->eps);
        if (job->rstd) job->rstd[row] = rstd;
    }
}

void jpo_rmsnorm_forward(float *y, float *rstd, const float *x, const float *w, int64_t rows, int64_t hidden,
                         float eps) {
    norm_job job = {
        .y = y, .rstd = rstd, .x = x, .w = w, .rows = rows, .hidden = hidden, .eps = eps, .kernels = jpo_kernels_get()};
    jpo_parallel(jpo_ceil_div(rows, ROW_BLOCK), forward_task, &job);
}

static void backward_task(void *context, int64_t task, int thread) {
    (void)thread;
    norm_job *job = context;
    int64_t end = jpo_min64(job->rows, (task + 1) * ROW_BLOCK);
    for (int64_t row = task * ROW_BLOCK; row < end; row++)
        job->kernels->rmsnorm_backward(job->y + row * job->hidden, job->dy + row * job->hidden,
                                       job->x + row * job->hidden, job->w, job->saved_rstd[row], job->hidden);
}

/* dw[j] += sum over rows of dy x rstd: columns are cut over threads, rows are walked in order. */
static void weight_task(void *context, int64_t task, int thread) {
    (void)thread;
    norm_job *job = context;
    int64_t first = task * 64, end = jpo_min64(job->hidden, first + 64);
    for (int64_t row = 0; row < job->rows; row++) {
        const float *dy = job->dy + row * job->hidden, *x = job->x + row * job->hidden;
        for (int64_t j = first; j < end; j++) job->dw[j] += dy[j] * x[j] * job->saved_rstd[row];
    }
}

void jpo_rmsnorm_backward(float *dx, float *dw, const float *dy, const float *x, const float *w, const float *rstd,
                          int64_t rows, int64_t hidden) {
    norm_job job = {.y = dx,
                    .dw = dw,
                    .dy = dy,
                    .x = x,
                    .w = w,
                    .saved_rstd = rstd,
                    .rows = rows,
                    .hidden = hidden,
                    .kernels = jpo_kernels_get()};
    jpo_parallel(jpo_ceil_div(rows, ROW_BLOCK), backward_task, &job);
    if (dw) jpo_parallel(jpo_ceil_div(hidden, 64), weight_task, &job);
}

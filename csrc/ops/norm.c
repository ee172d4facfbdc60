/* RMSNorm and LayerNorm over rows or heads, chosen from one table (ops/norm.h). */
#include "ops/norm.h"

#include <stddef.h>

#include "base/size.h"
#include "base/threads.h"
#include "kernels/kernels.h"

enum { ROW_BLOCK = 16, COLUMN_BLOCK = 64 };

typedef struct {
    const char *name;
    void (*forward)(float *, float *, const float *, const float *, const float *, int64_t, float, float);
    void (*backward)(float *, const float *, const float *, const float *, const float *, int64_t, float);
    float offset;
    int statistics;
} norm_operator;

static norm_operator operator_of(jpo_norm_kind kind) {
    const jpo_kernels *kernels = jpo_kernels_get();
    const norm_operator table[] = {
#define ROW(code, name, kernel, offset, statistics) \
    {name, kernels->kernel, kernels->kernel##_backward, offset, statistics},
        JPO_NORM_LIST(ROW)
#undef ROW
    };
    return table[kind];
}

const char *jpo_norm_name(jpo_norm_kind kind) { return operator_of(kind).name; }

typedef struct {
    float *y, *stat, *dx;
    const float *x, *dy, *saved_stat;
    int64_t ldx, ldy, lddx, lddy;
    const jpo_norm *norm;
    const jpo_norm_shape *shape;
    norm_operator op;
} norm_job;

static void forward_task(void *context, int64_t task, int thread) {
    (void)thread;
    norm_job *job = context;
    const jpo_norm_shape *s = job->shape;
    int64_t end = jpo_min64(s->rows, (task + 1) * ROW_BLOCK);
    for (int64_t row = task * ROW_BLOCK; row < end; row++)
        for (int64_t g = 0; g < s->groups; g++) {
            float own[JPO_NORM_STATISTICS];
            float *stat = job->stat ? job->stat + (row * s->groups + g) * JPO_NORM_STATISTICS : own;
            job->op.forward(job->y + row * job->ldy + g * s->width, stat, job->x + row * job->ldx + g * s->width,
                            job->norm->w, job->norm->b, s->width, s->eps, job->op.offset);
        }
}

void jpo_norm_forward(float *y, int64_t ldy, float *stat, const float *x, int64_t ldx, const jpo_norm *norm,
                      const jpo_norm_shape *shape) {
    norm_job job = {.y = y,
                    .ldy = ldy,
                    .stat = stat,
                    .x = x,
                    .ldx = ldx,
                    .norm = norm,
                    .shape = shape,
                    .op = operator_of(shape->kind)};
    jpo_parallel(jpo_ceil_div(shape->rows, ROW_BLOCK), forward_task, &job);
}

static void backward_task(void *context, int64_t task, int thread) {
    (void)thread;
    norm_job *job = context;
    const jpo_norm_shape *s = job->shape;
    int64_t end = jpo_min64(s->rows, (task + 1) * ROW_BLOCK);
    for (int64_t row = task * ROW_BLOCK; row < end; row++)
        for (int64_t g = 0; g < s->groups; g++)
            job->op.backward(job->dx + row * job->lddx + g * s->width, job->dy + row * job->lddy + g * s->width,
                             job->x + row * job->ldx + g * s->width, job->norm->w,
                             job->saved_stat + (row * s->groups + g) * JPO_NORM_STATISTICS, s->width, job->op.offset);
}

/* dw[j] += sum over vectors of dy (x - mean) r, db[j] += sum of dy: columns are cut over threads, rows run in order. */
static void weight_task(void *context, int64_t task, int thread) {
    (void)thread;
    norm_job *job = context;
    const jpo_norm_shape *s = job->shape;
    int64_t first = task * COLUMN_BLOCK, end = jpo_min64(s->width, first + COLUMN_BLOCK);
    for (int64_t row = 0; row < s->rows; row++)
        for (int64_t g = 0; g < s->groups; g++) {
            const float *dy = job->dy + row * job->lddy + g * s->width, *x = job->x + row * job->ldx + g * s->width;
            const float *stat = job->saved_stat + (row * s->groups + g) * JPO_NORM_STATISTICS;
            const float mean = job->op.statistics > 1 ? stat[1] : 0;
            if (job->norm->dw)
                for (int64_t j = first; j < end; j++) job->norm->dw[j] += dy[j] * (x[j] - mean) * stat[0];
            if (job->norm->db)
                for (int64_t j = first; j < end; j++) job->norm->db[j] += dy[j];
        }
}

void jpo_norm_backward(float *dx, int64_t lddx, const float *dy, int64_t lddy, const float *x, int64_t ldx,
                       const float *stat, const jpo_norm *norm, const jpo_norm_shape *shape) {
    norm_job job = {.dx = dx,
                    .lddx = lddx,
                    .dy = dy,
                    .lddy = lddy,
                    .x = x,
                    .ldx = ldx,
                    .saved_stat = stat,
                    .norm = norm,
                    .shape = shape,
                    .op = operator_of(shape->kind)};
    jpo_parallel(jpo_ceil_div(shape->rows, ROW_BLOCK), backward_task, &job);
    if (norm->dw || norm->db) jpo_parallel(jpo_ceil_div(shape->width, COLUMN_BLOCK), weight_task, &job);
}

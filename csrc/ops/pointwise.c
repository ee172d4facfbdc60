/* Rotary embedding, SwiGLU and their backward passes, value by value (ops/pointwise.h). */
#include "ops/pointwise.h"

#include <string.h>

#include "base/size.h"
#include "base/threads.h"
#include "kernels/kernels.h"

enum { ROW_BLOCK = 16, VALUE_BLOCK = 16384 };

typedef struct {
    float *x;
    int64_t ld, rows;
    const jpo_rotary_table *table;
    const int32_t *positions;
    float sign;
} rope_job;

static void rope_task(void *context, int64_t task, int thread) {
    (void)thread;
    rope_job *job = context;
    const jpo_rotary_table *t = job->table;
    void (*rotate)(float *, const float *, const float *, int64_t, float) =
        t->pairs ? jpo_kernels_get()->rope_pairs : jpo_kernels_get()->rope;
    int64_t end = jpo_min64(job->rows, (task + 1) * ROW_BLOCK);
    for (int64_t row = task * ROW_BLOCK; row < end; row++) {
        int64_t offset = job->positions[row] * t->half;
        for (int64_t head = 0; head < t->heads; head++)
            rotate(job->x + row * job->ld + head * t->head_dim, t->cosine + offset, t->sine + offset, t->half,
                   job->sign);
    }
}

void jpo_rope(float *x, int64_t ld, const jpo_rotary_table *table, const int32_t *positions, int64_t rows, float sign) {
    rope_job job = {x, ld, rows, table, positions, sign};
    jpo_parallel(jpo_ceil_div(rows, ROW_BLOCK), rope_task, &job);
}

typedef struct {
    const char *name;
    void (*forward)(float *, const float *, const float *, int64_t);
    void (*backward)(float *, float *, const float *, int64_t);
} activation_operator;

static activation_operator operator_of(jpo_activation kind) {
    const jpo_kernels *kernels = jpo_kernels_get();
    const activation_operator table[] = {
#define ROW(code, name, kernel) {name, kernels->kernel, kernels->kernel##_backward},
        JPO_ACTIVATION_LIST(ROW)
#undef ROW
    };
    return table[kind];
}

const char *jpo_activation_name(jpo_activation kind) { return operator_of(kind).name; }

typedef struct {
    float *y, *gate, *up;
    const float *gate_in, *up_in, *dy;
    float factor;
    int64_t count;
    activation_operator op;
} pointwise_job;

static void activation_task(void *context, int64_t task, int thread) {
    (void)thread;
    pointwise_job *job = context;
    int64_t first = task * VALUE_BLOCK, n = jpo_min64(VALUE_BLOCK, job->count - first);
    if (job->y)
        job->op.forward(job->y + first, job->gate_in + first, job->up_in ? job->up_in + first : NULL, n);
    else
        job->op.backward(job->gate + first, job->up ? job->up + first : NULL, job->dy + first, n);
}

void jpo_activation_forward(float *y, const float *gate, const float *up, jpo_activation kind, int64_t count) {
    pointwise_job job = {.y = y, .gate_in = gate, .up_in = up, .count = count, .op = operator_of(kind)};
    jpo_parallel(jpo_ceil_div(count, VALUE_BLOCK), activation_task, &job);
}

void jpo_activation_backward(float *gate, float *up, const float *dy, jpo_activation kind, int64_t count) {
    pointwise_job job = {.gate = gate, .up = up, .dy = dy, .count = count, .op = operator_of(kind)};
    jpo_parallel(jpo_ceil_div(count, VALUE_BLOCK), activation_task, &job);
}

static void residual_task(void *context, int64_t task, int thread) {
    (void)thread;
    pointwise_job *job = context;
    int64_t first = task * VALUE_BLOCK, n = jpo_min64(VALUE_BLOCK, job->count - first);
    if (job->y != job->gate_in) memcpy(job->y + first, job->gate_in + first, (size_t)n * sizeof(float));
    jpo_kernels_get()->axpy(job->y + first, job->factor, job->up_in + first, n);
}

void jpo_residual(float *y, const float *x, const float *branch, float factor, int64_t count) {
    pointwise_job job = {.y = y, .gate_in = x, .up_in = branch, .factor = factor, .count = count};
    jpo_parallel(jpo_ceil_div(count, VALUE_BLOCK), residual_task, &job);
}

static void scale_task(void *context, int64_t task, int thread) {
    (void)thread;
    pointwise_job *job = context;
    int64_t first = task * VALUE_BLOCK, n = jpo_min64(VALUE_BLOCK, job->count - first);
    jpo_kernels_get()->scale(job->y + first, job->factor, n);
}

void jpo_scale(float *x, float factor, int64_t count) {
    pointwise_job job = {.y = x, .factor = factor, .count = count};
    jpo_parallel(jpo_ceil_div(count, VALUE_BLOCK), scale_task, &job);
}

static void softcap_task(void *context, int64_t task, int thread) {
    (void)thread;
    pointwise_job *job = context;
    int64_t first = task * VALUE_BLOCK, n = jpo_min64(VALUE_BLOCK, job->count - first);
    jpo_kernels_get()->softcap(job->y + first, NULL, n, job->factor);
}

void jpo_softcap(float *z, float cap, int64_t count) {
    pointwise_job job = {.y = z, .factor = cap, .count = count};
    jpo_parallel(jpo_ceil_div(count, VALUE_BLOCK), softcap_task, &job);
}

void jpo_bias_forward(float *x, int64_t ld, const float *bias, int64_t rows, int64_t n) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t j = 0; j < n; j++) x[row * ld + j] += bias[j];
}

void jpo_bias_backward(float *dbias, const float *dx, int64_t ld, int64_t rows, int64_t n) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t j = 0; j < n; j++) dbias[j] += dx[row * ld + j];
}

/* Rotary embedding, SwiGLU and their backward passes, value by value (ops/pointwise.h). */
#include "ops/pointwise.h"

#include "base/size.h"
#include "base/threads.h"
#include "kernels/kernels.h"

enum { ROW_BLOCK = 16, VALUE_BLOCK = 16384 };

typedef struct {
    float *x;
    int64_t ld, heads, half, rows;
    const float *cosine, *sine;
    const int32_t *positions;
    float sign;
} rope_job;

static void rope_task(void *context, int64_t task, int thread) {
    (void)thread;
    rope_job *job = context;
    const jpo_kernels *kernels = jpo_kernels_get();
    int64_t end = jpo_min64(job->rows, (task + 1) * ROW_BLOCK);
    for (int64_t row = task * ROW_BLOCK; row < end; row++) {
        int64_t offset = job->positions[row] * job->half;
        for (int64_t head = 0; head < job->heads; head++)
            kernels->rope(job->x + row * job->ld + head * 2 * job->half, job->cosine + offset, job->sine + offset,
                          job->half, job->sign);
    }
}

void jpo_rope(float *x, int64_t ld, int64_t heads, int64_t half, const float *cosine, const float *sine,
              const int32_t *positions, int64_t rows, float sign) {
    rope_job job = {x, ld, heads, half, rows, cosine, sine, positions, sign};
    jpo_parallel(jpo_ceil_div(rows, ROW_BLOCK), rope_task, &job);
}

typedef struct {
    float *y, *gate, *up;
    const float *gate_in, *up_in, *dy;
    int64_t count;
} swiglu_job;

static void swiglu_task(void *context, int64_t task, int thread) {
    (void)thread;
    swiglu_job *job = context;
    int64_t first = task * VALUE_BLOCK, n = jpo_min64(VALUE_BLOCK, job->count - first);
    if (job->y)
        jpo_kernels_get()->swiglu(job->y + first, job->gate_in + first, job->up_in + first, n);
    else
        jpo_kernels_get()->swiglu_backward(job->gate + first, job->up + first, job->dy + first, n);
}

void jpo_swiglu_forward(float *y, const float *gate, const float *up, int64_t count) {
    swiglu_job job = {.y = y, .gate_in = gate, .up_in = up, .count = count};
    jpo_parallel(jpo_ceil_div(count, VALUE_BLOCK), swiglu_task, &job);
}

void jpo_swiglu_backward(float *gate, float *up, const float *dy, int64_t count) {
    swiglu_job job = {.gate = gate, .up = up, .dy = dy, .count = count};
    jpo_parallel(jpo_ceil_div(count, VALUE_BLOCK), swiglu_task, &job);
}

void jpo_bias_forward(float *x, int64_t ld, const float *bias, int64_t rows, int64_t n) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t j = 0; j < n; j++) x[row * ld + j] += bias[j];
}

void jpo_bias_backward(float *dbias, const float *dx, int64_t ld, int64_t rows, int64_t n) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t j = 0; j < n; j++) dbias[j] += dx[row * ld + j];
}

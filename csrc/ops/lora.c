/* The low-rank path of an adapted product, and below it its gradients (ops/lora.h). */
#include "ops/lora.h"

#include <stddef.h>

#include "base/mix.h"
#include "base/size.h"
#include "base/threads.h"
#include "ops/sgemm.h"

enum { ROW_BLOCK = 64, COLUMN_BLOCK = 192 };

typedef struct {
    float *xa, *dx, *dxa, *dropped;
    const float *x, *dy, *saved_xa;
    const jpo_lora *lora;
    int64_t ldy, m, n, k;
} lora_job;

/* out = x with the masked values zeroed and the others scaled by 1 / (1 - p). out may be x. */
static void drop_rows(float *out, const float *x, const jpo_lora *lora, int64_t row, int64_t rows, int64_t k) {
    const uint32_t limit = (uint32_t)((double)lora->dropout * 4294967296.0);
    const float keep = 1.0f / (1.0f - lora->dropout);
    for (int64_t i = row; i < row + rows; i++) {
        const uint64_t row_seed = jpo_mix64(lora->seed ^ lora->mask_key[i]);
        for (int64_t j = 0; j < k; j++)
            out[i * k + j] = (uint32_t)jpo_mix64(row_seed + (uint64_t)j) < limit ? 0.0f : x[i * k + j] * keep;
    }
}

static void forward_task(void *context, int64_t task, int thread) {
    (void)thread;
    lora_job *job = context;
    const jpo_lora *lora = job->lora;
    int64_t row = task * ROW_BLOCK, rows = jpo_min64(ROW_BLOCK, job->m - row);
    const float *x = job->x;
    if (lora->dropout > 0) {
        drop_rows(job->dropped, job->x, lora, row, rows, job->k);
        x = job->dropped;
    }
    jpo_sgemm(false, true, rows, lora->r, job->k, 1, x + row * job->k, job->k, lora->a, job->k, 0,
              job->xa + row * lora->r, lora->r);
}

jpo_addition jpo_lora_forward(float *xa, const float *x, float *dropped, const jpo_lora *lora, int64_t m, int64_t k) {
    lora_job job = {.xa = xa, .x = x, .dropped = dropped, .lora = lora, .m = m, .k = k};
    jpo_parallel(jpo_ceil_div(m, ROW_BLOCK), forward_task, &job);
    return (jpo_addition){xa, lora->b, lora->r, lora->r, lora->r, true, lora->scale};
}

/* Rows: dxa = scale dy B, and the masked x again. */
static void backward_rows(void *context, int64_t task, int thread) {
    (void)thread;
    lora_job *job = context;
    const jpo_lora *lora = job->lora;
    int64_t row = task * ROW_BLOCK, rows = jpo_min64(ROW_BLOCK, job->m - row);
    jpo_sgemm(false, false, rows, lora->r, job->n, lora->scale, job->dy + row * job->ldy, job->ldy, lora->b, lora->r, 0,
              job->dxa + row * lora->r, lora->r);
    if (lora->dropout > 0) drop_rows(job->dropped, job->x, lora, row, rows, job->k);
}

/* Columns: da[:, block] += dxa^T x, then db[block, :] += scale dy^T xa; each output is summed by one task. */
static void backward_weights(void *context, int64_t task, int thread) {
    (void)thread;
    lora_job *job = context;
    const jpo_lora *lora = job->lora;
    int64_t a_tasks = jpo_ceil_div(job->k, COLUMN_BLOCK);
    if (task < a_tasks) {
        int64_t first = task * COLUMN_BLOCK, count = jpo_min64(COLUMN_BLOCK, job->k - first);
        const float *x = lora->dropout > 0 ? job->dropped : job->x;
        jpo_sgemm(true, false, lora->r, count, job->m, 1, job->dxa, lora->r, x + first, job->k, 1, lora->da + first,
                  job->k);
    } else {
        int64_t first = (task - a_tasks) * COLUMN_BLOCK, count = jpo_min64(COLUMN_BLOCK, job->n - first);
        jpo_sgemm(true, false, count, lora->r, job->m, lora->scale, job->dy + first, job->ldy, job->saved_xa, lora->r,
                  1, lora->db + first * lora->r, lora->r);
    }
}

void jpo_lora_backward_weights(float *dxa, const float *dy, int64_t lddy, const float *xa, const float *x,
                               float *dropped, const jpo_lora *lora, int64_t m, int64_t n, int64_t k) {
    lora_job job = {.dxa = dxa,
                    .dy = dy,
                    .ldy = lddy,
                    .saved_xa = xa,
                    .x = x,
                    .dropped = dropped,
                    .lora = lora,
                    .m = m,
                    .n = n,
                    .k = k};
    jpo_parallel(jpo_ceil_div(m, ROW_BLOCK), backward_rows, &job);
    jpo_parallel(jpo_ceil_div(k, COLUMN_BLOCK) + jpo_ceil_div(n, COLUMN_BLOCK), backward_weights, &job);
}

static void backward_input_task(void *context, int64_t task, int thread) {
    (void)thread;
    lora_job *job = context;
    const jpo_lora *lora = job->lora;
    int64_t row = task * ROW_BLOCK, rows = jpo_min64(ROW_BLOCK, job->m - row);
    const float *dxa = job->dxa + row * lora->r;
    float *part = job->dropped;
    jpo_sgemm(false, false, rows, job->k, lora->r, 1, dxa, lora->r, lora->a, job->k, 0, part + row * job->k, job->k);
    drop_rows(part, part, lora, row, rows, job->k);
    for (int64_t i = row * job->k; i < (row + rows) * job->k; i++) job->dx[i] += part[i];
}

jpo_addition jpo_lora_backward_addition(const float *dxa, const jpo_lora *lora, int64_t k) {
    return (jpo_addition){dxa, lora->a, lora->r, k, lora->r, false, 1};
}

void jpo_lora_backward_input(float *dx, const float *dxa, float *dropped, const jpo_lora *lora, int64_t m, int64_t k) {
    lora_job job = {.dx = dx, .dxa = (float *)dxa, .dropped = dropped, .lora = lora, .m = m, .k = k};
    jpo_parallel(jpo_ceil_div(m, ROW_BLOCK), backward_input_task, &job);
}

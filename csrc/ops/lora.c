/* The low-rank path of an adapted product, and below it its gradients (ops/lora.h). */
#include "ops/lora.h"

#include <stddef.h>

#include "base/mix.h"
#include "base/size.h"
#include "base/threads.h"
#include "kernels/kernels.h"
#include "ops/sgemm.h"

enum { ROW_BLOCK = 64, COLUMN_BLOCK = 384, RANKS = 16 };

/* Rows of one adapter under dropout. */
typedef struct {
    float *xa, *dx, *dropped;
    const float *x, *dxa;
    const jpo_lora *lora;
    int64_t m, k;
    bool accumulate;
    float *scratch; /* (threads, JPO_SGEMM_SCRATCH) */
} rows_job;

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
    rows_job *job = context;
    const jpo_lora *lora = job->lora;
    int64_t row = task * ROW_BLOCK, rows = jpo_min64(ROW_BLOCK, job->m - row);
    drop_rows(job->dropped, job->x, lora, row, rows, job->k);
    float *xa = job->xa + row * lora->r;
    jpo_sgemm(false, true, rows, lora->r, job->k, 1, job->dropped + row * job->k, job->k, lora->a, job->k, 0, xa,
              lora->r, job->scratch + (int64_t)thread * JPO_SGEMM_SCRATCH);
    jpo_kernels_get()->scale(xa, lora->scale, rows * lora->r);
}

jpo_status jpo_lora_forward(jpo_low_rank *update, float *xa, const float *x, float *dropped, const jpo_lora *lora,
                            int64_t m, int64_t k, jpo_scratch *scratch, jpo_error *err) {
    const bool drops = lora->dropout > 0;
    rows_job job = {.xa = xa, .x = x, .dropped = dropped, .lora = lora, .m = m, .k = k};
    *update = (jpo_low_rank){xa, drops ? NULL : lora->a, lora->b, lora->r, lora->scale};
    if (!drops) return JPO_OK;
    JPO_TRY(jpo_sgemm_reserve(scratch, &job.scratch, err));
    jpo_parallel(jpo_ceil_div(m, ROW_BLOCK), forward_task, &job);
    return JPO_OK;
}

jpo_low_rank jpo_lora_backward(float *dxa, const jpo_lora *lora) {
    return (jpo_low_rank){dxa, lora->b, lora->dropout > 0 ? NULL : lora->a, lora->r, lora->scale};
}

/* ---- gradients of A and B: each output is summed by one task, over the rows in order ---- */

typedef struct {
    const jpo_lora_gradient *gradients;
    int count;
    const float *x;
    int64_t m, k, a_tasks;
} weights_job;

/* da[:, first ..] += dxa^T x for all adapters, while these columns of x are in the cache. */
static void add_da(const weights_job *job, int64_t first) {
    const int64_t columns = jpo_min64(COLUMN_BLOCK, job->k - first);
    for (int i = 0; i < job->count; i++) {
        const jpo_lora_gradient *g = &job->gradients[i];
        const int64_t r = g->lora->r;
        jpo_kernels_get()->outer_sum(g->lora->da + first, job->k, g->dxa, r, job->x + first, job->k, job->m, r,
                                     columns);
    }
}

/* db[first .., :] += dy^T xa, summed the other way around, columns of dy in vectors. */
static void add_db(const weights_job *job, const jpo_lora_gradient *g, int64_t first) {
    const int64_t r = g->lora->r, columns = jpo_min64(COLUMN_BLOCK, g->n - first);
    for (int64_t j = 0; j < r; j += RANKS) {
        float sum[RANKS * COLUMN_BLOCK] = {0}, *db = g->lora->db + first * r + j;
        const int64_t ranks = jpo_min64(RANKS, r - j);
        jpo_kernels_get()->outer_sum(sum, COLUMN_BLOCK, g->xa + j, r, g->dy + first, g->lddy, job->m, ranks, columns);
        for (int64_t c = 0; c < columns; c++)
            for (int64_t i = 0; i < ranks; i++) db[c * r + i] += sum[i * COLUMN_BLOCK + c];
    }
}

static void weights_task(void *context, int64_t task, int thread) {
    (void)thread;
    const weights_job *job = context;
    if (task < job->a_tasks) {
        add_da(job, task * COLUMN_BLOCK);
        return;
    }
    task -= job->a_tasks;
    for (int i = 0; i < job->count; i++) {
        const int64_t tasks = jpo_ceil_div(job->gradients[i].n, COLUMN_BLOCK);
        if (task < tasks) {
            add_db(job, &job->gradients[i], task * COLUMN_BLOCK);
            return;
        }
        task -= tasks;
    }
}

static void add_gradients(const jpo_lora_gradient *gradients, int count, const float *x, int64_t m, int64_t k) {
    weights_job job = {gradients, count, x, m, k, jpo_ceil_div(k, COLUMN_BLOCK)};
    int64_t tasks = job.a_tasks;
    for (int i = 0; i < count; i++) tasks += jpo_ceil_div(gradients[i].n, COLUMN_BLOCK);
    jpo_parallel(tasks, weights_task, &job);
}

static void drop_task(void *context, int64_t task, int thread) {
    (void)thread;
    rows_job *job = context;
    int64_t row = task * ROW_BLOCK, rows = jpo_min64(ROW_BLOCK, job->m - row);
    drop_rows(job->dropped, job->x, job->lora, row, rows, job->k);
}

/* Adapters with dropout have a mask each: one after the other through the same scratch. */
void jpo_lora_backward_weights(const jpo_lora_gradient *gradients, int count, const float *x, float *dropped, int64_t m,
                               int64_t k) {
    for (int i = 0, end; i < count; i = end) {
        const bool drops = gradients[i].lora->dropout > 0;
        for (end = i + 1; !drops && end < count && gradients[end].lora->dropout == 0;) end++;
        if (drops) {
            rows_job job = {.x = x, .dropped = dropped, .lora = gradients[i].lora, .m = m, .k = k};
            jpo_parallel(jpo_ceil_div(m, ROW_BLOCK), drop_task, &job);
        }
        add_gradients(gradients + i, end - i, drops ? dropped : x, m, k);
    }
}

static void backward_input_task(void *context, int64_t task, int thread) {
    rows_job *job = context;
    const jpo_lora *lora = job->lora;
    int64_t row = task * ROW_BLOCK, rows = jpo_min64(ROW_BLOCK, job->m - row);
    const float *dxa = job->dxa + row * lora->r;
    float *part = job->dropped;
    jpo_sgemm(false, false, rows, job->k, lora->r, 1, dxa, lora->r, lora->a, job->k, job->accumulate ? 1 : 0,
              part + row * job->k, job->k, job->scratch + (int64_t)thread * JPO_SGEMM_SCRATCH);
    drop_rows(part, part, lora, row, rows, job->k);
    for (int64_t i = row * job->k; i < (row + rows) * job->k; i++) job->dx[i] += part[i];
}

jpo_status jpo_lora_backward_input(float *dx, const float *dxa, float *dropped, const jpo_lora *lora, int64_t m,
                                   int64_t k, bool accumulate, jpo_scratch *scratch, jpo_error *err) {
    rows_job job = {.dx = dx, .dxa = dxa, .dropped = dropped, .lora = lora, .m = m, .k = k, .accumulate = accumulate};
    JPO_TRY(jpo_sgemm_reserve(scratch, &job.scratch, err));
    jpo_parallel(jpo_ceil_div(m, ROW_BLOCK), backward_input_task, &job);
    return JPO_OK;
}

#include "ops/head.h"

#include <math.h>
#include <string.h>

#include "base/size.h"
#include "base/threads.h"
#include "kernels/kernels.h"
#include "ops/blas.h"

enum { ROW_BLOCK = 96, TILE = JPO_HEAD_TILE, WIDEN_BLOCK = 32 };

typedef struct {
    double *logps;
    jpo_head_row *state;
    float *pw, *dh, *z; /* z: backward_full's tile of all rows (N, TILE) */
    const double *coefficients;
    const jpo_head_batch *batch;
    const jpo_weight *w;
    const float *tile; /* rows of W from `first`, float32 */
    float *widened;
    int64_t first, count; /* the vocabulary tile */
    bool statistics;
    char *scratch;
    size_t scratch_part;
    const jpo_kernels *kernels;
} head_job;

static void widen_task(void *context, int64_t task, int thread) {
    (void)thread;
    head_job *job = context;
    int64_t row = task * WIDEN_BLOCK;
    jpo_weight_rows(job->widened + row * job->w->k, job->w, job->first + row, jpo_min64(WIDEN_BLOCK, job->count - row));
}

/* Makes [first, first + count) of W readable as float32. */
static void take_tile(head_job *job, int64_t first) {
    job->first = first;
    job->count = jpo_min64(TILE, job->w->n - first);
    if (job->w->dtype == JPO_F32) {
        job->tile = (const float *)job->w->data + first * job->w->k;
    } else {
        jpo_parallel(jpo_ceil_div(job->count, WIDEN_BLOCK), widen_task, job);
        job->tile = job->widened;
    }
}

/* First entry whose row is not below `row`. */
static int64_t first_entry(const jpo_head_batch *batch, int64_t row) {
    int64_t low = 0, high = batch->entries;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (batch->row[middle] < row)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Folds one row's tile of logits into its state; z becomes exp(z - max); earlier sums follow a rising maximum. */
static void fold_row(const head_job *job, jpo_head_row *state, float *pw, float *z, float *copy) {
    int64_t best;
    float max = job->kernels->max_tile(z, job->count, &best);
    if (max > state->max || isnan(max)) {
        double keep = exp(state->max - (double)max); /* 0 at the first tile */
        state->sum *= keep, state->sum_p2 *= keep * keep, state->sum_pz *= keep;
        if (pw && state->max > -INFINITY) job->kernels->scale(pw, (float)keep, job->w->k);
        state->max = max;
        state->best = (int32_t)(job->first + best);
    }
    if (job->statistics) memcpy(copy, z, (size_t)job->count * sizeof(float));
    if (state->max == -INFINITY) {
        memset(z, 0, (size_t)job->count * sizeof(float));
        return;
    }
    state->sum += job->kernels->softmax_tile(z, job->count, (float)state->max);
    if (job->statistics) {
        double sums[3];
        job->kernels->softmax_stats_tile(sums, z, copy, job->count);
        state->sum_pz += sums[0], state->sum_p2 += sums[1], state->sum_z += sums[2];
    }
}

static void forward_task(void *context, int64_t task, int thread) {
    head_job *job = context;
    const jpo_head_batch *batch = job->batch;
    int64_t hidden = job->w->k, row = task * ROW_BLOCK, rows = jpo_min64(ROW_BLOCK, batch->rows - row);
    float *z = (float *)(job->scratch + (size_t)thread * job->scratch_part), *copy = z + ROW_BLOCK * TILE;
    jpo_sgemm(false, true, rows, job->count, hidden, 1, batch->h + row * hidden, hidden, job->tile, hidden, 0, z, TILE);
    for (int64_t e = first_entry(batch, row); e < batch->entries && batch->row[e] < row + rows; e++) {
        int64_t column = batch->target[e] - job->first;
        if (column >= 0 && column < job->count) job->logps[e] = z[(batch->row[e] - row) * TILE + column];
    }
    for (int64_t i = 0; i < rows; i++)
        fold_row(job, job->state + row + i, job->pw ? job->pw + (row + i) * hidden : NULL, z + i * TILE, copy);
    if (job->pw)
        jpo_sgemm(false, false, rows, hidden, job->count, 1, z, TILE, job->tile, hidden, job->first ? 1 : 0,
                  job->pw + row * hidden, hidden);
}

static jpo_status plan(head_job *job, jpo_scratch *scratch, jpo_error *err) {
    size_t widened = job->w->dtype == JPO_F32 ? 0 : (size_t)TILE * (size_t)job->w->k;
    job->scratch_part = (ROW_BLOCK + 1) * TILE * sizeof(float);
    JPO_TRY(jpo_block_reserve(&scratch->shared, widened * sizeof(float) + 64, err));
    JPO_TRY(jpo_block_reserve(&scratch->thread, job->scratch_part * (size_t)jpo_threads_count(), err));
    job->widened = scratch->shared.data;
    job->scratch = scratch->thread.data;
    job->kernels = jpo_kernels_get();
    return JPO_OK;
}

jpo_status jpo_head_forward(double *logps, jpo_head_row *state, float *pw, const jpo_head_batch *batch,
                            const jpo_weight *w, bool statistics, jpo_scratch *scratch, jpo_error *err) {
    head_job job = {.logps = logps, .state = state, .pw = pw, .batch = batch, .w = w, .statistics = statistics};
    JPO_TRY(plan(&job, scratch, err));
    for (int64_t row = 0; row < batch->rows; row++) state[row] = (jpo_head_row){.max = -INFINITY};
    for (int64_t first = 0; first < w->n; first += TILE) {
        take_tile(&job, first);
        jpo_parallel(jpo_ceil_div(batch->rows, ROW_BLOCK), forward_task, &job);
    }
    for (int64_t e = 0; e < batch->entries; e++) {
        const jpo_head_row *s = state + batch->row[e];
        logps[e] = logps[e] - s->max - log(s->sum);
    }
    return JPO_OK;
}

static void backward_task(void *context, int64_t task, int thread) {
    head_job *job = context;
    const jpo_head_batch *batch = job->batch;
    int64_t hidden = job->w->k, end = jpo_min64(batch->rows, (task + 1) * WIDEN_BLOCK);
    int64_t e = first_entry(batch, task * WIDEN_BLOCK);
    for (int64_t row = task * WIDEN_BLOCK; row < end; row++) {
        float *dh = job->dh + row * hidden;
        const float *pw = job->pw + row * hidden;
        double total = 0;
        memset(dh, 0, (size_t)hidden * sizeof(float));
        float *weight = (float *)(job->scratch + (size_t)thread * job->scratch_part);
        for (; e < batch->entries && batch->row[e] == row; e++) {
            total += job->coefficients[e];
            jpo_weight_rows(weight, job->w, batch->target[e], 1);
            job->kernels->axpy(dh, (float)job->coefficients[e], weight, hidden);
        }
        job->kernels->axpy(dh, (float)(-total / job->state[row].sum), pw, hidden);
    }
}

jpo_status jpo_head_backward(float *dh, const double *coefficients, const jpo_head_row *state, const float *pw,
                             const jpo_head_batch *batch, const jpo_weight *w, jpo_scratch *scratch, jpo_error *err) {
    head_job job = {.dh = dh, .coefficients = coefficients, .state = (jpo_head_row *)state, .pw = (float *)pw,
                    .batch = batch, .w = w};
    job.scratch_part = ((size_t)w->k * sizeof(float) + 63) / 64 * 64;
    JPO_TRY(jpo_block_reserve(&scratch->thread, job.scratch_part * (size_t)jpo_threads_count(), err));
    job.scratch = scratch->thread.data;
    job.kernels = jpo_kernels_get();
    jpo_parallel(jpo_ceil_div(batch->rows, WIDEN_BLOCK), backward_task, &job);
    return JPO_OK;
}

/* z tile -> dz = sum of c_e onehot(target) - (sum c_e) p, then dh += dz W_tile. */
static void backward_full_task(void *context, int64_t task, int thread) {
    (void)thread;
    head_job *job = context;
    const jpo_head_batch *batch = job->batch;
    int64_t hidden = job->w->k, row = task * ROW_BLOCK, rows = jpo_min64(ROW_BLOCK, batch->rows - row);
    float *z = job->z + row * TILE;
    jpo_sgemm(false, true, rows, job->count, hidden, 1, batch->h + row * hidden, hidden, job->tile, hidden, 0, z, TILE);
    int64_t e = first_entry(batch, row);
    for (int64_t i = 0; i < rows; i++) {
        const jpo_head_row *state = job->state + row + i;
        double total = 0;
        int64_t last = e;
        while (last < batch->entries && batch->row[last] == row + i) total += job->coefficients[last++];
        job->kernels->softmax_tile(z + i * TILE, job->count, (float)state->max);
        job->kernels->scale(z + i * TILE, (float)(-total / state->sum), job->count);
        for (; e < last; e++) {
            int64_t column = batch->target[e] - job->first;
            if (column >= 0 && column < job->count) z[i * TILE + column] += (float)job->coefficients[e];
        }
    }
    jpo_sgemm(false, false, rows, hidden, job->count, 1, z, TILE, job->tile, hidden, job->first ? 1 : 0,
              job->dh + row * hidden, hidden);
}

jpo_status jpo_head_backward_full(float *dh, float *dw, float *z, const double *coefficients, const jpo_head_row *state,
                                  const jpo_head_batch *batch, const jpo_weight *w, jpo_scratch *scratch,
                                  jpo_error *err) {
    head_job job = {.dh = dh, .coefficients = coefficients, .state = (jpo_head_row *)state, .batch = batch, .w = w};
    JPO_TRY(plan(&job, scratch, err));
    job.z = z;
    jpo_status status = JPO_OK;
    for (int64_t first = 0; status == JPO_OK && first < w->n; first += TILE) {
        take_tile(&job, first);
        jpo_parallel(jpo_ceil_div(batch->rows, ROW_BLOCK), backward_full_task, &job);
        status = jpo_linear_backward_weight(dw + first * w->k, job.z, TILE, batch->h, w->k, job.count, w->k,
                                            batch->rows, scratch, err);
        /* the product may have regrown the scratch */
        job.scratch = scratch->thread.data, job.widened = scratch->shared.data;
    }
    return status;
}

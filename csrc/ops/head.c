/* Hidden rows to log-likelihoods in tiles of the vocabulary, so that logits are never stored whole (ops/head.h): a
 * running maximum and sum, the product of probabilities and W beside it, and below them the backward passes. */
#include "ops/head.h"

#include <math.h>
#include <string.h>

#include "base/size.h"
#include "base/threads.h"
#include "kernels/kernels.h"
#include "ops/packed.h"
#include "ops/sgemm.h"

/* Rows of a thread's logits lie a cache line farther apart than they are long: a multiple of 4 kB apart they would
 * share few places of the caches. */
enum { ROW_BLOCK = 192, TILE = JPO_HEAD_TILE, APART = TILE + 16, WIDEN_BLOCK = 32 };

typedef struct {
    double *logps;
    jpo_head_row *state;
    float *pw, *dh, *z; /* z: backward_full's tile of all rows (N, TILE) */
    float *du;          /* (N, r): of the update */
    const double *coefficients;
    const jpo_head_batch *batch;
    const jpo_weight *w;
    int64_t first, count;     /* the vocabulary tile: rows of W */
    int64_t block;            /* rows of h in one task */
    jpo_packed_tile up, down; /* for logits = H W_t^T and for P W_t */
    char *packed;             /* memory of both */
    jpo_packed_rows h;        /* converted once for all tiles */
    bool statistics;
    char *scratch;
    size_t scratch_part, low_rank; /* bytes of a thread's, and where in it its products with the update begin */
    const jpo_kernels *kernels;
} head_job;

static void pack_task(void *context, int64_t task, int thread) {
    (void)thread;
    head_job *job = context;
    int64_t parts = jpo_packed_parts(&job->up);
    jpo_packed_pack_part(task < parts ? &job->up : &job->down, task < parts ? task : task - parts);
}

/* Makes rows [first, first + count) of W ready for the products that this pass needs. */
static void pack_tile(head_job *job, int64_t first, bool both) {
    const jpo_weight *w = job->w;
    job->first = first;
    job->count = jpo_min64(TILE, w->n - first);
    jpo_packed_open(&job->up, job->packed, w, first, job->count, 0, w->k, false);
    jpo_packed_open(&job->down, job->packed + jpo_packed_tile_bytes(w, w->k, TILE), w, first, job->count, 0, w->k,
                    true);
    jpo_parallel(jpo_packed_parts(&job->up) + (both ? jpo_packed_parts(&job->down) : 0), pack_task, job);
}

static void convert_task(void *context, int64_t task, int thread) {
    (void)thread;
    const head_job *job = context;
    const int64_t row = task * WIDEN_BLOCK;
    jpo_packed_rows_convert(&job->h, row, jpo_min64(WIDEN_BLOCK, job->batch->rows - row));
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
static void fold_row(const head_job *job, jpo_head_row *state, float *pw, float *z, const float *slope, float *copy) {
    int64_t best;
    float max = job->kernels->max_tile(z, job->count, NULL);
    if (max > state->max || isnan(max)) {
        job->kernels->max_tile(z, job->count, &best); /* the search for the index is slow, and seldom needed */
        double keep = exp(state->max - (double)max);  /* 0 at the first tile */
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
    state->sum += job->kernels->softmax_tile(z, z, job->count, (float)state->max);
    if (job->statistics) {
        double sums[3];
        job->kernels->softmax_stats_tile(sums, z, copy, job->count);
        state->sum_pz += sums[0], state->sum_p2 += sums[1], state->sum_z += sums[2];
    }
    if (slope && pw) job->kernels->multiply(z, slope, job->count);
}

/* Logits of the row's targets in this tile, and their slopes where a soft-cap has them. Returns the next row's entry.
 */
static int64_t pick_targets(const head_job *job, int64_t e, int64_t row, const float *z, const float *slope) {
    const jpo_head_batch *batch = job->batch;
    for (; e < batch->entries && batch->row[e] == row; e++) {
        int64_t column = batch->target[e] - job->first;
        if (column < 0 || column >= job->count) continue;
        job->logps[e] = z[column];
        if (slope && batch->slope) batch->slope[e] = slope[column];
    }
    return e;
}

static float *low_rank_scratch(const head_job *job, int thread) {
    return (float *)(job->scratch + (size_t)thread * job->scratch_part + job->low_rank);
}

/* z (rows, count; ldz) = logits of rows row.. in this tile. */
static void tile_logits(const head_job *job, float *z, int64_t ldz, int64_t row, int64_t rows, int thread) {
    const jpo_head_batch *batch = job->batch;
    const int64_t r = batch->update.r;
    const jpo_packed_term term = {&job->h, 0, job->up};
    jpo_packed_multiply_rows(z, ldz, &term, 1, row, rows, false);
    if (r)
        jpo_sgemm_add_low_rank(z, ldz, batch->update.u + row * r, r, batch->update.v + job->first * r, r, true, rows,
                               job->count, r, 1, low_rank_scratch(job, thread));
}

static void forward_task(void *context, int64_t task, int thread) {
    head_job *job = context;
    const jpo_head_batch *batch = job->batch;
    int64_t hidden = job->w->k, row = task * job->block, rows = jpo_min64(job->block, batch->rows - row);
    float *z = (float *)(job->scratch + (size_t)thread * job->scratch_part), *copy = z + ROW_BLOCK * APART;
    float *slope = batch->softcap > 0 ? copy + TILE : NULL, *rounded = copy + 2 * TILE;
    tile_logits(job, z, APART, row, rows, thread);
    int64_t e = first_entry(batch, row);
    for (int64_t i = 0; i < rows; i++) {
        if (slope) job->kernels->softcap(z + i * APART, slope, job->count, batch->softcap);
        e = pick_targets(job, e, row + i, z + i * APART, slope);
        fold_row(job, job->state + row + i, job->pw ? job->pw + (row + i) * hidden : NULL, z + i * APART, slope, copy);
    }
    if (job->pw)
        jpo_packed_multiply(job->pw + row * hidden, hidden, z, APART, rows, &job->down, job->first > 0, rounded);
}

/* A thread's scratch: ROW_BLOCK rows of logits, a copy of one, a row of slopes, and the probabilities in the form that
 * the weight's compute type multiplies; behind them what products with a low-rank update need. */
static jpo_status plan(head_job *job, jpo_scratch *scratch, jpo_error *err) {
    const jpo_weight *w = job->w;
    JPO_TRY(jpo_weight_check(w, err));
    const jpo_gemm_kernel *kernel = jpo_packed_kernel(w);
    size_t packed = jpo_packed_tile_bytes(w, w->k, TILE) + jpo_packed_tile_bytes(w, TILE, w->k);
    const int64_t rows = job->batch->rows;
    job->low_rank = (ROW_BLOCK * APART + 2 * TILE) * sizeof(float) + jpo_packed_scratch_bytes(w, ROW_BLOCK, TILE);
    job->scratch_part = job->low_rank + (job->batch->update.r ? JPO_SGEMM_SCRATCH * sizeof(float) : 0);
    JPO_TRY(jpo_block_reserve(&scratch->shared, packed + jpo_packed_scratch_bytes(w, rows, w->k), err));
    JPO_TRY(jpo_block_reserve(&scratch->thread, job->scratch_part * (size_t)jpo_threads_count(), err));
    /* Blocks of about a size, equally many for each thread, as a row's results do not depend on the cut; in fours where
     * OpenBLAS serves products, whose sums depend on the shape of a call. */
    const jpo_weight plain = {.compute = JPO_COMPUTE_FLOAT32};
    const int64_t together = jpo_packed_kernel(&plain) ? jpo_threads_count() : 4;
    const int64_t blocks = jpo_round_up(jpo_ceil_div(rows, ROW_BLOCK), together);
    job->block = jpo_max64(jpo_ceil_div(rows, blocks), 1);
    if (kernel) job->block = jpo_round_up(job->block, kernel->align);
    job->packed = scratch->shared.data;
    jpo_packed_rows_open(&job->h, w, false, job->batch->h, w->k, rows, w->k, job->packed + packed);
    if (kernel && kernel->convert) jpo_parallel(jpo_ceil_div(rows, WIDEN_BLOCK), convert_task, job);
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
        pack_tile(&job, first, pw != NULL);
        jpo_parallel(jpo_ceil_div(batch->rows, job.block), forward_task, &job);
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
            double slope = batch->softcap > 0 ? (double)batch->slope[e] : 1;
            total += job->coefficients[e];
            jpo_weight_rows(weight, job->w, batch->target[e], 1);
            job->kernels->axpy(dh, (float)(job->coefficients[e] * slope), weight, hidden);
        }
        job->kernels->axpy(dh, (float)(-total / job->state[row].sum), pw, hidden);
    }
}

jpo_status jpo_head_backward(float *dh, const double *coefficients, const jpo_head_row *state, const float *pw,
                             const jpo_head_batch *batch, const jpo_weight *w, jpo_scratch *scratch, jpo_error *err) {
    head_job job = {.dh = dh,
                    .coefficients = coefficients,
                    .state = (jpo_head_row *)state,
                    .pw = (float *)pw,
                    .batch = batch,
                    .w = w};
    job.scratch_part = ((size_t)w->k * sizeof(float) + 63) / 64 * 64;
    JPO_TRY(jpo_block_reserve(&scratch->thread, job.scratch_part * (size_t)jpo_threads_count(), err));
    job.scratch = scratch->thread.data;
    job.kernels = jpo_kernels_get();
    jpo_parallel(jpo_ceil_div(batch->rows, WIDEN_BLOCK), backward_task, &job);
    return JPO_OK;
}

/* z tile -> dz = sum of c_e onehot(target) - (sum c_e) p, times the soft-cap's slope; then dh += dz W_tile. */
static void backward_full_task(void *context, int64_t task, int thread) {
    head_job *job = context;
    const jpo_head_batch *batch = job->batch;
    int64_t hidden = job->w->k, row = task * job->block, rows = jpo_min64(job->block, batch->rows - row);
    float *z = job->z + row * TILE;
    float *slope = (float *)(job->scratch + (size_t)thread * job->scratch_part) + ROW_BLOCK * APART + TILE;
    float *rounded = slope + TILE;
    tile_logits(job, z, TILE, row, rows, thread);
    int64_t e = first_entry(batch, row);
    for (int64_t i = 0; i < rows; i++) {
        const jpo_head_row *state = job->state + row + i;
        double total = 0;
        int64_t last = e;
        while (last < batch->entries && batch->row[last] == row + i) total += job->coefficients[last++];
        if (batch->softcap > 0) job->kernels->softcap(z + i * TILE, slope, job->count, batch->softcap);
        job->kernels->softmax_tile(z + i * TILE, z + i * TILE, job->count, (float)state->max);
        job->kernels->scale(z + i * TILE, (float)(-total / state->sum), job->count);
        for (; e < last; e++) {
            int64_t column = batch->target[e] - job->first;
            if (column >= 0 && column < job->count) z[i * TILE + column] += (float)job->coefficients[e];
        }
        if (batch->softcap > 0) job->kernels->multiply(z + i * TILE, slope, job->count);
    }
    jpo_packed_multiply(job->dh + row * hidden, hidden, z, TILE, rows, &job->down, job->first > 0, rounded);
    if (job->du)
        jpo_sgemm(false, false, rows, batch->update.r, job->count, 1, z, TILE,
                  batch->update.v + job->first * batch->update.r, batch->update.r, job->first > 0 ? 1 : 0,
                  job->du + row * batch->update.r, batch->update.r, low_rank_scratch(job, thread));
}

jpo_status jpo_head_backward_full(float *dh, const jpo_head_gradient *gradient, float *z, const double *coefficients,
                                  const jpo_head_row *state, const jpo_head_batch *batch, const jpo_weight *w,
                                  jpo_scratch *scratch, jpo_weight_scratch *weights, jpo_error *err) {
    const jpo_low_rank *update = &batch->update;
    head_job job = {.dh = dh, .coefficients = coefficients, .state = (jpo_head_row *)state, .batch = batch, .w = w};
    JPO_TRY(plan(&job, scratch, err));
    job.z = z, job.du = gradient->du;
    for (int64_t first = 0; first < w->n; first += TILE) {
        pack_tile(&job, first, true);
        jpo_parallel(jpo_ceil_div(batch->rows, job.block), backward_full_task, &job);
        if (gradient->dw)
            JPO_TRY(jpo_linear_backward_weight(gradient->dw + first * w->k, job.z, TILE, batch->h, w->k, job.count,
                                               w->k, batch->rows, w->compute, weights, err));
        if (gradient->dv)
            JPO_TRY(jpo_linear_backward_weight(gradient->dv + first * update->r, job.z, TILE, update->u, update->r,
                                               job.count, update->r, batch->rows, JPO_COMPUTE_FLOAT32, weights, err));
    }
    return JPO_OK;
}

/* Lengths of an adapted weight's rows, the product scaled to them, and below it its gradients (ops/dora.h). */
#include "ops/dora.h"

#include <math.h>
#include <string.h>

#include "base/size.h"
#include "base/threads.h"
#include "ops/sgemm.h"

enum { WEIGHT_ROWS = 16, ROW_BLOCK = 32, COLUMN_BLOCK = 64 };

/* ---- norms ---- */

typedef struct {
    float *norm, *scratch;
    const jpo_weight *w;
    const jpo_lora *lora;
} norm_job;

/* A thread's scratch: that of ops/sgemm, then its rows. */
static int64_t norm_floats(int64_t k) { return jpo_round_up(JPO_SGEMM_SCRATCH + WEIGHT_ROWS * k, 16); }

/* Norms of a block of rows: the rows widened, the low-rank update added, squares summed. */
static void norm_task(void *context, int64_t task, int thread) {
    const norm_job *job = context;
    const jpo_lora *lora = job->lora;
    const int64_t k = job->w->k, row = task * WEIGHT_ROWS, rows = jpo_min64(WEIGHT_ROWS, job->w->n - row);
    float *own = job->scratch + thread * norm_floats(k), *v = own + JPO_SGEMM_SCRATCH;
    jpo_weight_rows(v, job->w, row, rows);
    jpo_sgemm(false, false, rows, k, lora->r, lora->scale, lora->b + row * lora->r, lora->r, lora->a, k, 1, v, k, own);
    for (int64_t i = 0; i < rows; i++) {
        double sum = 0;
        for (int64_t j = 0; j < k; j++) sum += (double)v[i * k + j] * (double)v[i * k + j];
        job->norm[row + i] = (float)sqrt(sum);
    }
}

/* Whether `seen` holds these A and B. */
static bool same_adapter(const jpo_row_norms *norms, const jpo_weight *w, const jpo_lora *lora) {
    const size_t a = (size_t)(lora->r * w->k), b = (size_t)(lora->r * w->n);
    return norms->known && memcmp(norms->seen, lora->a, a * sizeof(float)) == 0 &&
           memcmp(norms->seen + a, lora->b, b * sizeof(float)) == 0;
}

jpo_status jpo_row_norms_update(jpo_row_norms *norms, const jpo_weight *w, const jpo_lora *lora, bool trust,
                                jpo_scratch *scratch, jpo_error *err) {
    if (!(trust && norms->known) && !same_adapter(norms, w, lora)) {
        const size_t a = (size_t)(lora->r * w->k), b = (size_t)(lora->r * w->n);
        size_t bytes;
        if (!jpo_size_mul3((size_t)jpo_threads_count(), sizeof(float), (size_t)norm_floats(w->k), &bytes))
            return jpo_fail(err, JPO_ERR_MEMORY, "rows of %lld values do not fit the address space", (long long)w->k);
        JPO_TRY(jpo_block_reserve(&scratch->thread, bytes, err));
        norms->known = false;
        memcpy(norms->seen, lora->a, a * sizeof(float));
        memcpy(norms->seen + a, lora->b, b * sizeof(float));
        norm_job job = {norms->norm, scratch->thread.data, w, lora};
        jpo_parallel(jpo_ceil_div(w->n, WEIGHT_ROWS), norm_task, &job);
        norms->known = !jpo_compute_interrupted();
    }
    for (int64_t i = 0; i < w->n; i++) norms->factor[i] = norms->norm[i] > 0 ? lora->magnitude[i] / norms->norm[i] : 0;
    return JPO_OK;
}

/* ---- the product ---- */

typedef struct {
    float *y, *du, *dmagnitude;
    const float *u, *dy, *factor, *norm;
    int64_t ld, m, n;
    bool accumulate;
} scale_job;

static void forward_task(void *context, int64_t task, int thread) {
    (void)thread;
    const scale_job *job = context;
    const int64_t end = jpo_min64((task + 1) * ROW_BLOCK, job->m);
    for (int64_t i = task * ROW_BLOCK; i < end; i++) {
        float *y = job->y + i * job->ld;
        const float *u = job->u + i * job->n;
        if (job->accumulate)
            for (int64_t j = 0; j < job->n; j++) y[j] += job->factor[j] * u[j];
        else
            for (int64_t j = 0; j < job->n; j++) y[j] = job->factor[j] * u[j];
    }
}

void jpo_dora_forward(float *y, int64_t ldy, const float *u, const float *factor, int64_t m, int64_t n,
                      bool accumulate) {
    scale_job job = {.y = y, .u = u, .factor = factor, .ld = ldy, .m = m, .n = n, .accumulate = accumulate};
    jpo_parallel(jpo_ceil_div(m, ROW_BLOCK), forward_task, &job);
}

/* One block of columns over all rows. */
static void backward_task(void *context, int64_t task, int thread) {
    (void)thread;
    const scale_job *job = context;
    const int64_t first = task * COLUMN_BLOCK, count = jpo_min64(COLUMN_BLOCK, job->n - first);
    double sum[COLUMN_BLOCK] = {0};
    for (int64_t i = 0; i < job->m; i++) {
        const float *dy = job->dy + i * job->ld + first, *u = job->u + i * job->n + first;
        float *du = job->du + i * job->n + first;
        for (int64_t j = 0; j < count; j++) {
            sum[j] += (double)dy[j] * (double)u[j];
            du[j] = job->factor[first + j] * dy[j];
        }
    }
    for (int64_t j = 0; j < count; j++)
        if (job->norm[first + j] > 0) job->dmagnitude[first + j] += (float)(sum[j] / (double)job->norm[first + j]);
}

void jpo_dora_backward(float *dmagnitude, float *du, const float *dy, int64_t lddy, const float *u,
                       const jpo_row_norms *norms, int64_t m, int64_t n) {
    scale_job job = {.dmagnitude = dmagnitude,
                     .du = du,
                     .dy = dy,
                     .u = u,
                     .factor = norms->factor,
                     .norm = norms->norm,
                     .ld = lddy,
                     .m = m,
                     .n = n};
    jpo_parallel(jpo_ceil_div(n, COLUMN_BLOCK), backward_task, &job);
}

static void difference_task(void *context, int64_t task, int thread) {
    (void)thread;
    const scale_job *job = context;
    const int64_t end = jpo_min64((task + 1) * ROW_BLOCK, job->m);
    for (int64_t i = task * ROW_BLOCK; i < end; i++)
        for (int64_t j = 0; j < job->n; j++) job->du[i * job->n + j] -= job->dy[i * job->ld + j];
}

void jpo_dora_difference(float *du, const float *dy, int64_t lddy, int64_t m, int64_t n) {
    scale_job job = {.du = du, .dy = dy, .ld = lddy, .m = m, .n = n};
    jpo_parallel(jpo_ceil_div(m, ROW_BLOCK), difference_task, &job);
}

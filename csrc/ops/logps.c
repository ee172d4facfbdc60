/* Log-likelihoods of given logits and their gradient, one pass over memory each (ops/logps.h). */
#include "ops/logps.h"

#include <math.h>
#include <string.h>

#include "base/size.h"
#include "base/threads.h"
#include "kernels/kernels.h"
#include "kernels/panels.h"

enum { BLOCK = 1024 }; /* float32 values that stay in the first cache between the maximum and the exponentials */

typedef struct {
    double *out;
    void *grad;
    const double *coefficients;
    const jpo_logits_batch *batch;
    float
        *scratch; /* for each thread `part` floats: a row of a narrow type widened, then the maxima of a row's blocks */
    int64_t part;
    const jpo_kernels *kernels;
} logps_job;

/* One pass: the sum follows a rising maximum. out (may be NULL, may be z): exp(z - max) of each block, with the block's
 * maximum in high. NaN and +inf come out as NaN. */
static double logsumexp_f32(const float *z, int64_t n, float *out, float *high, const jpo_kernels *kernels) {
    double sum = 0;
    float max = -INFINITY;
    for (int64_t first = 0; first < n; first += BLOCK) {
        int64_t count = jpo_min64(BLOCK, n - first);
        float top = kernels->max_tile(z + first, count, NULL);
        if (isnan(top) || top == INFINITY) return NAN;
        if (top > max) {
            sum *= exp((double)max - (double)top);
            max = top;
        }
        if (high) high[first / BLOCK] = max;
        if (max == -INFINITY) continue;
        sum += out ? kernels->softmax_tile(out + first, z + first, count, max)
                   : kernels->expsum_tile(z + first, count, max);
    }
    return max + log(sum);
}

static double logsumexp_f64(const double *z, int64_t n) {
    double max = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) {
        if (isnan(z[i]) || z[i] == INFINITY) return NAN;
        if (z[i] > max) max = z[i];
    }
    for (int64_t i = 0; i < n; i++) sum += exp(z[i] - max);
    return max + log(sum);
}

static const float *row_f32(const logps_job *job, int64_t row, int thread) {
    const jpo_logits_batch *b = job->batch;
    if (b->type == JPO_LOGITS_F32) return (const float *)b->logits + row * b->vocab;
    float *wide = job->scratch + thread * job->part;
    jpo_panel_widen_row(wide, b->type == JPO_LOGITS_BF16 ? JPO_BF16 : JPO_F16,
                        (const uint16_t *)b->logits + row * b->vocab, 0, b->vocab);
    return wide;
}

static void logps_task(void *context, int64_t task, int thread) {
    logps_job *job = context;
    const jpo_logits_batch *b = job->batch;
    if (b->type == JPO_LOGITS_F64) {
        const double *z = (const double *)b->logits + b->row[task] * b->vocab;
        job->out[task] = z[b->target[task]] - logsumexp_f64(z, b->vocab);
    } else {
        const float *z = row_f32(job, b->row[task], thread);
        job->out[task] = (double)z[b->target[task]] - logsumexp_f32(z, b->vocab, NULL, NULL, job->kernels);
    }
}

/* grad = c (onehot(target) - p): exponentials are computed once, and scaled when the row's sum is known. */
static void gradient_f32(float *grad, const logps_job *job, int64_t task, int thread) {
    const jpo_logits_batch *b = job->batch;
    const float *z = row_f32(job, b->row[task], thread);
    float *high = job->scratch + thread * job->part + job->part - jpo_ceil_div(b->vocab, BLOCK);
    double c = job->coefficients[task], lse = logsumexp_f32(z, b->vocab, grad, high, job->kernels);
    for (int64_t first = 0; first < b->vocab; first += BLOCK) {
        int64_t count = jpo_min64(BLOCK, b->vocab - first);
        if (isfinite(lse) && high[first / BLOCK] == -INFINITY)
            memset(grad + first, 0, (size_t)count * sizeof(float)); /* nothing has been written there */
        else if (isfinite(lse))
            job->kernels->scale(grad + first, (float)(-c * exp((double)high[first / BLOCK] - lse)), count);
        else
            for (int64_t i = first; i < first + count; i++) grad[i] = NAN;
    }
    grad[b->target[task]] += (float)c;
}

static void grad_task(void *context, int64_t task, int thread) {
    logps_job *job = context;
    const jpo_logits_batch *b = job->batch;
    int64_t at = b->row[task] * b->vocab;
    double c = job->coefficients[task];
    if (b->type == JPO_LOGITS_F64) {
        const double *z = (const double *)b->logits + at;
        double lse = logsumexp_f64(z, b->vocab), *grad = (double *)job->grad + at;
        for (int64_t i = 0; i < b->vocab; i++) grad[i] = -c * exp(z[i] - lse);
        grad[b->target[task]] += c;
    } else {
        gradient_f32((float *)job->grad + at, job, task, thread);
    }
}

static jpo_status plan(logps_job *job, jpo_scratch *scratch, jpo_error *err) {
    size_t bytes;
    const jpo_logits_batch *b = job->batch;
    bool narrow = b->type == JPO_LOGITS_BF16 || b->type == JPO_LOGITS_F16;
    job->part = jpo_round_up((narrow ? b->vocab : 0) + jpo_ceil_div(b->vocab, BLOCK), 16);
    if (!jpo_size_mul3((size_t)job->part, (size_t)jpo_threads_count(), sizeof(float), &bytes))
        return jpo_fail(err, JPO_ERR_MEMORY, "rows of %lld logits do not fit", (long long)b->vocab);
    JPO_TRY(jpo_block_reserve(&scratch->thread, bytes, err));
    job->scratch = scratch->thread.data;
    job->kernels = jpo_kernels_get();
    return JPO_OK;
}

jpo_status jpo_logits_logps(double *out, const jpo_logits_batch *batch, jpo_scratch *scratch, jpo_error *err) {
    logps_job job = {.out = out, .batch = batch};
    JPO_TRY(plan(&job, scratch, err));
    jpo_parallel(batch->count, logps_task, &job);
    return JPO_OK;
}

jpo_status jpo_logits_grad(void *grad, const double *coefficients, const jpo_logits_batch *batch, jpo_scratch *scratch,
                           jpo_error *err) {
    logps_job job = {.grad = grad, .coefficients = coefficients, .batch = batch};
    JPO_TRY(plan(&job, scratch, err));
    jpo_parallel(batch->count, grad_task, &job);
    return JPO_OK;
}

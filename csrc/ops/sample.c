/* Draws one token from each row of logits after temperature, top-k and top-p (ops/sample.h), without sorting the row:
 * cuts are found by histograms of the values. */
#include "ops/sample.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/size.h"
#include "base/threads.h"
#include "kernels/kernels.h"

enum {
    BLOCK = 256, /* probabilities summed at once: the draw walks the blocks' sums, then one block */
    LANES = 8,   /* chains of a block's sum */
    GROUP = 64,  /* values whose maximum is compared before they are */
    DIGIT = 11,  /* bits of a key that one pass of the selection looks at */
    BUCKETS = 1 << DIGIT
};

typedef struct {
    int64_t *tokens;
    double *logps;
    const float *logits;
    const double *uniforms;
    const jpo_sampling *options;
    int64_t vocab;
    float *scratch; /* for each thread `part` floats, cut by part_of */
    int64_t part;
    float factor; /* 1 / temperature */
    bool top_k, top_p;
    const jpo_kernels *kernels;
} sample_job;

/* A thread's scratch. */
typedef struct {
    double *sums;    /* (ceil(V / BLOCK)) */
    double *buckets; /* (BUCKETS) with a cut; so are the following */
    float *p;        /* (V), without a cut too */
    int32_t *index;  /* (V): the vocabulary's index of each p that is kept */
    uint32_t *keys;  /* (V) */
} row_scratch;

static int64_t blocks_of(int64_t vocab) { return jpo_round_up(jpo_ceil_div(vocab, BLOCK), 16); }

static row_scratch part_of(const sample_job *job, int thread) {
    row_scratch s = {.sums = (double *)(job->scratch + thread * job->part)};
    int64_t padded = jpo_round_up(job->vocab, 16);
    if (job->top_k || job->top_p) s.buckets = s.sums + blocks_of(job->vocab);
    s.p = (float *)(s.buckets ? s.buckets + BUCKETS : s.sums + blocks_of(job->vocab));
    if (s.buckets) s.index = (int32_t *)(s.p + padded), s.keys = (uint32_t *)(s.p + 2 * padded);
    return s;
}

/* ---- selection: radix passes over keys that rise with the values, from the highest digit ---- */

static inline uint32_t key_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

static inline float value_of(uint32_t key) {
    uint32_t bits = key >> 31 ? key & 0x7fffffffu : ~key;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The bucket in which the sum from the highest bucket down, added to *above, reaches `target` (the lowest with
 * something in it where rounding keeps the sum short); *above grows by the buckets over it. */
static uint32_t crossing(const double *buckets, double target, double *above) {
    uint32_t found = 0;
    double sum = *above;
    for (uint32_t b = BUCKETS; b-- > 0;) {
        if (!(buckets[b] > 0)) continue;
        found = b;
        *above = sum;
        sum += buckets[b];
        if (sum >= target) break;
    }
    return found;
}

/* The largest value t of x (n) such that the values >= t reach `target`: in number, or weighted in their sum (x >= 0
 * then, and zeros count for nothing). *above: what the values > t come to. */
static inline float select_value(const float *x, int64_t n, bool weighted, double target, double *above,
                                 const row_scratch *s) {
    enum { FIRST = 32 - DIGIT, SECOND = FIRST - DIGIT };
    int64_t count = 0;
    *above = 0;
    memset(s->buckets, 0, BUCKETS * sizeof *s->buckets);
    for (int64_t i = 0; i < n; i++) s->buckets[key_of(x[i]) >> FIRST] += weighted ? (double)x[i] : 1.0;
    uint32_t digits = crossing(s->buckets, target, above);
    for (int64_t i = 0; i < n; i++) { /* writes without a branch: count <= i */
        uint32_t key = key_of(x[i]);
        s->keys[count] = key;
        count += key >> FIRST == digits;
    }
    for (int pass = 0; pass < 2; pass++) {
        int shift = pass ? 0 : SECOND, width = pass ? SECOND : DIGIT;
        uint32_t mask = (1u << width) - 1;
        memset(s->buckets, 0, BUCKETS * sizeof *s->buckets);
        for (int64_t i = 0; i < count; i++)
            s->buckets[s->keys[i] >> shift & mask] += weighted ? (double)value_of(s->keys[i]) : 1.0;
        digits = digits << width | crossing(s->buckets, target, above);
        int64_t kept = 0;
        for (int64_t i = 0; i < count; i++) {
            uint32_t key = s->keys[i];
            s->keys[kept] = key;
            kept += key >> shift == digits;
        }
        count = kept;
    }
    return value_of(digits);
}

/* out and index: the values of x (n) that are at least `least` and their places, in order; their number. */
static int64_t gather(float *out, int32_t *index, const float *x, int64_t n, float least, const jpo_kernels *kernels) {
    int64_t kept = 0;
    for (int64_t first = 0; first < n; first += GROUP) {
        int64_t end = jpo_min64(n, first + GROUP);
        if (kernels->max_tile(x + first, end - first, NULL) < least) continue;
        for (int64_t i = first; i < end; i++) { /* out may be x: kept <= i */
            float value = x[i];
            out[kept] = value;
            index[kept] = (int32_t)i;
            kept += value >= least;
        }
    }
    return kept;
}

/* p and index = the logits that top_k leaves, in the order of indices; their number. */
static int64_t keep_top_k(const float *z, int64_t n, int64_t k, const row_scratch *s, const jpo_kernels *kernels) {
    int64_t groups = jpo_ceil_div(n, GROUP), kept = 0;
    float least = -INFINITY;
    double above;
    if (k <= groups) { /* the k-th largest of the groups' maxima is no larger than the k-th largest logit */
        for (int64_t g = 0; g < groups; g++)
            s->p[g] = kernels->max_tile(z + g * GROUP, jpo_min64(GROUP, n - g * GROUP), NULL);
        least = select_value(s->p, groups, false, (double)k, &above, s);
    }
    n = gather(s->p, s->index, z, n, least, kernels);
    least = select_value(s->p, n, false, (double)k, &above, s);
    for (int64_t i = 0; i < n; i++) {
        float value = s->p[i];
        s->p[kept] = value;
        s->index[kept] = s->index[i];
        kept += value >= least;
    }
    return kept;
}

static double block_sum(const float *p, int64_t n) {
    double lane[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lane[j] += (double)p[i + j];
    for (int j = 0; j < LANES; j++) sum += lane[j];
    for (; i < n; i++) sum += (double)p[i];
    return sum;
}

/* Sums of p's blocks into `sums`; the sum of them. */
static double sum_blocks(const float *p, int64_t n, double *sums) {
    double total = 0;
    for (int64_t first = 0; first < n; first += BLOCK) {
        int64_t count = jpo_min64(BLOCK, n - first);
        total += sums[first / BLOCK] = block_sum(p + first, count);
    }
    return total;
}

/* Leaves of p what top_p keeps, in the order of indices; index (already there where `indexed`) moves along. */
static int64_t keep_top_p(int64_t n, double top_p, bool indexed, const row_scratch *s, const jpo_kernels *kernels) {
    double above, total = sum_blocks(s->p, n, s->sums), target = top_p * total;
    if (!indexed) /* what is less than an equal share of the rest cannot reach into the kept share; 0.99 is for rounding
                   */
        n = gather(s->p, s->index, s->p, n, (float)(0.99 * (1 - top_p) * total / (double)n), kernels);
    float least = select_value(s->p, n, true, target, &above, s);
    /* of those equal to it the first that are needed; the quotient is clamped before it becomes an integer */
    int64_t ties = (int64_t)fmax(1, fmin(ceil((target - above) / (double)least), (double)n)), kept = 0;
    for (int64_t i = 0; i < n; i++) {
        float p = s->p[i];
        bool tie = p == least;
        s->p[kept] = p;
        s->index[kept] = s->index[i];
        kept += (p > least) | (tie & (ties > 0));
        ties -= tie;
    }
    return kept;
}

/* ---- the draw ---- */

/* The first place whose cumulative sum exceeds u * total, and p > 0 there. */
static int64_t place_of(const float *p, int64_t n, double u, double *sums) {
    double goal = u * sum_blocks(p, n, sums), sum = 0, before = 0;
    int64_t block = 0, place = 0;
    for (int64_t b = 0; b < jpo_ceil_div(n, BLOCK); b++) {
        if (!(sums[b] > 0)) continue;
        block = b;
        before = sum;
        sum += sums[b];
        if (sum > goal) break;
    }
    sum = before;
    for (int64_t i = block * BLOCK; i < jpo_min64(n, (block + 1) * BLOCK); i++) {
        if (!(p[i] > 0)) continue;
        place = i; /* the last such one where rounding runs off the block's end */
        sum += (double)p[i];
        if (sum > goal) break;
    }
    return place;
}

/* p = exp((z - max) / temperature); the sum where the temperature is 1. */
static double weigh(float *p, const float *z, int64_t n, float max, const sample_job *job) {
    if (job->factor == 1) return job->kernels->softmax_tile(p, z, n, max);
    for (int64_t i = 0; i < n; i++) p[i] = (z[i] - max) * job->factor;
    return job->kernels->softmax_tile(p, p, n, 0);
}

static void sample_task(void *context, int64_t row, int thread) {
    const sample_job *job = context;
    const jpo_kernels *kernels = job->kernels;
    int64_t vocab = job->vocab, token = -1;
    const float *z = job->logits + row * vocab;
    bool greedy = job->options->temperature == 0;
    float max = kernels->max_tile(z, vocab, greedy ? &token : NULL);
    double sum = 0;
    job->tokens[row] = -1;
    job->logps[row] = NAN;
    if (!isfinite(max)) return;
    if (!greedy) {
        row_scratch s = part_of(job, thread);
        int64_t n = job->top_k ? keep_top_k(z, vocab, job->options->top_k, &s, kernels) : vocab;
        double kept = weigh(s.p, job->top_k ? s.p : z, n, max, job);
        if (n == vocab && job->factor == 1) sum = kept; /* the same exponentials, summed in the same order */
        if (job->top_p) n = keep_top_p(n, job->options->top_p, job->top_k, &s, kernels);
        int64_t place = place_of(s.p, n, job->uniforms[row], s.sums);
        token = job->top_k || job->top_p ? s.index[place] : place;
    }
    if (sum == 0) sum = kernels->expsum_tile(z, vocab, max);
    job->tokens[row] = token;
    job->logps[row] = (double)z[token] - (double)max - log(sum);
}

static jpo_status plan(sample_job *job, jpo_scratch *scratch, jpo_error *err) {
    const jpo_sampling *o = job->options;
    size_t bytes;
    if (job->vocab < 1 || job->vocab > INT32_MAX)
        return jpo_fail(err, JPO_ERR_VALUE, "rows of %lld logits cannot be drawn from", (long long)job->vocab);
    job->kernels = jpo_kernels_get();
    if (o->temperature == 0) return JPO_OK;
    job->factor =
        (float)fmax(fmin(1 / o->temperature, FLT_MAX), FLT_MIN); /* so that 0 and -inf times it stay themselves */
    job->top_k = o->top_k > 0 && o->top_k < job->vocab;
    job->top_p = o->top_p < 1;
    bool cut = job->top_k || job->top_p;
    job->part = 2 * (blocks_of(job->vocab) + (cut ? BUCKETS : 0)) + (cut ? 3 : 1) * jpo_round_up(job->vocab, 16);
    if (!jpo_size_mul3((size_t)job->part, (size_t)jpo_threads_count(), sizeof(float), &bytes))
        return jpo_fail(err, JPO_ERR_MEMORY, "rows of %lld logits do not fit", (long long)job->vocab);
    JPO_TRY(jpo_block_reserve(&scratch->thread, bytes, err));
    job->scratch = scratch->thread.data;
    return JPO_OK;
}

jpo_status jpo_sample(int64_t *tokens, double *logps, const float *logits, const double *uniforms,
                      const jpo_sampling *options, int64_t n, int64_t vocab, jpo_scratch *scratch, jpo_error *err) {
    sample_job job = {
        .tokens = tokens, .logps = logps, .logits = logits, .uniforms = uniforms, .options = options, .vocab = vocab};
    JPO_TRY(plan(&job, scratch, err));
    jpo_parallel(n, sample_task, &job);
    for (int64_t row = 0; row < n; row++)
        if (tokens[row] < 0)
            return jpo_fail(err, JPO_ERR_VALUE,
                            "the model's logits are not finite: its weights or adapter hold NaN or infinity");
    return JPO_OK;
}

/* Causal attention over the paths of a forest (ops/attention.h): blocks of queries against tiles of keys with a running
 * softmax; the backward pass makes the probabilities again from the saved log-sum-exp. */
#include "ops/attention.h"

#include <math.h>
#include <string.h>

#include "base/size.h"
#include "base/threads.h"
#include "kernels/gemm.h"
#include "kernels/kernels.h"
#include "ops/operands.h"
#include "ops/sgemm.h"

enum { QUERY_BLOCK = 32, KEY_BLOCK = 256, SCORE_LD = KEY_BLOCK + 16 };

typedef struct {
    float *out, *lse, *dq, *dk, *dv;
    const float *q, *dout, *saved_out, *saved_lse;
    jpo_key_rows keys;
    int64_t ldq, ldd;
    const jpo_attention *at;
    const int64_t *block; /* (tasks, 2): segment, first query of the block in it */
    const int64_t *tree;  /* (trees + 1): first segment of each */
    char *scratch;
    size_t scratch_part;
    int64_t group; /* heads of one task: all that share keys, or a part of them */
    const jpo_kernels *kernels;
    const jpo_gemm_kernel *product; /* of the gradients of queries, keys and values; NULL: float32 */
    /* Of scores and outputs: three products in every compute type with tiles, as an error of a score is one of its
     * weight's exponent. SmolLM2 in bfloat16, 64 texts with and without an adapter: mean error of a log-likelihood
     * 0.094 by one product, 0.075 by three, 0.065 with attention in float32. */
    const jpo_gemm_kernel *forward;
    const jpo_gemv_kernel *gemv; /* widens stored keys */
} attention_job;

/* One block of queries of the heads of a task, and the tiles it works in. M = group * queries rows, head-major. */
typedef struct {
    const jpo_attention_segment *segment;
    int64_t first, queries, group, head, kv_head, m, dim; /* heads head .. head + group - 1 */
    float *q, *o, *d_o, *dq;                              /* (M, dim) each */
    float *s, *ds, *slope; /* (M, keys of a tile; lds) each; slope: of the soft-cap, where there is one */
    int64_t lds;           /* near the tile's keys and no power of two, so that rows stay in the first cache */
    float *row;            /* (M, 2) */
    float *wide;           /* (KEY_BLOCK, dim): keys or values that are not stored as float32 */
    float *buffer;         /* of left operands (ops/operands.h) */
    /* Prepared operands (ops/operands.h): of the whole block, and memory for one of a tile's keys or values and for one
     * of its scores. */
    jpo_operand q_rows, d_o_rows, q_columns, d_o_columns;
    void *keys, *scores;
} query_block;

/* A thread's scratch: one function that counts (base NULL), and run again hands out memory. */
typedef struct {
    char *base;
    size_t used;
} scratch_cursor;

static void *allot(scratch_cursor *at, size_t bytes) {
    void *memory = at->base ? at->base + at->used : NULL;
    at->used += (size_t)jpo_round_up((int64_t)bytes, 64);
    return memory;
}

static float *allot_floats(scratch_cursor *at, int64_t rows, int64_t columns) {
    return allot(at, (size_t)(rows * columns) * sizeof(float));
}

/* Memory of an operand of `count` vectors along `depth`, or the other way round, for either kernel. */
static void *allot_operand(scratch_cursor *at, const attention_job *job, int64_t count, int64_t depth) {
    const size_t bytes[] = {
        jpo_operand_bytes(job->product, count, depth), jpo_operand_bytes(job->product, depth, count),
        jpo_operand_bytes(job->forward, count, depth), jpo_operand_bytes(job->forward, depth, count)};
    size_t most = 0;
    for (int i = 0; i < 4; i++) most = bytes[i] > most ? bytes[i] : most;
    return allot(at, most);
}

static size_t lay_out(query_block *b, const attention_job *job, char *base) {
    const int64_t m = job->group * QUERY_BLOCK, dim = job->at->head_dim;
    scratch_cursor at = {base, 0};
    b->q = allot_floats(&at, m, dim), b->o = allot_floats(&at, m, dim);
    b->d_o = allot_floats(&at, m, dim), b->dq = allot_floats(&at, m, dim);
    b->s = allot_floats(&at, m, SCORE_LD), b->ds = allot_floats(&at, m, SCORE_LD);
    b->slope = job->at->softcap > 0 ? allot_floats(&at, m, SCORE_LD) : NULL;
    b->row = allot_floats(&at, m, 2);
    b->wide = job->keys.dtype == JPO_F32 ? NULL : allot_floats(&at, KEY_BLOCK, dim);
    const jpo_gemm_kernel *kernel = job->product;
    b->buffer = kernel ? allot_floats(&at, JPO_OPERAND_ROWS, m) : allot_floats(&at, 1, JPO_SGEMM_SCRATCH);
    if (!kernel) return at.used;
    b->q_rows.memory = allot_operand(&at, job, m, dim), b->d_o_rows.memory = allot_operand(&at, job, m, dim);
    b->q_columns.memory = allot_operand(&at, job, m, dim), b->d_o_columns.memory = allot_operand(&at, job, m, dim);
    b->keys = allot_operand(&at, job, KEY_BLOCK, dim);
    b->scores = allot_operand(&at, job, KEY_BLOCK, m);
    return at.used;
}

static query_block block_make(const attention_job *job, int64_t segment, int64_t first, int64_t head, int thread) {
    const jpo_attention *at = job->at;
    query_block b = {.segment = at->segment + segment,
                     .first = first,
                     .head = head,
                     .kv_head = head / (at->heads / at->kv_heads),
                     .group = job->group,
                     .dim = at->head_dim};
    b.queries = jpo_min64(QUERY_BLOCK, b.segment->length - first);
    b.m = b.group * b.queries;
    lay_out(&b, job, job->scratch + (size_t)thread * job->scratch_part);
    return b;
}

/* Operands of the block's products: op(A) or op(B) of `count` vectors along `depth`, prepared in `memory`. */
static jpo_operand left(const attention_job *job, const query_block *b, const float *x, int64_t ldx, bool transposed,
                        int64_t count, int64_t depth, void *memory) {
    jpo_operand a;
    jpo_operand_left(&a, job->product, x, ldx, transposed, count, depth, memory, b->buffer);
    return a;
}

static jpo_operand right(const attention_job *job, const float *x, int64_t ldx, bool transposed, int64_t count,
                         int64_t depth, void *memory) {
    jpo_operand b;
    jpo_operand_right(&b, job->product, x, ldx, transposed, count, depth, memory);
    return b;
}

/* dst (M, dim) <- the block's rows of src (R, ld), head-major; scatter: back. */
static void gather(const query_block *b, float *dst, const float *src, int64_t ld) {
    for (int64_t g = 0; g < b->group; g++)
        for (int64_t i = 0; i < b->queries; i++)
            memcpy(dst + (g * b->queries + i) * b->dim,
                   src + (b->segment->first_row + b->first + i) * ld + (b->head + g) * b->dim,
                   (size_t)b->dim * sizeof(float));
}

/* The block's queries times the scale of the scores: then neither scores nor dK need a further factor. */
static void gather_queries(const attention_job *job, query_block *b) {
    gather(b, b->q, job->q, job->ldq);
    job->kernels->scale(b->q, job->at->scale, b->m * b->dim);
    jpo_operand_left(&b->q_rows, job->forward, b->q, b->dim, false, b->m, b->dim, b->q_rows.memory, b->buffer);
}

static void scatter(const query_block *b, float *dst, const float *src, int64_t ld) {
    for (int64_t g = 0; g < b->group; g++)
        for (int64_t i = 0; i < b->queries; i++)
            memcpy(dst + (b->segment->first_row + b->first + i) * ld + (b->head + g) * b->dim,
                   src + (g * b->queries + i) * b->dim, (size_t)b->dim * sizeof(float));
}

/* A run of keys that some query of the block sees. */
typedef struct {
    int64_t row, count, position;
} key_tile;

/* A loop over the path's tiles; state is (range, offset into it, position of the range's first key). */
typedef struct {
    int64_t range, offset, position;
} tile_cursor;

static tile_cursor tiles_start(const query_block *b) { return (tile_cursor){.position = b->segment->root_position}; }

static bool next_tile(const attention_job *job, query_block *b, tile_cursor *at, key_tile *tile) {
    int64_t last = b->segment->first_position + b->first + b->queries - 1, window = job->at->window;
    int64_t oldest = window ? b->segment->first_position + b->first - window + 1 : 0;
    for (; at->range < b->segment->ranges; at->range++) {
        const jpo_key_range *range = job->at->ranges + b->segment->range + at->range;
        int64_t end = jpo_min64(range->length, last - at->position + 1); /* causal clipping */
        if (at->offset < oldest - at->position) at->offset = jpo_min64(oldest - at->position, range->length);
        if (at->offset < end) {
            tile->row = range->first_row + at->offset;
            tile->count = jpo_min64(KEY_BLOCK, end - at->offset);
            tile->position = at->position + at->offset;
            at->offset += tile->count;
            b->lds = jpo_round_up(tile->count, 16) + 16;
            return true;
        }
        at->position += range->length;
        at->offset = 0;
    }
    return false;
}

/* Masks what a query does not see: s (M, lds). */
static void mask_tile(const attention_job *job, const query_block *b, const key_tile *tile) {
    int64_t first = b->segment->first_position + b->first, window = job->at->window;
    int64_t last_key = tile->position + tile->count - 1;
    if (last_key <= first && (!window || tile->position > first + b->queries - 1 - window)) return;
    for (int64_t g = 0; g < b->group; g++)
        for (int64_t i = 0; i < b->queries; i++) {
            float *s = b->s + (g * b->queries + i) * b->lds;
            int64_t visible = jpo_max64(0, jpo_min64(tile->count, first + i - tile->position + 1));
            int64_t hidden = window ? jpo_max64(0, jpo_min64(tile->count, first + i - window + 1 - tile->position)) : 0;
            for (int64_t j = visible; j < tile->count; j++) s[j] = -INFINITY;
            for (int64_t j = 0; j < hidden; j++) s[j] = -INFINITY;
        }
}

/* The tile's scores before the mask is applied, capped; slopes are kept for the backward pass. */
static void cap_scores(const attention_job *job, const query_block *b, const key_tile *tile, bool slopes) {
    for (int64_t r = 0; r < b->m; r++)
        job->kernels->softcap(b->s + r * b->lds, slopes ? b->slope + r * b->lds : NULL, tile->count, job->at->softcap);
}

/* Rows of a head are as long as tiles store them. */
static bool whole_heads(const query_block *b) { return b->dim % JPO_OPERAND_WHOLE == 0; }

/* The tile's rows (N, dim; *ld) of `stored`, the job's keys or values, in float32: in place where they are stored so,
 * else widened into the thread's scratch, until the next call. */
static const float *tile_rows(const attention_job *job, const query_block *b, const key_tile *tile, const void *stored,
                              int64_t *ld) {
    const jpo_key_rows *keys = &job->keys;
    const int64_t column = b->kv_head * b->dim;
    *ld = keys->ld;
    if (keys->dtype == JPO_F32) return (const float *)stored + tile->row * keys->ld + column;
    *ld = b->dim;
    const size_t bytes = jpo_dtype_row_bytes(keys->dtype, keys->ld);
    const char *row = (const char *)stored + (size_t)tile->row * bytes;
    for (int64_t i = 0; i < tile->count; i++, row += bytes)
        job->gemv->widen(b->wide + i * b->dim, keys->dtype, row, column, b->dim);
    return b->wide;
}

/* S (M, keys) = Q K^T in b->s, capped and masked. */
static void scores(const attention_job *job, const query_block *b, const key_tile *tile, bool slopes) {
    int64_t ldk;
    const float *k = tile_rows(job, b, tile, job->keys.k, &ldk);
    if (b->queries == 1) { /* decoding: a panel of keys would serve one row */
        for (int64_t r = 0; r < b->m; r++)
            job->kernels->dot_rows(b->s + r * b->lds, b->q + r * b->dim, k, ldk, tile->count, b->dim);
    } else {
        jpo_operand keys;
        jpo_operand_right(&keys, job->forward, k, ldk, true, tile->count, b->dim, b->keys);
        jpo_operands_multiply(b->s, b->lds, &b->q_rows, &keys, false, true);
    }
    if (job->at->softcap > 0) cap_scores(job, b, tile, slopes);
    mask_tile(job, b, tile);
}

/* O (M, dim) = or += P V: P (M, keys) in b->s, V the tile's values. */
static void weigh_values(const attention_job *job, const query_block *b, const key_tile *tile, bool first) {
    int64_t ldv;
    const float *v = tile_rows(job, b, tile, job->keys.v, &ldv);
    if (b->queries > 1) {
        jpo_operand p, values;
        jpo_operand_left(&p, job->forward, b->s, b->lds, false, b->m, tile->count, b->scores, b->buffer);
        jpo_operand_right(&values, job->forward, v, ldv, false, b->dim, tile->count, b->keys);
        jpo_operands_multiply(b->o, b->dim, &p, &values, !first, whole_heads(b));
        return;
    }
    if (first) memset(b->o, 0, (size_t)(b->m * b->dim) * sizeof(float));
    for (int64_t r = 0; r < b->m; r++)
        job->kernels->add_rows(b->o + r * b->dim, b->s + r * b->lds, v, ldv, tile->count, b->dim);
}

/* Online softmax over one tile: row[2r] is the running maximum, row[2r+1] the running sum; o is rescaled. */
static void accumulate_tile(const attention_job *job, const query_block *b, const key_tile *tile, bool first) {
    for (int64_t r = 0; r < b->m; r++) {
        float *s = b->s + r * b->lds, *state = b->row + 2 * r;
        float max = job->kernels->max_tile(s, tile->count, NULL);
        float old = first ? -INFINITY : state[0], new = max > old || isnan(max) ? max : old;
        if (new == -INFINITY) { /* nothing visible yet */
            memset(s, 0, (size_t)tile->count * sizeof(float));
            state[0] = new;
            if (first) state[1] = 0;
            continue;
        }
        float keep = first ? 0 : expf(old - new);
        state[1] = (float)((first ? 0 : state[1] * keep) + job->kernels->softmax_tile(s, s, tile->count, new));
        state[0] = new;
        if (!first && keep != 1) job->kernels->scale(b->o + r * b->dim, keep, b->dim);
    }
    weigh_values(job, b, tile, first);
}

/* One of the two kernels may be a test's portable one; what the other asks for serves both. */
static const jpo_gemm_kernel *configured(const attention_job *job) {
    return job->product && !job->product->thread_begin ? job->forward : job->product;
}
static void thread_begin(const attention_job *job) {
    const jpo_gemm_kernel *kernel = configured(job);
    if (kernel && kernel->thread_begin) kernel->thread_begin();
}
static void thread_end(const attention_job *job) {
    const jpo_gemm_kernel *kernel = configured(job);
    if (kernel && kernel->thread_end) kernel->thread_end();
}

static void forward_task(void *context, int64_t task, int thread) {
    attention_job *job = context;
    const jpo_attention *at = job->at;
    const int64_t tasks = at->heads / job->group, *block = job->block + task / tasks * 2;
    query_block b = block_make(job, block[0], block[1], task % tasks * job->group, thread);
    thread_begin(job);
    gather_queries(job, &b);
    tile_cursor cursor = tiles_start(&b);
    key_tile tile;
    for (bool first = true; next_tile(job, &b, &cursor, &tile); first = false) {
        scores(job, &b, &tile, false);
        accumulate_tile(job, &b, &tile, first);
    }
    for (int64_t r = 0; r < b.m; r++) {
        job->kernels->scale(b.o + r * b.dim, 1.0f / b.row[2 * r + 1], b.dim);
        int64_t head = b.head + r / b.queries, query = b.segment->first_row + b.first + r % b.queries;
        if (job->lse) job->lse[query * at->heads + head] = b.row[2 * r] + logf(b.row[2 * r + 1]);
    }
    scatter(&b, job->out, b.o, at->heads * at->head_dim);
    thread_end(job);
}

/* Cuts the segments into blocks of queries; the list stands at the head of the shared scratch. */
static jpo_status plan_blocks(attention_job *job, int64_t *count, jpo_scratch *scratch, jpo_error *err) {
    const jpo_attention *at = job->at;
    *count = 0;
    for (int64_t s = 0; s < at->segments; s++) *count += jpo_ceil_div(at->segment[s].length, QUERY_BLOCK);
    size_t bytes;
    if (!jpo_size_mul((size_t)*count, 2 * sizeof(int64_t), &bytes))
        return jpo_fail(err, JPO_ERR_MEMORY, "too many attention blocks: %lld", (long long)*count);
    JPO_TRY(jpo_block_reserve(&scratch->shared, bytes, err));
    int64_t *block = scratch->shared.data;
    job->block = block;
    for (int64_t s = 0; s < at->segments; s++)
        for (int64_t first = 0; first < at->segment[s].length; first += QUERY_BLOCK) *block++ = s, *block++ = first;
    return JPO_OK;
}

static jpo_status plan_threads(attention_job *job, jpo_scratch *scratch, jpo_error *err) {
    query_block sizes = {0};
    job->group = job->at->heads / job->at->kv_heads;
    job->product = jpo_operand_kernel(job->at->compute);
    job->forward = job->product ? jpo_gemm_find(JPO_COMPUTE_BFLOAT16X3) : NULL;
    if (!job->forward) job->forward = job->product; /* a test has forced one kernel, and there are no others */
    job->scratch_part = lay_out(&sizes, job, NULL);
    JPO_TRY(jpo_block_reserve(&scratch->thread, job->scratch_part * (size_t)jpo_threads_count(), err));
    job->scratch = scratch->thread.data;
    job->kernels = jpo_kernels_get();
    job->gemv = jpo_gemv_find();
    return JPO_OK;
}

jpo_status jpo_attention_forward(float *out, float *lse, const float *q, int64_t ldq, const jpo_key_rows *keys,
                                 const jpo_attention *attention, jpo_scratch *scratch, jpo_error *err) {
    attention_job job = {.out = out, .lse = lse, .q = q, .ldq = ldq, .keys = *keys, .at = attention};
    int64_t blocks;
    JPO_TRY(plan_blocks(&job, &blocks, scratch, err));
    JPO_TRY(plan_threads(&job, scratch, err));
    const bool decoding = attention->rows == attention->segments;
    if (decoding && blocks * attention->kv_heads < 4 * jpo_threads_count()) job.group = 1;
    jpo_parallel(blocks * (attention->heads / job.group), forward_task, &job);
    return JPO_OK;
}

/* P (M, keys) = exp(S - L) in b->s, L the row's saved log-sum-exp: what the forward pass divided by its sum. */
static void probabilities(const attention_job *job, const query_block *b, const key_tile *tile) {
    scores(job, b, tile, true);
    for (int64_t r = 0; r < b->m; r++) {
        float *p = b->s + r * b->lds;
        job->kernels->softmax_tile(p, p, tile->count, b->row[2 * r]);
    }
}

/* dS (M, keys) = P (dP - delta) in b->ds, where dP stands: through the softmax and the soft-cap. */
static void score_gradients(const attention_job *job, const query_block *b, const key_tile *tile) {
    for (int64_t r = 0; r < b->m; r++) {
        float *ds = b->ds + r * b->lds;
        job->kernels->softmax_backward(ds, b->s + r * b->lds, b->row[2 * r + 1], tile->count);
        if (job->at->softcap > 0) job->kernels->multiply(ds, b->slope + r * b->lds, tile->count);
    }
}

/* One tile of N keys K and values V (N, dim) of the backward pass. Q (M, dim) are the block's queries, already scaled,
 * dO (M, dim) its output's gradients; delta = dO . O of each row. */
static void backward_tile(const attention_job *job, const query_block *b, const key_tile *tile, bool first) {
    const int64_t column = b->kv_head * b->dim, out = tile->row * job->ldd + column;
    const int64_t m = b->m, n = tile->count, dim = b->dim;
    int64_t ldk;
    const float *k = tile_rows(job, b, tile, job->keys.k, &ldk), *v = tile_rows(job, b, tile, job->keys.v, &ldk);
    float *p = b->s, *ds = b->ds, *dk = job->dk + out, *dv = job->dv + out;
    jpo_operand a, c;
    /* P = exp(Q K^T - L) */
    probabilities(job, b, tile);
    /* dV += P^T dO */
    a = left(job, b, p, b->lds, true, n, m, b->scores);
    jpo_operands_multiply(dv, job->ldd, &a, &b->d_o_columns, true, false);
    /* dP = dO V^T */
    c = right(job, v, ldk, true, n, dim, b->keys);
    jpo_operands_multiply(ds, b->lds, &b->d_o_rows, &c, false, true);
    /* dS = P (dP - delta) */
    score_gradients(job, b, tile);
    /* dK += dS^T Q */
    a = left(job, b, ds, b->lds, true, n, m, b->scores);
    jpo_operands_multiply(dk, job->ldd, &a, &b->q_columns, true, false);
    /* dQ = or += dS K */
    a = left(job, b, ds, b->lds, false, m, n, b->scores);
    c = right(job, k, ldk, false, dim, n, b->keys);
    jpo_operands_multiply(b->dq, dim, &a, &c, !first, whole_heads(b));
}

static void backward_block(const attention_job *job, query_block *b) {
    const jpo_attention *at = job->at;
    const int64_t width = at->heads * at->head_dim, m = b->m, dim = b->dim;
    gather_queries(job, b);
    gather(b, b->o, job->saved_out, width);
    gather(b, b->d_o, job->dout, width);
    b->q_columns = right(job, b->q, dim, false, dim, m, b->q_columns.memory);
    b->d_o_rows = left(job, b, b->d_o, dim, false, m, dim, b->d_o_rows.memory);
    b->d_o_columns = right(job, b->d_o, dim, false, dim, m, b->d_o_columns.memory);
    for (int64_t r = 0; r < m; r++) {
        int64_t head = b->head + r / b->queries, query = b->segment->first_row + b->first + r % b->queries;
        b->row[2 * r] = job->saved_lse[query * at->heads + head];
        b->row[2 * r + 1] = job->kernels->dot(b->d_o + r * dim, b->o + r * dim, dim);
    }
    tile_cursor cursor = tiles_start(b);
    key_tile tile;
    for (bool first = true; next_tile(job, b, &cursor, &tile); first = false) backward_tile(job, b, &tile, first);
    job->kernels->scale(b->dq, at->scale, m * dim);
    scatter(b, job->dq, b->dq, job->ldd);
}

static void zero_keys(const attention_job *job, const jpo_attention_segment *segment, int64_t kv_head) {
    size_t bytes = (size_t)job->at->head_dim * sizeof(float);
    for (int64_t row = segment->first_row; row < segment->first_row + segment->length; row++) {
        memset(job->dk + row * job->ldd + kv_head * job->at->head_dim, 0, bytes);
        memset(job->dv + row * job->ldd + kv_head * job->at->head_dim, 0, bytes);
    }
}

static void backward_task(void *context, int64_t task, int thread) {
    attention_job *job = context;
    const jpo_attention *at = job->at;
    int64_t tree = task / at->kv_heads, kv_head = task % at->kv_heads;
    thread_begin(job);
    for (int64_t s = job->tree[tree]; s < job->tree[tree + 1]; s++) zero_keys(job, at->segment + s, kv_head);
    for (int64_t s = job->tree[tree]; s < job->tree[tree + 1]; s++)
        for (int64_t first = 0; first < at->segment[s].length; first += QUERY_BLOCK) {
            query_block b = block_make(job, s, first, kv_head * job->group, thread);
            backward_block(job, &b);
        }
    thread_end(job);
}

jpo_status jpo_attention_backward(float *dq, float *dk, float *dv, int64_t ldd, const float *dout, const float *out,
                                  const float *lse, const float *q, const float *k, const float *v, int64_t ld,
                                  const jpo_attention *attention, jpo_scratch *scratch, jpo_error *err) {
    attention_job job = {.dq = dq,
                         .dk = dk,
                         .dv = dv,
                         .ldd = ldd,
                         .dout = dout,
                         .saved_out = out,
                         .saved_lse = lse,
                         .q = q,
                         .keys = {k, v, JPO_F32, ld},
                         .ldq = ld,
                         .at = attention};
    JPO_TRY(jpo_block_reserve(&scratch->shared, (size_t)(attention->trees + 1) * sizeof(int64_t), err));
    int64_t *tree = scratch->shared.data;
    for (int64_t s = 0; s < attention->segments; s++)
        if (s == 0 || attention->segment[s].tree != attention->segment[s - 1].tree)
            tree[attention->segment[s].tree] = s;
    tree[attention->trees] = attention->segments;
    job.tree = tree;
    JPO_TRY(plan_threads(&job, scratch, err));
    jpo_parallel(attention->trees * attention->kv_heads, backward_task, &job);
    return JPO_OK;
}

/* Products with a stored weight: by panels (ops/group; OpenBLAS where no kernel serves) or, for a small batch, by dot
 * products along the rows of W. Which one is a rule of shape, compute type and processor. */
#include "ops/linear.h"

#include "base/cpu.h"
#include "base/size.h"
#include "base/threads.h"
#include "kernels/integers.h"
#include "ops/group.h"
#include "ops/packed.h"
#include "ops/sgemm.h"

/* Rows from which a weight's gradient is faster by its compute type's kernel; floats of a cache line. */
enum { GRADIENT_ROWS = 64, LINE = 16 };

void jpo_weight_scratch_free(jpo_weight_scratch *scratch) {
    jpo_block_free(&scratch->transposed);
    jpo_scratch_free(&scratch->product);
}

void jpo_scratch_free(jpo_scratch *scratch) {
    jpo_block_free(&scratch->shared);
    jpo_block_free(&scratch->thread);
}

jpo_status jpo_weight_check(const jpo_weight *w, jpo_error *err) {
    if (w->k % jpo_dtype_block(w->dtype))
        return jpo_fail(err, JPO_ERR_VALUE, "a %s weight needs rows of a multiple of %lld values, got %lld",
                        jpo_dtype_name(w->dtype), (long long)jpo_dtype_block(w->dtype), (long long)w->k);
    if (w->compute != JPO_COMPUTE_FLOAT32 && !jpo_gemm_find(w->compute))
        return jpo_fail(err, JPO_ERR_UNSUPPORTED,
                        "compute=\"%s\" %s (in use: %s, best here: %s); use compute=\"float32\" or \"auto\"",
                        jpo_compute_name(w->compute), jpo_gemm_lacking(w->compute), jpo_isa_name(jpo_cpu_get()->chosen),
                        jpo_isa_name(jpo_cpu_get()->best));
    return JPO_OK;
}

/* ---- a small batch: dot products along the rows of W ---- */

typedef struct {
    float *out; /* (m, n; ldo) */
    const float *in;
    int64_t ldo, ldi, m, tile; /* tile: rows of W in one task */
    const jpo_weight *w;
    bool accumulate;
    const jpo_low_rank *update;
    const jpo_gemm_kernel *kernel;
    jpo_gemm_integers integers;
    char *scratch;
} small_batch;

enum { DOT_BYTES = JPO_GEMM_DOT_SCRATCH * sizeof(float) };

/* The update for a small batch, output by output. */
static void add_update(const small_batch *p, int64_t c0, int64_t columns) {
    const jpo_low_rank *a = p->update;
    if (!a) return;
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t c = c0; c < c0 + columns; c++) {
            const float *u = a->u + i * a->r, *v = a->v + c * a->r;
            float sum = 0;
            for (int64_t d = 0; d < a->r; d++) sum += u[d] * v[d];
            p->out[i * p->ldo + c] += sum;
        }
}

/* Rows of W in one task: many where there are many, as each starts without its rows fetched. */
static int64_t dot_rows(int64_t n) { return jpo_max64(32, jpo_min64(512, jpo_round_up(n / 64, 32))); }

static jpo_gemm_source task_rows(const small_batch *p, int64_t task) {
    const jpo_weight *w = p->w;
    const int64_t n0 = task * p->tile;
    return (jpo_gemm_source){w->data, w->dtype, w->k, n0, jpo_min64(p->tile, w->n - n0), 0, w->k};
}

static void dot_task(void *context, int64_t task, int thread) {
    const small_batch *p = context;
    const jpo_gemm_source source = task_rows(p, task);
    jpo_gemv_find()->dot(p->out + source.row0, p->ldo, p->in, p->ldi, p->m, &source, p->accumulate,
                         (float *)(p->scratch + (size_t)thread * DOT_BYTES));
    add_update(p, source.row0, source.rows);
}

static jpo_status dots_product(small_batch *p, jpo_scratch *scratch, jpo_error *err) {
    JPO_TRY(jpo_block_reserve(&scratch->thread, DOT_BYTES * (size_t)jpo_threads_count(), err));
    p->scratch = scratch->thread.data;
    jpo_parallel(jpo_ceil_div(p->w->n, p->tile), dot_task, p);
    return JPO_OK;
}

/* ---- the same in 16 bits, times stored integers ---- */

static void quantize_row(void *context, int64_t task, int thread) {
    const small_batch *p = context;
    (void)thread;
    p->kernel->integers->quantize(&p->integers, task, p->in + task * p->ldi, p->w->k);
}

static void integers_task(void *context, int64_t task, int thread) {
    const small_batch *p = context;
    (void)thread;
    const jpo_gemm_source source = task_rows(p, task);
    p->kernel->integers->dot(p->out + source.row0, p->ldo, &p->integers, p->m, &source, p->accumulate);
    add_update(p, source.row0, source.rows);
}

static jpo_status integers_product(small_batch *p, jpo_scratch *scratch, jpo_error *err) {
    const size_t places = (size_t)(p->m * jpo_ceil_div(p->w->k, JPO_INTEGERS_WORDS)); /* m is small, k a row of W */
    JPO_TRY(jpo_block_reserve(&scratch->shared,
                              places * (JPO_INTEGERS_WORDS * sizeof(int16_t) + 2 * JPO_INTEGERS_LANES * sizeof(float)),
                              err));
    p->integers.scale = scratch->shared.data;
    p->integers.total = p->integers.scale + places * JPO_INTEGERS_LANES;
    p->integers.q = (int16_t *)(p->integers.total + places * JPO_INTEGERS_LANES);
    jpo_parallel(p->m, quantize_row, p);
    jpo_parallel(jpo_ceil_div(p->w->n, p->tile), integers_task, p);
    return JPO_OK;
}

/* ---- the choice ---- */

typedef enum { BY_PANELS, BY_DOTS, BY_INTEGERS } way;

typedef struct {
    way way;
    const jpo_gemm_kernel *kernel; /* NULL: OpenBLAS */
    jpo_weight view;               /* W in the compute type that runs: a small batch may do so in float32 */
} choice;

/* Which kernel serves m rows, and how: the one rule of shape, storage, compute type and processor. */
static choice choose(const jpo_weight *w, int64_t m, bool backward) {
    choice c = {BY_PANELS, jpo_packed_kernel(w), *w};
    const bool integers = !backward && c.kernel && c.kernel->integers,
               stored = integers && jpo_dtype_integers(w->dtype);
    if (integers && jpo_integers_serve(w->dtype) && m <= c.kernel->integers->rows) {
        c.way = BY_INTEGERS;
        return c;
    }
    if (w->compute != JPO_COMPUTE_FLOAT32) {
        if (m > (stored ? c.kernel->small_stored_rows : c.kernel->small_rows)) return c;
        c.view.compute = JPO_COMPUTE_FLOAT32;
        c.kernel = jpo_packed_kernel(&c.view);
    }
    if (!backward && m <= jpo_gemv_find()->rows) c.way = BY_DOTS;
    return c;
}

/* Products that share their converted rows: the same kernel and storage. OpenBLAS cuts by a product's own shape. */
static bool alike(const choice *a, const choice *b) {
    return a->way == b->way && a->kernel && a->kernel == b->kernel && a->view.dtype == b->view.dtype;
}

static jpo_status small_product(const jpo_linear_output *o, const choice *c, const jpo_linear_rows *x, int64_t m,
                                jpo_scratch *scratch, jpo_error *err) {
    small_batch p = {.out = o->y,
                     .ldo = o->ldy,
                     .in = x->x,
                     .ldi = x->ldx,
                     .m = m,
                     .tile = dot_rows(o->w->n),
                     .w = &c->view,
                     .accumulate = o->accumulate,
                     .update = o->update,
                     .kernel = c->kernel};
    JPO_TRY(jpo_group_project(o, 1, x, m, scratch, err));
    return (c->way == BY_DOTS ? dots_product : integers_product)(&p, scratch, err);
}

jpo_status jpo_linear_forward_group(const jpo_linear_output *outputs, int count, const jpo_linear_rows *x, int64_t m,
                                    jpo_scratch *scratch, jpo_error *err) {
    if (m == 0) return JPO_OK;
    choice choices[JPO_LINEAR_GROUP];
    jpo_linear_output views[JPO_LINEAR_GROUP];
    for (int i = 0; i < count; i++) {
        JPO_TRY(jpo_weight_check(outputs[i].w, err)); /* another instruction set may have been chosen since */
        choices[i] = choose(outputs[i].w, m, false);
        views[i] = outputs[i];
        views[i].w = &choices[i].view;
    }
    jpo_linear_rows rows = *x; /* prepared by the first product */
    for (int i = 0, end; i < count; i = end) {
        for (end = i + 1; end < count && alike(&choices[i], &choices[end]) && choices[i].way == BY_PANELS;) end++;
        if (choices[i].way == BY_PANELS)
            JPO_TRY(jpo_group_forward(views + i, end - i, &rows, m, choices[i].kernel, scratch, err));
        else
            JPO_TRY(small_product(views + i, &choices[i], &rows, m, scratch, err));
        rows.prepare = NULL;
    }
    return JPO_OK;
}

jpo_status jpo_linear_backward_group(float *dx, int64_t lddx, bool accumulate, const jpo_linear_input *inputs,
                                     int count, const jpo_linear_rows *rows, const jpo_linear_hook *hook, int64_t m,
                                     jpo_scratch *scratch, jpo_error *err) {
    if (m == 0) return JPO_OK;
    choice choices[JPO_LINEAR_GROUP];
    jpo_linear_input views[JPO_LINEAR_GROUP];
    for (int i = 0; i < count; i++) {
        JPO_TRY(jpo_weight_check(inputs[i].w, err));
        choices[i] = choose(inputs[i].w, m, true);
        views[i] = inputs[i];
        views[i].w = &choices[i].view;
    }
    return jpo_group_backward(dx, lddx, accumulate, views, count, rows, hook, m, choices[0].kernel, scratch, err);
}

jpo_status jpo_linear_forward(float *y, int64_t ldy, const float *x, int64_t ldx, const jpo_weight *w, int64_t m,
                              bool accumulate, jpo_scratch *scratch, jpo_error *err) {
    const jpo_linear_output output = {y, ldy, w, accumulate, NULL};
    const jpo_linear_rows rows = {.x = x, .ldx = ldx};
    return jpo_linear_forward_group(&output, 1, &rows, m, scratch, err);
}

jpo_status jpo_linear_backward_input(float *dx, int64_t lddx, const float *dy, int64_t lddy, const jpo_weight *w,
                                     int64_t m, bool accumulate, jpo_scratch *scratch, jpo_error *err) {
    const jpo_linear_input input = {dy, lddy, w, NULL};
    const jpo_linear_rows rows = {0};
    return jpo_linear_backward_group(dx, lddx, accumulate, &input, 1, &rows, NULL, m, scratch, err);
}

/* ---- gradient of a weight ---- */

typedef struct {
    float *dw;
    const float *dy, *x;
    int64_t lddy, ldx, n, k, m, tile;
    float *scratch; /* (threads, JPO_SGEMM_SCRATCH) */
} weight_gradient;

static void weight_gradient_tile(void *context, int64_t task, int thread) {
    const weight_gradient *g = context;
    int64_t n0 = task * g->tile;
    jpo_sgemm(true, false, jpo_min64(g->tile, g->n - n0), g->k, g->m, 1, g->dy + n0, g->lddy, g->x, g->ldx, 1,
              g->dw + n0 * g->k, g->k, g->scratch + (int64_t)thread * JPO_SGEMM_SCRATCH);
}

/* The compute type of a gradient of weights that run in `compute`: where activations have parts, that of an adapter's
 * products (jpo_gemm_kernel.low_rank). Small ones are faster in float32. */
static jpo_compute gradient_compute(jpo_compute compute, int64_t n, int64_t m) {
    const jpo_gemm_kernel *kernel = compute == JPO_COMPUTE_FLOAT32 ? NULL : jpo_gemm_find(compute);
    if (!kernel || m < GRADIENT_ROWS || n <= kernel->small_rows) return JPO_COMPUTE_FLOAT32;
    if (!kernel->low_rank) return compute;
    return jpo_gemm_find(kernel->low_rank) ? kernel->low_rank : JPO_COMPUTE_FLOAT32;
}

typedef struct {
    float *out; /* (N, M; ldo) */
    const float *dy;
    int64_t ldo, lddy, m;
} transposition;

/* Rows row0.. of dy^T, directly before they are converted. */
static void transpose_rows(const void *context, int64_t row0, int64_t count) {
    const transposition *t = context;
    jpo_gemv_find()->transpose(t->out + row0 * t->ldo, t->ldo, t->dy + row0, t->lddy, count, t->m);
}

static jpo_status weight_gradient_as_product(const weight_gradient *g, jpo_compute compute, jpo_weight_scratch *scratch,
                                             jpo_error *err) {
    const int64_t ldo = jpo_round_up(g->m, LINE) + LINE; /* seldom a power of two: rows would share their cache lines */
    size_t bytes;
    if (!jpo_size_mul3((size_t)g->n, (size_t)ldo, sizeof(float), &bytes))
        return jpo_fail(err, JPO_ERR_MEMORY, "a gradient over %lld rows does not fit the address space",
                        (long long)g->m);
    JPO_TRY(jpo_block_reserve(&scratch->transposed, bytes, err));
    const transposition t = {scratch->transposed.data, g->dy, ldo, g->lddy, g->m};
    const jpo_weight x = {.n = g->m, .k = g->k, .data = g->x, .dtype = JPO_F32, .compute = compute};
    const jpo_linear_input input = {t.out, ldo, &x, NULL};
    const jpo_linear_rows rows = {.prepare = transpose_rows, .context = &t};
    return jpo_linear_backward_group(g->dw, g->k, true, &input, 1, &rows, NULL, g->n, &scratch->product, err);
}

jpo_status jpo_linear_backward_weight(float *dw, const float *dy, int64_t lddy, const float *x, int64_t ldx, int64_t n,
                                      int64_t k, int64_t m, jpo_compute compute, jpo_weight_scratch *scratch,
                                      jpo_error *err) {
    int64_t tile = jpo_min64(jpo_round_up(jpo_ceil_div(n, 4), 48), 192);
    weight_gradient g = {dw, dy, x, lddy, ldx, n, k, m, tile, NULL};
    compute = gradient_compute(compute, n, m);
    if (compute != JPO_COMPUTE_FLOAT32 && ldx == k) return weight_gradient_as_product(&g, compute, scratch, err);
    JPO_TRY(jpo_sgemm_reserve(&scratch->product, &g.scratch, err));
    if (m > 0) jpo_parallel(jpo_ceil_div(n, tile), weight_gradient_tile, &g);
    return JPO_OK;
}

void jpo_weight_rows(float *out, const jpo_weight *w, int64_t row0, int64_t count) {
    for (int64_t i = 0; i < count; i++) jpo_packed_widen(out + i * w->k, w, row0 + i, 0, w->k);
}

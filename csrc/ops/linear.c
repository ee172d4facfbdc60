/* Products with a stored weight, cut into tasks over tiles of the output: packed tiles (ops/packed), dot products for a
 * few rows, or OpenBLAS where no table serves. Which one is a rule of shape, compute type and processor. */
#include "ops/linear.h"

#include "base/cpu.h"
#include "base/size.h"
#include "base/threads.h"
#include "kernels/integers.h"
#include "ops/packed.h"
#include "ops/sgemm.h"

void jpo_scratch_free(jpo_scratch *scratch) {
    jpo_block_free(&scratch->shared);
    jpo_block_free(&scratch->thread);
}

/* Nothing is stored: panels are packed from W on the way, which costs less than reading them back would. */
jpo_status jpo_weight_prepare(jpo_weight *w, jpo_error *err) {
    w->packed = NULL;
    return jpo_weight_check(w, err);
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

void jpo_weight_release(jpo_weight *w) { w->packed = NULL; }

/* ---- whole products ---- */

typedef struct {
    float *out; /* (m, width; ldo) */
    const float *in;
    int64_t ldo, ldi, m, width, depth;
    int64_t tile, chunk, tiles; /* columns and rows of one task's output; tiles in a row of tasks */
    int64_t range;              /* depth of one packed tile */
    const jpo_weight *w;
    bool accumulate, backward;
    const jpo_addition *plus;
    jpo_packed_rows rows;
    const jpo_gemm_kernel *kernel; /* NULL: OpenBLAS */
    jpo_gemm_integers integers;
    char *scratch;
    size_t part; /* bytes of one thread's scratch */
} product;

enum { CONVERT_ROWS = 32, PLUS_ROWS = 192, TILE_PANELS = 4 };

static jpo_status reserve_parts(product *p, size_t part, jpo_scratch *scratch, jpo_error *err) {
    size_t bytes;
    p->part = part;
    if (!jpo_size_mul(part, (size_t)jpo_threads_count(), &bytes))
        return jpo_fail(err, JPO_ERR_MEMORY, "the panels of a weight (%lld, %lld) do not fit the address space",
                        (long long)p->w->n, (long long)p->w->k);
    JPO_TRY(jpo_block_reserve(&scratch->thread, bytes, err));
    p->scratch = scratch->thread.data;
    return JPO_OK;
}

/* Panels of a packed tile: at most four, which share the rows that they are multiplied with while those are in the
 * second cache; of these the number that lets the threads end together, with two tiles a thread or more. */
static int64_t panels_of_tile(int64_t panels) {
    int64_t best = 1, cost = INT64_MAX, threads = jpo_threads_count();
    for (int64_t each = 1; each <= TILE_PANELS; each++) {
        int64_t tiles = jpo_ceil_div(panels, each), busiest = jpo_ceil_div(tiles, threads) * each;
        if (busiest > cost || (each > 1 && tiles < 2 * threads)) continue;
        best = each, cost = busiest;
    }
    return best;
}

/* Tiles of the output, and fewer rows where there are less than two tiles a thread, down to 128, as each tile packs its
 * panels anew; outputs do not depend on this cut. Those of OpenBLAS may, so that its cut is one of shape alone: four
 * tiles or more. */
static void cut(product *p) {
    const jpo_gemm_kernel *kernel = p->kernel;
    p->tile = kernel ? panels_of_tile(jpo_ceil_div(p->width, kernel->panel)) * kernel->panel
                     : jpo_min64(jpo_round_up(jpo_ceil_div(p->width, 4), 32), 128);
    p->tiles = jpo_ceil_div(p->width, p->tile);
    int64_t chunks = kernel ? jpo_max64(jpo_min64(2 * jpo_threads_count() / p->tiles, p->m / 128), 1) : 1;
    p->chunk = jpo_ceil_div(p->m, chunks);
    if (kernel) p->chunk = jpo_round_up(p->chunk, kernel->align);
}

static void convert_rows(void *context, int64_t task, int thread) {
    const product *p = context;
    (void)thread;
    int64_t row0 = task * CONVERT_ROWS;
    jpo_packed_rows_convert(&p->rows, row0, jpo_min64(CONVERT_ROWS, p->m - row0));
}

/* Rows row0.. and columns c0.. of the output, by the addition. */
static void add_low_rank(const product *p, int64_t row0, int64_t count, int64_t c0, int64_t columns) {
    const jpo_addition *a = p->plus;
    const float *u = a->u + row0 * a->ldu, *v = a->v + (a->transposed ? c0 * a->ldv : c0);
    float *out = p->out + row0 * p->ldo + c0;
    jpo_sgemm_add_low_rank(out, p->ldo, u, a->ldu, v, a->ldv, a->transposed, count, columns, a->r, a->scale);
}

/* The last range of the depth, in chunks of rows that are still in the second cache when the addition follows. */
static void multiply_and_add(const product *p, int64_t row0, int64_t count, int64_t d0, const jpo_packed_tile *tile,
                             int64_t c0, int64_t columns) {
    for (int64_t i = row0; i < row0 + count; i += PLUS_ROWS) {
        int64_t some = jpo_min64(PLUS_ROWS, row0 + count - i);
        jpo_packed_multiply_rows(p->out + i * p->ldo + c0, p->ldo, &p->rows, i, some, d0, tile, p->accumulate || d0);
        add_low_rank(p, i, some, c0, columns);
    }
}

static void packed_tile(void *context, int64_t task, int thread) {
    const product *p = context;
    void *memory = p->scratch + (size_t)thread * p->part;
    int64_t c0 = task % p->tiles * p->tile, columns = jpo_min64(p->tile, p->width - c0);
    int64_t row0 = task / p->tiles * p->chunk, count = jpo_min64(p->chunk, p->m - row0);
    for (int64_t d0 = 0; d0 < p->depth; d0 += p->range) {
        int64_t depth = jpo_min64(p->range, p->depth - d0);
        jpo_packed_tile tile;
        if (p->backward)
            jpo_packed_pack(&tile, memory, p->w, d0, depth, c0, columns, true);
        else
            jpo_packed_pack(&tile, memory, p->w, c0, columns, d0, depth, false);
        if (p->plus && d0 + depth == p->depth)
            multiply_and_add(p, row0, count, d0, &tile, c0, columns);
        else
            jpo_packed_multiply_rows(p->out + row0 * p->ldo + c0, p->ldo, &p->rows, row0, count, d0, &tile,
                                     p->accumulate || d0);
    }
}

static jpo_status packed_product(product *p, jpo_scratch *scratch, jpo_error *err) {
    cut(p);
    p->range = jpo_packed_range(p->kernel, p->depth);
    JPO_TRY(reserve_parts(p, jpo_packed_tile_bytes(p->w, jpo_min64(p->range, p->depth), p->tile), scratch, err));
    size_t converted = jpo_packed_scratch_bytes(p->w, p->m, p->depth);
    if (converted) JPO_TRY(jpo_block_reserve(&scratch->shared, converted, err));
    jpo_packed_rows_open(&p->rows, p->w, p->backward, p->in, p->ldi, p->m, p->depth, scratch->shared.data);
    if (converted) jpo_parallel(jpo_ceil_div(p->m, CONVERT_ROWS), convert_rows, p);
    jpo_parallel(p->tiles * jpo_ceil_div(p->m, p->chunk), packed_tile, p);
    return JPO_OK;
}

/* The addition for few rows, output by output. */
static void add_to_few(const product *p, int64_t c0, int64_t columns) {
    const jpo_addition *a = p->plus;
    const int64_t step = a->transposed ? 1 : a->ldv, next = a->transposed ? a->ldv : 1;
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t c = c0; c < c0 + columns; c++) {
            const float *u = a->u + i * a->ldu, *v = a->v + c * next;
            float sum = 0;
            for (int64_t d = 0; d < a->r; d++) sum += u[d] * v[d * step];
            p->out[i * p->ldo + c] += a->scale * sum;
        }
}

/* Rows of W in one task for few rows of x: large ones where there are many, as each starts without its rows fetched. */
static int64_t few_tile(int64_t n) { return jpo_max64(32, jpo_min64(512, jpo_round_up(n / 64, 32))); }

static void dot_tile(void *context, int64_t task, int thread) {
    const product *p = context;
    int64_t n0 = task * p->tile;
    jpo_gemm_source source = {p->w->data, p->w->dtype, p->w->k, n0, jpo_min64(p->tile, p->w->n - n0), 0, p->w->k};
    jpo_gemv_find()->dot(p->out + n0, p->ldo, p->in, p->ldi, p->m, &source, p->accumulate,
                         (float *)(p->scratch + (size_t)thread * p->part));
    if (p->plus) add_to_few(p, n0, source.rows);
}

/* ---- few rows of x, in 16 bits, times stored integers ---- */

static void quantize_row(void *context, int64_t task, int thread) {
    const product *p = context;
    (void)thread;
    p->kernel->integers->quantize(&p->integers, task, p->in + task * p->ldi, p->w->k);
}

static void integers_tile(void *context, int64_t task, int thread) {
    const product *p = context;
    (void)thread;
    int64_t n0 = task * p->tile;
    jpo_gemm_source source = {p->w->data, p->w->dtype, p->w->k, n0, jpo_min64(p->tile, p->w->n - n0), 0, p->w->k};
    p->kernel->integers->dot(p->out + n0, p->ldo, &p->integers, p->m, &source, p->accumulate);
    if (p->plus) add_to_few(p, n0, source.rows);
}

static jpo_status integers_product(product *p, jpo_scratch *scratch, jpo_error *err) {
    const size_t places = (size_t)(p->m * jpo_ceil_div(p->w->k, JPO_INTEGERS_WORDS)); /* m is small, k a row of W */
    JPO_TRY(jpo_block_reserve(&scratch->shared,
                              places * (JPO_INTEGERS_WORDS * sizeof(int16_t) + 2 * JPO_INTEGERS_LANES * sizeof(float)),
                              err));
    p->integers.scale = scratch->shared.data;
    p->integers.total = p->integers.scale + places * JPO_INTEGERS_LANES;
    p->integers.q = (int16_t *)(p->integers.total + places * JPO_INTEGERS_LANES);
    jpo_parallel(p->m, quantize_row, p);
    jpo_parallel(jpo_ceil_div(p->w->n, p->tile), integers_tile, p);
    return JPO_OK;
}

/* ---- the choice ---- */

typedef enum { BY_PANELS, BY_DOTS, BY_INTEGERS } way;

/* Which kernel serves m rows, and how: the one rule of shape, storage, compute type and processor. Where a small batch
 * runs in float32, `view` is W in that compute type. */
static way choose(product *p, jpo_weight *view, const jpo_weight *w, bool backward) {
    const jpo_gemm_kernel *kernel = jpo_packed_kernel(w);
    const bool integers = !backward && kernel && kernel->integers, stored = integers && jpo_dtype_integers(w->dtype);
    *view = *w, p->w = view, p->kernel = kernel;
    if (integers && jpo_integers_serve(w->dtype) && p->m <= kernel->integers->rows) return BY_INTEGERS;
    if (w->compute != JPO_COMPUTE_FLOAT32) {
        if (p->m > (stored ? kernel->small_stored_rows : kernel->small_rows)) return BY_PANELS;
        view->compute = JPO_COMPUTE_FLOAT32;
        p->kernel = jpo_packed_kernel(view);
    }
    return !backward && p->m <= jpo_gemv_find()->rows ? BY_DOTS : BY_PANELS;
}

static jpo_status dots_product(product *p, jpo_scratch *scratch, jpo_error *err) {
    JPO_TRY(reserve_parts(p, JPO_GEMM_DOT_SCRATCH * sizeof(float), scratch, err));
    jpo_parallel(jpo_ceil_div(p->w->n, p->tile), dot_tile, p);
    return JPO_OK;
}

jpo_status jpo_linear_forward(float *y, int64_t ldy, const float *x, int64_t ldx, const jpo_weight *w, int64_t m,
                              bool accumulate, const jpo_addition *plus, jpo_scratch *scratch, jpo_error *err) {
    if (m == 0) return JPO_OK;
    JPO_TRY(jpo_weight_check(w, err)); /* another instruction set may have been chosen since W was prepared */
    jpo_weight view;
    product p = {.out = y,
                 .in = x,
                 .ldo = ldy,
                 .ldi = ldx,
                 .m = m,
                 .width = w->n,
                 .depth = w->k,
                 .tile = few_tile(w->n),
                 .accumulate = accumulate,
                 .plus = plus};
    switch (choose(&p, &view, w, false)) {
    case BY_INTEGERS:
        return integers_product(&p, scratch, err);
    case BY_DOTS:
        return dots_product(&p, scratch, err);
    default:
        return packed_product(&p, scratch, err);
    }
}

jpo_status jpo_linear_backward_input(float *dx, int64_t lddx, const float *dy, int64_t lddy, const jpo_weight *w,
                                     int64_t m, bool accumulate, const jpo_addition *plus, jpo_scratch *scratch,
                                     jpo_error *err) {
    if (m == 0) return JPO_OK;
    JPO_TRY(jpo_weight_check(w, err)); /* another instruction set may have been chosen since W was prepared */
    jpo_weight view;
    product p = {.out = dx,
                 .in = dy,
                 .ldo = lddx,
                 .ldi = lddy,
                 .m = m,
                 .width = w->k,
                 .depth = w->n,
                 .accumulate = accumulate,
                 .backward = true,
                 .plus = plus};
    choose(&p, &view, w, true);
    return packed_product(&p, scratch, err);
}

/* ---- gradient of a weight ---- */

typedef struct {
    float *dw;
    const float *dy, *x;
    int64_t lddy, ldx, n, k, m, tile;
} weight_gradient;

static void weight_gradient_tile(void *context, int64_t task, int thread) {
    const weight_gradient *g = context;
    (void)thread;
    int64_t n0 = task * g->tile;
    jpo_sgemm(true, false, jpo_min64(g->tile, g->n - n0), g->k, g->m, 1, g->dy + n0, g->lddy, g->x, g->ldx, 1,
              g->dw + n0 * g->k, g->k);
}

jpo_status jpo_linear_backward_weight(float *dw, const float *dy, int64_t lddy, const float *x, int64_t ldx, int64_t n,
                                      int64_t k, int64_t m, jpo_scratch *scratch, jpo_error *err) {
    (void)scratch, (void)err;
    int64_t tile = jpo_min64(jpo_round_up(jpo_ceil_div(n, 4), 48), 192);
    weight_gradient g = {dw, dy, x, lddy, ldx, n, k, m, tile};
    if (m > 0) jpo_parallel(jpo_ceil_div(n, tile), weight_gradient_tile, &g);
    return JPO_OK;
}

void jpo_weight_rows(float *out, const jpo_weight *w, int64_t row0, int64_t count) {
    for (int64_t i = 0; i < count; i++) jpo_packed_widen(out + i * w->k, w, row0 + i, 0, w->k);
}

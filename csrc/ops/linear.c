/* Products with a stored weight by OpenBLAS: tiles of the output, each widened and multiplied by one task. The cut
 * depends on the shapes alone. */
#include "ops/linear.h"

#include "base/size.h"
#include "base/threads.h"
#include "ops/blas.h"
#include "ops/panels.h"

enum { PANEL_ROWS = 512 }; /* rows of W that one widened panel of backward_input holds */

void jpo_scratch_free(jpo_scratch *scratch) {
    jpo_block_free(&scratch->shared);
    jpo_block_free(&scratch->thread);
}

jpo_status jpo_weight_prepare(jpo_weight *w, jpo_error *err) {
    w->packed = NULL;
    if (w->k % jpo_dtype_block(w->dtype))
        return jpo_fail(err, JPO_ERR_VALUE, "a %s weight needs rows of a multiple of %lld values, got %lld",
                        jpo_dtype_name(w->dtype), (long long)jpo_dtype_block(w->dtype), (long long)w->k);
    if (w->compute != JPO_COMPUTE_FLOAT32)
        return jpo_fail(err, JPO_ERR_UNSUPPORTED, "compute=\"%s\" is not built yet; use compute=\"float32\"",
                        w->compute == JPO_COMPUTE_INT16 ? "int16" : "bfloat16");
    return JPO_OK;
}

void jpo_weight_release(jpo_weight *w) { w->packed = NULL; }

/* Columns of one output tile: at least four tiles where the width allows it, so that two threads end together. */
static int64_t tile_width(int64_t width) {
    int64_t tile = jpo_round_up(jpo_ceil_div(width, 4), 32);
    return jpo_min64(jpo_max64(tile, 32), 256);
}

typedef struct {
    float *out;
    const float *in;
    int64_t ldo, ldi, m, tile, total;
    const jpo_weight *w;
    bool accumulate;
    char *scratch;
    size_t part; /* bytes of one thread's scratch */
} product;

static jpo_status reserve_parts(product *p, size_t rows, size_t columns, jpo_scratch *scratch, jpo_error *err) {
    size_t bytes;
    if (!jpo_size_mul3(rows, columns, sizeof(float), &p->part) ||
        !jpo_size_mul(p->part, (size_t)jpo_threads_count(), &bytes))
        return jpo_fail(err, JPO_ERR_MEMORY, "the panels of a weight (%lld, %lld) do not fit the address space",
                        (long long)p->w->n, (long long)p->w->k);
    JPO_TRY(jpo_block_reserve(&scratch->thread, bytes, err));
    p->scratch = scratch->thread.data;
    return JPO_OK;
}

static void forward_tile(void *context, int64_t task, int thread) {
    const product *p = context;
    const jpo_weight *w = p->w;
    int64_t n0 = task * p->tile, columns = jpo_min64(p->tile, w->n - n0);
    const float *panel = (const float *)w->data + n0 * w->k;
    if (w->dtype != JPO_F32) {
        float *wide = (float *)(p->scratch + (size_t)thread * p->part);
        jpo_panel_widen(wide, w->k, w->dtype, w->data, w->k, n0, columns, 0, w->k);
        panel = wide;
    }
    jpo_sgemm(false, true, p->m, columns, w->k, 1, p->in, p->ldi, panel, w->k, p->accumulate, p->out + n0, p->ldo);
}

jpo_status jpo_linear_forward(float *y, int64_t ldy, const float *x, int64_t ldx, const jpo_weight *w, int64_t m,
                              bool accumulate, jpo_scratch *scratch, jpo_error *err) {
    product p = {y, x, ldy, ldx, m, tile_width(w->n), w->n, w, accumulate, NULL, 0};
    if (m == 0) return JPO_OK;
    if (w->dtype != JPO_F32) JPO_TRY(reserve_parts(&p, (size_t)p.tile, (size_t)w->k, scratch, err));
    jpo_parallel(jpo_ceil_div(w->n, p.tile), forward_tile, &p);
    return JPO_OK;
}

static void backward_input_tile(void *context, int64_t task, int thread) {
    const product *p = context;
    const jpo_weight *w = p->w;
    int64_t k0 = task * p->tile, columns = jpo_min64(p->tile, w->k - k0);
    if (w->dtype == JPO_F32) {
        jpo_sgemm(false, false, p->m, columns, w->n, 1, p->in, p->ldi, (const float *)w->data + k0, w->k, p->accumulate,
                  p->out + k0, p->ldo);
        return;
    }
    float *wide = (float *)(p->scratch + (size_t)thread * p->part);
    for (int64_t n0 = 0; n0 < w->n; n0 += PANEL_ROWS) {
        int64_t rows = jpo_min64(PANEL_ROWS, w->n - n0);
        jpo_panel_widen(wide, columns, w->dtype, w->data, w->k, n0, rows, k0, columns);
        jpo_sgemm(false, false, p->m, columns, rows, 1, p->in + n0, p->ldi, wide, columns, p->accumulate || n0,
                  p->out + k0, p->ldo);
    }
}

jpo_status jpo_linear_backward_input(float *dx, int64_t lddx, const float *dy, int64_t lddy, const jpo_weight *w,
                                     int64_t m, bool accumulate, jpo_scratch *scratch, jpo_error *err) {
    product p = {dx, dy, lddx, lddy, m, tile_width(w->k), w->k, w, accumulate, NULL, 0};
    if (m == 0) return JPO_OK;
    if (w->dtype != JPO_F32) JPO_TRY(reserve_parts(&p, PANEL_ROWS, (size_t)p.tile, scratch, err));
    jpo_parallel(jpo_ceil_div(w->k, p.tile), backward_input_tile, &p);
    return JPO_OK;
}

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
    weight_gradient g = {dw, dy, x, lddy, ldx, n, k, m, tile_width(n)};
    if (m > 0) jpo_parallel(jpo_ceil_div(n, g.tile), weight_gradient_tile, &g);
    return JPO_OK;
}

void jpo_weight_rows(float *out, const jpo_weight *w, int64_t row0, int64_t count) {
    jpo_panel_widen(out, w->k, w->dtype, w->data, w->k, row0, count, 0, w->k);
}

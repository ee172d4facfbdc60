/* General float32 products by the packed kernels: operands that no weight owns (attention, LoRA, gradients of weights).
 * Buffers are a thread's own and of fixed size. An output's sums run in an order that depends on k alone; the choice
 * between this, the dot kernel and OpenBLAS depends on the shape of the call. */
#include "base/size.h"
#include "ops/packed.h"

enum { RANGE = 576, TURNED_ROWS = 192 };

static _Thread_local float panel_buffer[RANGE * JPO_GEMM_MAX_PANEL] __attribute__((aligned(64)));
static _Thread_local float turned_buffer[TURNED_ROWS * RANGE] __attribute__((aligned(64)));

typedef struct {
    const jpo_gemm_table *table;
    bool ta, tb;
    int64_t m, n, k;
    float alpha;
    const float *a, *b;
    int64_t lda, ldb;
    float *c;
    int64_t ldc;
} call;

/* The panel of columns c0.. over depth d0.., scaled by alpha. */
static void pack_panel(const call *g, float *panel, int64_t d0, int64_t depth, int64_t c0, int64_t columns) {
    jpo_gemm_source source = {g->b, JPO_F32, g->ldb, d0, depth, c0, columns};
    if (g->tb) source = (jpo_gemm_source){g->b, JPO_F32, g->ldb, c0, columns, d0, depth};
    (g->tb ? g->table->forward : g->table->backward)[JPO_COMPUTE_FLOAT32](panel, &source);
    if (g->alpha == 1) return;
    for (int64_t i = 0; i < depth * g->table->panel; i++) panel[i] *= g->alpha;
}

/* Rows row0.. of the output, their part of op(a) given by rows of a (ld). */
static void multiply_rows(const call *g, const float *a, int64_t ld, int64_t row0, int64_t rows, int64_t d0,
                          int64_t depth, bool accumulate) {
    for (int64_t c0 = 0; c0 < g->n; c0 += g->table->panel) {
        int columns = (int)jpo_min64(g->table->panel, g->n - c0);
        pack_panel(g, panel_buffer, d0, depth, c0, columns);
        int64_t groups = jpo_ceil_div(rows, g->table->rows_float32);
        for (int64_t i = 0; groups > 0; groups--) {
            int count = (int)jpo_ceil_div(rows - i, groups);
            g->table->tile_float32(g->c + (row0 + i) * g->ldc + c0, g->ldc, a + i * ld, ld, panel_buffer, depth, count,
                                   columns, accumulate);
            i += count;
        }
    }
}

static void multiply(const call *g, bool accumulate) {
    int64_t ranges = jpo_ceil_div(g->k, RANGE), range = jpo_ceil_div(g->k, ranges);
    for (int64_t d0 = 0; d0 < g->k; d0 += range) {
        int64_t depth = jpo_min64(range, g->k - d0);
        bool add = accumulate || d0;
        if (!g->ta) {
            multiply_rows(g, g->a + d0, g->lda, 0, g->m, d0, depth, add);
            continue;
        }
        for (int64_t i = 0; i < g->m; i += TURNED_ROWS) {
            int64_t rows = jpo_min64(TURNED_ROWS, g->m - i);
            g->table->turn(turned_buffer, depth, g->a + d0 * g->lda + i, g->lda, rows, depth);
            multiply_rows(g, turned_buffer, depth, i, rows, d0, depth, add);
        }
    }
}

bool jpo_packed_sgemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                      const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    const jpo_gemm_table *table = jpo_packed_table(JPO_COMPUTE_FLOAT32);
    if (!table || !table->turn || (beta != 0 && beta != 1) || k == 0) return false;
    if (!ta && tb && alpha == 1 && (m <= table->dot_rows || n <= 16)) {
        jpo_gemm_source source = {b, JPO_F32, ldb, 0, n, 0, k};
        table->dot(c, ldc, a, lda, m, &source, beta != 0, panel_buffer);
        return true;
    }
    call g = {table, ta, tb, m, n, k, alpha, a, b, lda, ldb, c, ldc};
    multiply(&g, beta != 0);
    return true;
}

bool jpo_packed_add(float *c, int64_t ldc, const float *a, int64_t lda, const float *b, int64_t ldb, bool tb, int64_t m,
                    int64_t n, int64_t k, float alpha) {
    const jpo_gemm_table *table = jpo_packed_table(JPO_COMPUTE_FLOAT32);
    if (!table || !table->turn) return false;
    call g = {table, false, tb, m, n, k, alpha, a, b, lda, ldb, c, ldc};
    multiply(&g, true);
    return true;
}

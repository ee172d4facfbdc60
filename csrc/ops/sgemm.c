/* General float32 products: operands that no weight owns (attention, LoRA, gradients of weights).
 * Scratch is the caller's and of fixed size. An output's sums run in an order that depends on k alone; the choice
 * between this, the dot kernel and OpenBLAS depends on the shape of the call. */
#include "ops/sgemm.h"

#include <stddef.h>

#include "base/size.h"
#include "base/threads.h"
#include "kernels/gemm.h"
#include "ops/blas.h"

enum { RANGE = JPO_SGEMM_RANGE, TRANSPOSED_ROWS = JPO_SGEMM_ROWS };
_Static_assert(JPO_SGEMM_SCRATCH >= RANGE * (JPO_GEMM_MAX_PANEL + TRANSPOSED_ROWS), "a panel and transposed rows");
_Static_assert((int)JPO_SGEMM_SCRATCH >= (int)JPO_GEMM_DOT_SCRATCH, "rows of a small batch");

jpo_status jpo_sgemm_reserve(jpo_scratch *scratch, float **first, jpo_error *err) {
    JPO_TRY(jpo_block_reserve(&scratch->thread, JPO_SGEMM_SCRATCH * sizeof(float) * (size_t)jpo_threads_count(), err));
    *first = scratch->thread.data;
    return JPO_OK;
}

typedef struct {
    const jpo_gemm_kernel *kernel;
    const jpo_gemv_kernel *gemv;
    bool ta, tb;
    int64_t m, n, k;
    float alpha;
    const float *a, *b;
    int64_t lda, ldb;
    float *c;
    int64_t ldc;
    float *panel, *transposed; /* (RANGE, panel), (TRANSPOSED_ROWS, RANGE) */
} call;

/* g->panel = the panel of columns c0.. over depth d0.., scaled by alpha. */
static void pack_panel(const call *g, int64_t d0, int64_t depth, int64_t c0, int64_t columns) {
    jpo_gemm_source source = {g->b, JPO_F32, g->ldb, d0, depth, c0, columns};
    if (g->tb) source = (jpo_gemm_source){g->b, JPO_F32, g->ldb, c0, columns, d0, depth};
    g->kernel->pack[!g->tb](g->panel, &source);
    if (g->alpha == 1) return;
    for (int64_t i = 0; i < depth * g->kernel->panel; i++) g->panel[i] *= g->alpha;
}

/* Rows row0.. of the output, their part of op(a) given by rows of a (ld). */
static void multiply_rows(const call *g, const float *a, int64_t ld, int64_t row0, int64_t rows, int64_t d0,
                          int64_t depth, bool accumulate) {
    const jpo_gemm_rows in = {.x = a, .ldx = ld, .m = rows, .depth = depth};
    const jpo_gemm_term term = {.rows = &in, .panel = g->panel, .depth = depth};
    for (int64_t c0 = 0; c0 < g->n; c0 += g->kernel->panel) {
        int columns = (int)jpo_min64(g->kernel->panel, g->n - c0);
        pack_panel(g, d0, depth, c0, columns);
        int64_t groups = jpo_ceil_div(rows, g->kernel->rows);
        for (int64_t i = 0; groups > 0; groups--) {
            int count = (int)jpo_ceil_div(rows - i, groups);
            g->kernel->tile(g->c + (row0 + i) * g->ldc + c0, g->ldc, i, &term, 1, count, columns, accumulate);
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
        for (int64_t i = 0; i < g->m; i += TRANSPOSED_ROWS) {
            int64_t rows = jpo_min64(TRANSPOSED_ROWS, g->m - i);
            g->gemv->transpose(g->transposed, depth, g->a + d0 * g->lda + i, g->lda, rows, depth);
            multiply_rows(g, g->transposed, depth, i, rows, d0, depth, add);
        }
    }
}

/* Whether ours serve: where not, OpenBLAS does. */
static bool ours(const jpo_gemm_kernel *kernel, float beta, int64_t k) {
    return kernel && (beta == 0 || beta == 1) && k > 0;
}

void jpo_sgemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
               const float *b, int64_t ldb, float beta, float *c, int64_t ldc, float *scratch) {
    const jpo_gemm_kernel *kernel = jpo_gemm_find(JPO_COMPUTE_FLOAT32);
    const jpo_gemv_kernel *gemv = jpo_gemv_find();
    if (m == 0 || n == 0) return;
    if (!ours(kernel, beta, k)) {
        jpo_blas_sgemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
        return;
    }
    if (!ta && tb && alpha == 1 && (m <= gemv->rows || n <= 16)) {
        jpo_gemm_source source = {b, JPO_F32, ldb, 0, n, 0, k};
        gemv->dot(c, ldc, a, lda, m, &source, beta != 0, scratch);
        return;
    }
    const call g = {kernel, gemv, ta,  tb,  m, n,   k,       alpha,
                    a,      b,    lda, ldb, c, ldc, scratch, scratch + RANGE * JPO_GEMM_MAX_PANEL};
    multiply(&g, beta != 0);
}

void jpo_sgemm_add_low_rank(float *c, int64_t ldc, const float *a, int64_t lda, const float *b, int64_t ldb, bool tb,
                            int64_t m, int64_t n, int64_t k, float alpha, float *scratch) {
    const jpo_gemm_kernel *kernel = jpo_gemm_find(JPO_COMPUTE_FLOAT32);
    const jpo_gemv_kernel *gemv = jpo_gemv_find();
    if (m == 0 || n == 0) return;
    if (!ours(kernel, 1, k)) {
        jpo_blas_sgemm(false, tb, m, n, k, alpha, a, lda, b, ldb, 1, c, ldc);
        return;
    }
    const call g = {kernel, gemv, false, tb,  m, n,   k,       alpha,
                    a,      b,    lda,   ldb, c, ldc, scratch, scratch + RANGE * JPO_GEMM_MAX_PANEL};
    multiply(&g, true);
}

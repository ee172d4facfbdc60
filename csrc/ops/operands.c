/* Operands of products between activations (ops/operands.h): conversion into rows, packing into panels, the loop over
 * both. The layouts are the kernel's own affair. */
#include "ops/operands.h"

#include "base/size.h"
#include "ops/sgemm.h"

const jpo_gemm_kernel *jpo_operand_kernel(jpo_compute compute) {
    const jpo_gemm_kernel *kernel = jpo_gemm_find(compute);
    return kernel && kernel->low_rank ? jpo_gemm_find(kernel->low_rank) : NULL;
}

static int64_t panels_of(const jpo_operand *b) { return jpo_ceil_div(b->count, b->kernel->panel); }

size_t jpo_operand_bytes(const jpo_gemm_kernel *kernel, int64_t count, int64_t depth) {
    if (!kernel) return 0;
    const size_t rows = kernel->rows_bytes(count, depth);
    const size_t panels = (size_t)jpo_ceil_div(count, kernel->panel) * kernel->panel_bytes(JPO_F32, true, depth);
    return ((rows > panels ? rows : panels) + 63) / 64 * 64;
}

/* Groups of rows are converted apart, each at its place. */
static void convert_transposed(const jpo_operand *a, float *buffer) {
    const jpo_gemm_kernel *kernel = a->kernel;
    for (int64_t row = 0; row < a->count; row += JPO_OPERAND_ROWS) {
        const int64_t count = jpo_min64(JPO_OPERAND_ROWS, a->count - row);
        char *at = (char *)a->memory + (row ? kernel->rows_bytes(row, a->depth) : 0);
        const jpo_gemm_rows rows = {.x = buffer, .ldx = a->depth, .m = count, .depth = a->depth, .memory = at};
        jpo_gemv_find()->transpose(buffer, a->depth, a->x + row, a->ld, count, a->depth);
        kernel->convert(&rows, 0, count);
    }
}

void jpo_operand_left(jpo_operand *a, const jpo_gemm_kernel *kernel, const float *x, int64_t ldx, bool transposed,
                      int64_t count, int64_t depth, void *memory, float *buffer) {
    *a = (jpo_operand){kernel, x, ldx, count, depth, transposed, memory, buffer};
    if (!kernel) return;
    if (transposed) {
        convert_transposed(a, buffer);
        return;
    }
    const jpo_gemm_rows rows = {.x = x, .ldx = ldx, .m = count, .depth = depth, .memory = memory};
    kernel->convert(&rows, 0, count);
}

void jpo_operand_right(jpo_operand *b, const jpo_gemm_kernel *kernel, const float *x, int64_t ldx, bool transposed,
                       int64_t count, int64_t depth, void *memory) {
    *b = (jpo_operand){kernel, x, ldx, count, depth, transposed, memory, NULL};
    if (!kernel) return;
    const size_t bytes = kernel->panel_bytes(JPO_F32, !transposed, depth);
    for (int64_t p = 0; p < panels_of(b); p++) {
        const int64_t first = p * kernel->panel, some = jpo_min64(kernel->panel, count - first);
        jpo_gemm_source source = {x, JPO_F32, ldx, 0, depth, first, some};
        if (transposed) source = (jpo_gemm_source){x, JPO_F32, ldx, first, some, 0, depth};
        kernel->pack[!transposed]((char *)memory + (size_t)p * bytes, &source);
    }
}

void jpo_operands_multiply(float *c, int64_t ldc, const jpo_operand *a, const jpo_operand *b, bool accumulate,
                           bool room) {
    const jpo_gemm_kernel *kernel = a->kernel;
    if (!kernel) {
        jpo_sgemm(a->transposed, b->transposed, a->count, b->count, a->depth, 1, a->x, a->ld, b->x, b->ld,
                  accumulate ? 1 : 0, c, ldc, a->scratch);
        return;
    }
    const jpo_gemm_rows rows = {.m = a->count, .depth = a->depth, .memory = a->memory};
    const size_t bytes = kernel->panel_bytes(JPO_F32, !b->transposed, b->depth);
    const int64_t whole = room ? JPO_OPERAND_WHOLE : 1;
    const int64_t m = jpo_round_up(a->count, whole), n = jpo_round_up(b->count, whole);
    for (int64_t p = 0; p < panels_of(b); p++) {
        const int64_t column = p * kernel->panel;
        const int columns = (int)jpo_min64(kernel->panel, n - column);
        const jpo_gemm_term term = {&rows, 0, (const char *)b->memory + (size_t)p * bytes, a->depth, kernel->parts};
        for (int64_t row = 0; row < m; row += kernel->rows)
            kernel->tile(c + row * ldc + column, ldc, row, &term, 1, (int)jpo_min64(kernel->rows, m - row), columns,
                         accumulate);
    }
}

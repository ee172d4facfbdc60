/* Products of two matrices that no weight owns (attention), inside a task: C (M, N) = op(A) (M, K) op(B) (K, N). An
 * operand is prepared once, in memory of the caller, and multiplied as often as it is needed:
 *
 *     jpo_operand a, b;
 *     jpo_operand_left(&a, kernel, x, ldx, false, m, k, memory, buffer);
 *     jpo_operand_right(&b, kernel, w, ldw, true, n, k, other);
 *     jpo_operands_multiply(c, ldc, &a, &b, false, false);
 *
 * By tiles (jpo_operand_kernel) a left operand is converted rows, a right one packed panels, both in the parts that the
 * kernel multiplies; without a kernel an operand is where it stands and ops/sgemm multiplies in float32. Sums run in an
 * order that depends on the depth alone (float32: on the shape of the call). No threads, no allocation. */
#ifndef JPO_OPS_OPERANDS_H
#define JPO_OPS_OPERANDS_H

#include "kernels/gemm.h"

enum {
    JPO_OPERAND_ROWS = 32, /* rows of a transposed operand that pass through the buffer at a time */
    JPO_OPERAND_WHOLE = 16 /* rows and columns of an output that a tile stores at once */
};

typedef struct {
    const jpo_gemm_kernel *kernel;
    const float *x;
    int64_t ld, count, depth; /* rows of op(A) or columns of op(B); K */
    bool transposed;
    void *memory;
    float *scratch; /* of a left operand without a kernel, for ops/sgemm */
} jpo_operand;

/* The kernel that multiplies activations with one another where weights run in `compute`: tiles of the error class that
 * the activations have there, so bfloat16x3 for bfloat16x2 too. NULL: float32. */
const jpo_gemm_kernel *jpo_operand_kernel(jpo_compute compute);

/* Bytes of an operand's memory, a multiple of 64; 0 without a kernel. */
size_t jpo_operand_bytes(const jpo_gemm_kernel *kernel, int64_t count, int64_t depth);

/* op(A) (count, depth): x (count, depth; ldx), or where transposed x (depth, count; ldx), which passes through `buffer`
 * (JPO_OPERAND_ROWS, depth). Without a kernel buffer holds JPO_SGEMM_SCRATCH and stays in use. memory, buffer: 64-byte
 * aligned. */
void jpo_operand_left(jpo_operand *a, const jpo_gemm_kernel *kernel, const float *x, int64_t ldx, bool transposed,
                      int64_t count, int64_t depth, void *memory, float *buffer);
/* op(B) (depth, count): x (depth, count; ldx), or where transposed x (count, depth; ldx). */
void jpo_operand_right(jpo_operand *b, const jpo_gemm_kernel *kernel, const float *x, int64_t ldx, bool transposed,
                       int64_t count, int64_t depth, void *memory);
/* c (a->count, b->count; ldc) = or += op(A) op(B). room: c may be written up to the next multiple of JPO_OPERAND_WHOLE
 * in both directions (zeros, where not accumulated), which spares a copy. Between the kernel's thread_begin and
 * thread_end. */
void jpo_operands_multiply(float *c, int64_t ldc, const jpo_operand *a, const jpo_operand *b, bool accumulate,
                           bool room);

#endif

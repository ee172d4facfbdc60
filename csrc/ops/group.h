/* Products by panels, cut into tasks over tiles of the output: several that read the same rows, or several terms of one
 * output. ops/linear chooses what runs here. */
#ifndef JPO_OPS_GROUP_H
#define JPO_OPS_GROUP_H

#include "ops/linear.h"
#include "ops/packed.h"

/* Every weight of a call is stored alike (dtype, forward) and served by `kernel` (NULL: OpenBLAS). */
jpo_status jpo_group_forward(const jpo_linear_output *outputs, int count, const jpo_linear_rows *x, int64_t m,
                             const jpo_gemm_kernel *kernel, jpo_scratch *scratch, jpo_error *err);
jpo_status jpo_group_backward(float *dx, int64_t lddx, bool accumulate, const jpo_linear_input *inputs, int count,
                              const jpo_linear_rows *rows, const jpo_linear_hook *hook, int64_t m,
                              const jpo_gemm_kernel *kernel, jpo_scratch *scratch, jpo_error *err);
/* The updates' u alone, in float32, after `prepare` of the rows. */
jpo_status jpo_group_project(const jpo_linear_output *outputs, int count, const jpo_linear_rows *x, int64_t m,
                             jpo_scratch *scratch, jpo_error *err);

#endif

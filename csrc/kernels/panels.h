/* Widening: pieces of a stored weight W (N, K) to float32 rows, exactly (every stored form is a subset of float32,
 * or a product and a sum that float32 evaluates once, in the order d q + m). */
#ifndef JPO_KERNELS_PANELS_H
#define JPO_KERNELS_PANELS_H

#include <stdint.h>

#include "base/dtype.h"

/* out (count; contiguous) = values column0..column0+count-1 of the row that starts at `row`;
 * column0 and count are multiples of 32 where the dtype has blocks (of 32 or 256). */
void jpo_panel_widen_row(float *out, jpo_dtype dtype, const void *row, int64_t column0, int64_t count);

#endif

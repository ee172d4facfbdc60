/* Where a stored weight first holds NaN or infinity: at the speed of memory, as quantized blocks are known by their
 * float16 factors alone (a finite factor times a stored integer is finite in float32). */
#ifndef JPO_OPS_FINITE_H
#define JPO_OPS_FINITE_H

#include <stdint.h>

#include "base/dtype.h"

/* The first of `count` values, whole blocks, whose block holds NaN or infinity, as the block's first value; -1: none.
 */
int64_t jpo_first_nonfinite(const void *data, jpo_dtype dtype, int64_t count);

#endif

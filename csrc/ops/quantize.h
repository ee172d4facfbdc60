/* Rounding float32 values to the stored types that files are written in. */
#ifndef JPO_OPS_QUANTIZE_H
#define JPO_OPS_QUANTIZE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"

/* Whether jpo_quantize writes the type: those of the presets that files are converted to (no Q2_K, Q3_K, IQ4). */
bool jpo_quantizes(jpo_dtype dtype);

/* out = `count` finite values, whole blocks, in the type's form. Numerical contract: bit for bit what ggml's reference
 * quantizers give without importance weights where they are compiled without fused multiply-adds (Q8_0, Q4_0, Q5_0 and
 * Q5_1: the gguf package's too); scalars round to nearest, ties to even. One block's bits depend on its values alone.
 */
void jpo_quantize(uint8_t *out, const float *values, /* (count) */ jpo_dtype dtype, int64_t count);
/* The same in the calling thread, inside a task. */
void jpo_quantize_row(void *out, const float *values, /* (count) */ jpo_dtype dtype, int64_t count);

#endif

/* Rows of the embedding table, and their gradient. */
#ifndef JPO_OPS_EMBEDDING_H
#define JPO_OPS_EMBEDDING_H

#include <stdint.h>

#include "ops/linear.h"

void jpo_embedding_forward(float *x, /* (R, H) */ const int32_t *tokens, /* (R) */ const jpo_weight *table, /* (V, H) */
                           int64_t rows);
/* dtable (V, H) += : columns are cut over threads, rows are walked in order. */
void jpo_embedding_backward(float *dtable, /* (V, H) */ const float *dx, /* (R, H) */ const int32_t *tokens, /* (R) */
                            int64_t rows, int64_t hidden);

#endif

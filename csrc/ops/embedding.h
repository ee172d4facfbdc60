/* Rows of the embedding table, and their gradient. */
#ifndef JPO_OPS_EMBEDDING_H
#define JPO_OPS_EMBEDDING_H

#include <stdint.h>

#include "ops/lora.h"

/* x = factor * table[token], plus place[position] where the positions are learned (place NULL: none). */
typedef struct {
    const jpo_weight *table; /* (V, H) */
    const jpo_weight *place; /* (P, H) or NULL */
    float factor;
} jpo_embedding;
void jpo_embedding_forward(float *x, /* (R, H) */ const int32_t *tokens, /* (R) */ const int32_t *positions, /* (R) */
                           const jpo_embedding *embedding, int64_t rows);
/* dtable (V, H) += factor * dx gathered by `row_of` (tokens or positions): columns are cut over threads, rows run in
 * order. */
void jpo_embedding_backward(float *dtable, /* (V, H) */ const float *dx, /* (R, H) */ const int32_t *row_of, /* (R) */
                            float factor, int64_t rows, int64_t hidden);

/* The low-rank path of the table, A (r, V) and B (H, r), without dropout, as in PEFT: x (R, H) += factor scale B a, a
 * the token's column of A. */
void jpo_embedding_lora_forward(float *x, /* (R, H) */ const int32_t *tokens, /* (R) */ const jpo_lora *lora,
                                const jpo_embedding *embedding, int64_t rows);
/* da, db += of dx (R, H); rows run in order. */
void jpo_embedding_lora_backward(const float *dx, /* (R, H) */ const int32_t *tokens, /* (R) */ const jpo_lora *lora,
                                 const jpo_embedding *embedding, int64_t rows);

#endif

/* A pass over new rows whose keys join a cache: a prompt's rows at once, or one row of each stream. */
#ifndef JPO_MODEL_DECODE_H
#define JPO_MODEL_DECODE_H

#include "model/model.h"

/* All indices are checked by the caller. Positions of a path's keys count from 0 in the order of its ranges. */
typedef struct {
    int64_t rows, segment_count, range_count, out_rows, capacity;
    const int32_t *tokens, *positions, *kv_row; /* (R): kv_row is where the row's keys go */
    const int32_t *segments;                    /* (S, 4): first row, length, first range, ranges */
    const jpo_key_range *ranges;                /* rows of the cache, the segment's own included */
    const int32_t *out_row;                     /* (n): rows whose logits are asked for */
    float *k, *v;                               /* (layers, capacity, KV) */
    bool adapter;
} jpo_decode;

/* logits (n, V). Overwrites what the last forward pass kept. */
jpo_status jpo_model_decode(jpo_model *model, float *logits, const jpo_decode *decode, jpo_error *err);

#endif

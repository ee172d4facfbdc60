/* A pass over new rows whose keys join a cache: a prompt's rows at once, or one row of each stream. */
#ifndef JPO_MODEL_DECODE_H
#define JPO_MODEL_DECODE_H

#include "model/pass.h"

/* All indices are checked by the caller. Positions of a path's keys count from 0 in the order of its ranges. */
typedef struct {
    int64_t rows, segment_count, range_count, out_rows, capacity;
    const int32_t *tokens, *positions, *kv_row; /* (T): kv_row is where the row's keys go */
    const int32_t *segments;                    /* (S, 4): first row, length, first range, ranges */
    const jpo_key_range *ranges;                /* rows of the cache, the segment's own included */
    const int32_t *out_row;                     /* (n): rows whose logits are asked for */
    char *k, *v;                                /* (layers, capacity) rows of G * D values */
    jpo_dtype dtype;                            /* that they are stored in: one that jpo_cache_serves */
    bool adapter;
    int64_t reach; /* positions that the streams may come to: chooses longrope's frequencies; 0: those of this pass */
} jpo_decode;

/* Whether keys and values can be stored so: a type that is written as well as read, heads of whole blocks. */
bool jpo_cache_serves(jpo_dtype dtype, const jpo_config *config);

/* logits (n, V). Overwrites what the last forward pass kept. */
jpo_status jpo_pass_decode(jpo_pass *pass, float *logits, const jpo_decode *decode, jpo_error *err);

#endif

/* Causal attention over a forest: each segment of queries sees a path of key ranges, root first, its own rows last.
 * A key is visible to a query iff its position on the path is not after the query's (and, with a sliding window,
 * less than `window` before it). Scores are scale * q k, then cap tanh(score / cap) where a soft-cap is given. Grouped
 * heads share keys and values. Only the output and the log-sum-exp are saved. */
#ifndef JPO_OPS_ATTENTION_H
#define JPO_OPS_ATTENTION_H

#include <stdint.h>

#include "base/status.h"
#include "ops/linear.h"

typedef struct {
    int32_t first_row, length; /* rows of the key buffer; positions follow one another along a path */
} jpo_key_range;

typedef struct {
    int32_t first_row, length; /* rows of the query buffer */
    int32_t first_position;    /* of its first query */
    int32_t range, ranges;     /* ranges[range .. range + ranges): the path */
    int32_t root_position;     /* of the path's first key */
    int32_t tree;              /* segments of one tree share keys: a tree is one task of the backward pass */
} jpo_attention_segment;

typedef struct {
    int64_t segments, trees, rows;
    const jpo_attention_segment *segment; /* (S), those of a tree next to one another */
    const jpo_key_range *ranges;
    int64_t heads, kv_heads, head_dim, window; /* window 0: none */
    float scale, softcap;                      /* softcap 0: none */
    jpo_compute compute;                       /* of the model's products: tiles serve these too (ops/operands.h) */
} jpo_attention;

/* Keys and values (rows of the key buffer, kv_heads*head_dim of `ld` values) as `dtype` stores them; in blocks: ld and
 * head_dim are multiples of 32. Whatever the type, products are float32's over the exactly widened values. */
typedef struct {
    const void *k, *v;
    jpo_dtype dtype;
    int64_t ld;
} jpo_key_rows;

/* out (R, heads*head_dim), lse (R, heads; NULL: not saved); q (R, ldq). */
jpo_status jpo_attention_forward(float *out, float *lse, const float *q, int64_t ldq, const jpo_key_rows *keys,
                                 const jpo_attention *attention, jpo_scratch *scratch, jpo_error *err);
/* dq (R, ldd) =; dk, dv (R, ldd) = : gradients of every key gather from all its descendants. */
jpo_status jpo_attention_backward(float *dq, float *dk, float *dv, int64_t ldd, const float *dout, const float *out,
                                  const float *lse, const float *q, const float *k, const float *v, int64_t ld,
                                  const jpo_attention *attention, jpo_scratch *scratch, jpo_error *err);

#endif

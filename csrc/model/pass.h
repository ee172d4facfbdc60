/* A pass of a model over a forest: what it plans, keeps for the backward pass, and works in. Several passes may share a
 * model; one pass serves one call at a time. The letters of shapes are those of csrc/README.md. */
#ifndef JPO_MODEL_PASS_H
#define JPO_MODEL_PASS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/memory.h"
#include "base/status.h"
#include "model/model.h"
#include "model/profile.h"
#include "ops/attention.h"
#include "ops/dora.h"
#include "ops/head.h"

typedef struct {
    int32_t first_row, length, parent, first_position;
} jpo_segment;

/* A forest of token segments (prefix sharing without padding), borrowed from the caller. Segments tile the rows in
 * order, a parent stands before its children, and the segments of a tree are adjacent. */
typedef struct {
    int64_t rows, segments, entries;
    const int32_t *tokens;       /* (T) */
    const jpo_segment *segment;  /* (S) */
    const int32_t *entry_row;    /* (L): ascending rows of the forest */
    const int32_t *entry_target; /* (L): the token that each scores */
} jpo_forest;

/* Keys and values that outlive a forward pass (generation): row kv_row[i] receives the forest's row i, and the
 * attention plan's ranges name rows of the cache. */
typedef struct {
    char *k, *v; /* (layers, capacity) rows of G * D values */
    jpo_dtype dtype;
    int64_t capacity;
    const int32_t *kv_row; /* (T) */
} jpo_kv_target;

typedef struct {
    bool adapter;    /* apply the LoRA path */
    bool keep;       /* keep what backward needs */
    bool statistics; /* entropy, best token, sum of p^2, mean logit per loss row */
    bool train;      /* dropout active */
    bool decode;     /* one more token of texts that the cache holds: the adapter is the one that they began with */
    uint64_t seed;   /* of the dropout masks, one for a whole optimizer step */
} jpo_forward_options;

/* What one layer saves, inside one slab; layers share a slab where nothing is kept. Statistics of norms:
 * JPO_NORM_STATISTICS a vector. NULL: this model has no such thing. */
typedef struct {
    float *x;                        /* (T, H): the block's input */
    float *norm1, *norm2;            /* (T, 2): statistics of the norms before attention and MLP */
    float *qk_raw;                   /* (T, A*D + G*D): q and k before their norms */
    float *q_stat, *k_stat;          /* (T, heads or 1, 2) */
    float *qkv;                      /* (T, A*D + 2*G*D) */
    float *attn, *lse;               /* (T, A*D), (T, A) */
    float *attn_out, *attn_out_stat; /* (T, H), (T, 2): o_proj's output before its norm */
    float *x_mid;                    /* (T, H): after attention's residual; x_next itself where parallel */
    float *gate, *up;                /* (T, F) */
    float *mlp_out, *mlp_out_stat;   /* (T, H), (T, 2): down_proj's output before its norm */
    float *xa;                       /* (T * rank sums): x A^T of each adapted module */
    float *product;                  /* (T * widths): adapted products whose rows have magnitudes, before those */
} jpo_saved_layer;

/* Scratch of a pass, inside one slab. */
typedef struct {
    float *h;        /* (T, max(H, A*D)): normed input of the next products */
    float *act;      /* (T, F): gated activation, or its gradient */
    float *branch;   /* (T, H): a branch's output or gradient, where it is normed or scaled before it is added */
    float *dx;       /* (T, H): gradient of the residual stream */
    float *dh;       /* (T, max(H, A*D)): gradient of h */
    float *dattn;    /* (T, A*D): gradient of attention's output; dh where that is free */
    float *dqkv;     /* (T, A*D + 2*G*D) */
    float *dqk_raw;  /* (T, A*D + G*D) */
    float *dxa;      /* (T, rank sum) */
    float *dropped;  /* (T, max(H, A*D, F)) where dropout is active */
    float *dproduct; /* (T * widths): gradient of saved.product */
} jpo_work;

/* Index arrays of a pass. */
typedef struct {
    int32_t *tokens, *position;        /* (T) */
    int32_t *entry_row, *entry_target; /* (L) */
    int32_t *head_entry_row;           /* (L): index into the loss rows */
    int32_t *loss_row;                 /* (N): rows of the forest that carry a loss */
    jpo_attention_segment *segments;   /* (S) */
    jpo_key_range *ranges;
    uint64_t *mask_key; /* (T): dropout's name of each row (forest.c); NULL: no dropout in this pass */
} jpo_index;

/* Memory of the head over N loss rows. */
typedef struct {
    float *h, *stat;     /* (N, H), (N, 2) */
    jpo_head_row *state; /* (N) */
    float *pw;           /* (N, H), frozen head */
    float *tile;         /* (N, JPO_HEAD_TILE): logits of a trainable or adapted head */
    float *xa, *dxa;     /* (N, r): scale h A^T of an adapted head, and the gradient of it */
    float *slope;        /* (L) where logits have a soft-cap */
} jpo_head_memory;

/* All sizes of a pass, computed before anything is allocated; the peak report reads the same numbers. */
typedef struct {
    int64_t rows, entries, loss_rows, segments, ranges, trees, rank_sum;
    bool dropout;       /* the adapter's dropout is active */
    int64_t magnitudes; /* rows of W with magnitudes, of the layer that has most */
    bool recompute; /* kept: the input of each layer; the rest of one layer is shared, and backward makes it again */
    size_t x_bytes, layer_bytes, saved_bytes, work_bytes, head_bytes, index_bytes;
} jpo_plan;

typedef struct {
    const jpo_model *model;
    bool recompute;      /* gradient checkpointing, from the next pass on */
    int (*poll)(void *); /* nonzero: stop with JPO_ERR_INTERRUPTED; asked between layers */
    void *poll_context;
    jpo_profile profile; /* of all passes since it was last read */
    float **angles;      /* (rotaries): cosine, then sine, of (positions, half) each */
    int64_t positions;
    int64_t reach;        /* positions that the tables' frequencies were chosen for (longrope) */
    jpo_row_norms *norms; /* (layers, JPO_MODULES): of adapted weights whose rows have magnitudes */

    /* the last pass */
    jpo_plan plan;
    bool kept; /* backward may run */
    jpo_forward_options options;
    jpo_block saved, work_block, index_block, head_block, decode_block, norm_block;
    jpo_scratch scratch;
    jpo_weight_scratch weight_scratch;
    jpo_work work;
    jpo_index index;
    jpo_head_memory head;
    jpo_attention attention;
    float *final_x; /* (T, H); NULL: no pass is kept */
} jpo_pass;

/* The weights that this pass reads, and whose gradients it adds to. */
static inline const jpo_weights *jpo_pass_weights(const jpo_pass *pass) {
    return jpo_model_weights(pass->model, pass->options.adapter);
}

/* The model outlives the pass. On failure jpo_pass_free is still due. */
jpo_status jpo_pass_init(jpo_pass *pass, const jpo_model *model, jpo_error *err);
void jpo_pass_free(jpo_pass *pass);
/* To be called after the model's adapters have changed: memory for the norms of rows that have magnitudes. */
jpo_status jpo_pass_adapt(jpo_pass *pass, jpo_error *err);
/* Frees what the last pass kept; the next one plans anew. */
void jpo_pass_trim(jpo_pass *pass);

jpo_status jpo_forest_check(const jpo_forest *forest, const jpo_config *config, jpo_error *err);
/* A key of each row's own text and position, the same in every forest that holds its segment under the same ancestors.
 */
void jpo_forest_mask_keys(uint64_t *key, /* (T) */ const jpo_forest *forest);
/* Sizes of a pass over `forest`; fails on overflow, allocates nothing. */
jpo_status jpo_plan_make(jpo_plan *plan, const jpo_pass *pass, const jpo_forest *forest,
                         const jpo_forward_options *options, jpo_error *err);
/* Index arrays, attention paths and buffers for the plan. */
jpo_status jpo_plan_apply(jpo_pass *pass, const jpo_forest *forest, const jpo_forward_options *options, jpo_error *err);
jpo_saved_layer jpo_saved_get(const jpo_pass *pass, int64_t layer);
/* Cosine and sine of every rotary for positions 0 .. positions - 1, where they are not there yet; with the frequencies
 * for texts of `reach` positions or fewer (longrope has two sets). */
jpo_status jpo_angles_reserve(jpo_pass *pass, int64_t positions, int64_t reach, jpo_error *err);

/* logps (L). */
jpo_status jpo_pass_forward(jpo_pass *pass, double *logps, const jpo_forest *forest, const jpo_forward_options *options,
                            jpo_error *err);
/* Adds d loss into the gradients of the adapter (or of all weights); coefficients (L) = d loss / d logps.
 * Consumes what the last forward pass kept. */
jpo_status jpo_pass_backward(jpo_pass *pass, const double *coefficients, jpo_error *err);

/* Of the last pass, which asked for statistics: entropy, mean logit, log of the sum of p^2, and whether the target was
 * the most likely token, for each entry (L). */
void jpo_pass_statistics(const jpo_pass *pass, double *entropy, double *mean_logit, double *log_p2, bool *hit);
/* Rows that the last pass left to be read; 0 where it did not end. */
int64_t jpo_pass_rows(const jpo_pass *pass);
/* Final hidden state (H) of one row of the last pass, behind the last norm. */
void jpo_pass_hidden(const jpo_pass *pass, float *out, int64_t row);
/* logits (rows, V) of final hidden states h (rows, H) as jpo_pass_hidden gives them; h is overwritten. */
jpo_status jpo_pass_logits(jpo_pass *pass, float *logits, float *h, int64_t rows, jpo_error *err);

#endif

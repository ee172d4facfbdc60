/* A decoder LM: configuration, weights, adapter, and what a forward pass keeps for the backward pass.
 * Alphabet: R rows (tokens of the forest), S segments, L loss entries, N rows that carry a loss, H hidden,
 * Q = heads * head_dim, KV = kv_heads * head_dim, I intermediate, V vocabulary, r rank. */
#ifndef JPO_MODEL_MODEL_H
#define JPO_MODEL_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/memory.h"
#include "base/status.h"
#include "model/profile.h"
#include "model/tensors.h"
#include "ops/attention.h"
#include "ops/head.h"
#include "ops/linear.h"
#include "ops/lora.h"

typedef struct {
    int64_t vocab, hidden, layers, heads, kv_heads, head_dim, intermediate, window, max_positions;
    float eps;
    bool tied;
    double rope_factor;     /* multiplies cosine and sine (YaRN's attention factor); 1 elsewhere */
    const double *inv_freq; /* (head_dim / 2); owned by the model */
} jpo_config;

/* One linear module: weight, optional bias, optional adapter, optional gradients (full fine-tuning). */
typedef struct {
    jpo_weight weight;
    const float *bias; /* (N) or NULL */
    float *dweight, *dbias;
    jpo_lora lora;
} jpo_linear;

typedef struct {
    jpo_linear module[JPO_MODULES];
    const float *norm1, *norm2; /* (H) */
    float *dnorm1, *dnorm2;     /* NULL: frozen */
} jpo_layer;

typedef struct {
    int32_t first_row, length, parent, first_position;
} jpo_segment;

/* A forest of token segments (prefix sharing without padding), borrowed from the caller. Segments tile the rows in
 * order, a parent stands before its children, and the segments of a tree are adjacent. */
typedef struct {
    int64_t rows, segments, entries;
    const int32_t *tokens;       /* (R) */
    const jpo_segment *segment;  /* (S) */
    const int32_t *entry_row;    /* (L): ascending rows of the forest */
    const int32_t *entry_target; /* (L): the token that each scores */
} jpo_forest;

/* Keys and values that outlive a forward pass (generation): row kv_row[i] receives the forest's row i, and the
 * attention plan's ranges name rows of the cache. */
typedef struct {
    float *k, *v; /* (layers, capacity, KV) */
    int64_t capacity;
    const int32_t *kv_row; /* (R) */
} jpo_kv_target;

typedef struct {
    bool adapter;    /* apply the LoRA path */
    bool keep;       /* keep what backward needs */
    bool statistics; /* entropy, best token, sum of p^2, mean logit per loss row */
    bool train;      /* dropout active */
    uint64_t seed;   /* of the dropout masks */
} jpo_forward_options;

/* What one layer saves, inside one slab; layers share a slab where nothing is kept. xa: (M * rank sums), by module. */
typedef struct {
    float *x, *rstd1, *qkv, *attn, *lse, *x_mid, *rstd2, *gate, *up, *xa;
} jpo_saved_layer;

/* Scratch of a pass, inside one slab. */
typedef struct {
    float *h;       /* (R, max(H, Q)): normed input of the next products */
    float *act;     /* (R, I): gated activation, or its gradient */
    float *dx;      /* (R, H): gradient of the residual stream */
    float *dh;      /* (R, max(H, Q)) */
    float *dqkv;    /* (R, Q + 2 KV) */
    float *dxa;     /* (R, rank sum) */
    float *dropped; /* (R, max(H, Q, I)) where dropout is active */
} jpo_work;

/* All sizes of a pass, computed before anything is allocated; the peak report reads the same numbers. */
typedef struct {
    int64_t rows, entries, loss_rows, segments, ranges, trees, rank_sum;
    bool recompute; /* kept: the input of each layer; the rest of one layer is shared, and backward makes it again */
    size_t x_bytes, layer_bytes, saved_bytes, work_bytes, head_bytes, index_bytes;
} jpo_plan;

typedef struct {
    jpo_config config;
    jpo_weight embedding, head; /* head repeats embedding's data where tied */
    float *dembedding, *dhead;  /* NULL: frozen; the same where tied */
    const float *norm;          /* (H) */
    float *dnorm;
    jpo_layer *layer;     /* (layers) */
    bool full;            /* base weights are trained */
    bool recompute;       /* gradient checkpointing, from the next pass on */
    float *cosine, *sine; /* (positions, head_dim / 2) */
    int64_t positions;
    int (*poll)(void *); /* nonzero: stop with JPO_ERR_INTERRUPTED; asked between layers */
    void *poll_context;

    jpo_profile profile; /* of all passes since it was last read */

    /* the last pass */
    jpo_plan plan;
    bool kept; /* backward may run */
    jpo_forward_options options;
    jpo_block saved, work_block, index, head_block, decode_block;
    jpo_scratch scratch;
    jpo_work work;
    int32_t *tokens, *position, *entry_row, *entry_target, *head_entry_row, *loss_row; /* in `index` */
    jpo_attention attention;
    float *final_x, *final_rstd; /* (R, H), NULL where the last pass did not end; (N) */
    float *head_h, *head_pw;     /* (N, H) */
    float *head_tile;            /* (N, JPO_HEAD_TILE): logits of a trainable head */
    jpo_head_row *head_state;    /* (N) */
} jpo_model;

/* Shapes of a module's weight under a configuration. */
int64_t jpo_module_outputs(const jpo_config *c, jpo_module module);
int64_t jpo_module_inputs(const jpo_config *c, jpo_module module);
const char *jpo_module_name(jpo_module module);

/* Allocates the layers for `config` (inv_freq is copied); the caller sets the weights afterwards. On failure
 * jpo_model_free is still due. */
jpo_status jpo_model_init(jpo_model *model, const jpo_config *config, jpo_error *err);
void jpo_model_free(jpo_model *model);
/* Frees what the last pass kept; the next pass plans anew. */
void jpo_model_trim(jpo_model *model);

jpo_status jpo_forest_check(const jpo_forest *forest, const jpo_config *config, jpo_error *err);
/* Sizes of a pass over `forest`; fails on overflow, allocates nothing. */
jpo_status jpo_plan_make(jpo_plan *plan, const jpo_model *model, const jpo_forest *forest,
                         const jpo_forward_options *options, jpo_error *err);
/* Index arrays, attention paths and buffers for the plan; cosine and sine up to the last position. */
jpo_status jpo_plan_apply(jpo_model *model, const jpo_forest *forest, const jpo_forward_options *options,
                          jpo_error *err);
jpo_saved_layer jpo_saved_get(const jpo_model *model, int64_t layer);
jpo_status jpo_rope_tables(jpo_model *model, int64_t positions, jpo_error *err);

/* logps (L); the rows' statistics stay in model->head_state, the final hidden rows in model->final_x. */
jpo_status jpo_model_forward(jpo_model *model, double *logps, const jpo_forest *forest,
                             const jpo_forward_options *options, jpo_error *err);
/* Adds d loss into the gradients of the adapter (or of all weights); coefficients (L) = d loss / d logps.
 * Consumes what the last forward pass kept. */
jpo_status jpo_model_backward(jpo_model *model, const double *coefficients, jpo_error *err);

/* One block: saved->x (R, H) -> x_next (R, H). Attention plan and key target come from the caller, so that generation
 * runs the same code over its cache (target NULL: keys stay in saved->qkv). x_next NULL: as far as gate and up. */
jpo_status jpo_block_forward(jpo_model *model, int64_t layer, const jpo_saved_layer *saved, float *x_next, int64_t rows,
                             const int32_t *positions, const jpo_attention *attention, const jpo_kv_target *target,
                             jpo_error *err);
/* work.dx (R, H): gradient of the block's output -> of its input (left unfinished where need_dx is false). */
jpo_status jpo_block_backward(jpo_model *model, int64_t layer, const jpo_saved_layer *saved, bool need_dx,
                              jpo_error *err);

#endif

/* What a decoder computes, as data: sizes, the operators of its block, and what may differ from layer to layer. Every
 * choice names a row of a table (ops/norm.h, ops/pointwise.h, the lists below). */
#ifndef JPO_MODEL_CONFIG_H
#define JPO_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "model/tensors.h"
#include "ops/norm.h"
#include "ops/pointwise.h"

/* X(code, name in a configuration) */
#define JPO_NORM_PLACE_LIST(X)                   \
    X(JPO_BEFORE, "before") /* x + f(norm(x)) */ \
    X(JPO_AFTER, "after")   /* x + norm(f(x)) */ \
    X(JPO_BOTH, "both")     /* x + norm(f(norm(x))) */
#define JPO_QK_NORM_LIST(X)                                       \
    X(JPO_QK_NONE, "none")                                        \
    X(JPO_QK_HEAD, "head") /* each head for itself, one weight */ \
    X(JPO_QK_FULL, "full") /* all heads of a row together */

#define JPO_CHOICE_CODE(code, name) code,
typedef enum { JPO_NORM_PLACE_LIST(JPO_CHOICE_CODE) JPO_NORM_PLACES } jpo_norm_place;
typedef enum { JPO_QK_NORM_LIST(JPO_CHOICE_CODE) JPO_QK_NORMS } jpo_qk_norm;
#undef JPO_CHOICE_CODE
const char *jpo_norm_place_name(jpo_norm_place place);
const char *jpo_qk_norm_name(jpo_qk_norm norm);

/* Rotary frequencies that one or more layers use. */
typedef struct {
    int64_t half;           /* pairs of a head's values that are rotated: its first 2 * half */
    bool pairs;             /* neighbours are rotated together (jpo_rotary_table) */
    double factor;          /* multiplies cosine and sine (YaRN's attention factor); 1 elsewhere */
    const double *inv_freq; /* (half) */
    /* longrope: other frequencies (half) where a pass goes beyond `original` positions; NULL: the same everywhere */
    const double *long_freq;
    int64_t original;
} jpo_rotary;

typedef struct {
    int64_t window; /* keys that a query sees, itself included; 0: all */
    int64_t rotary; /* index of a jpo_rotary; -1: none in this layer */
} jpo_layer_choice;

typedef struct {
    int64_t vocab, hidden, layers, heads, kv_heads, head_dim, intermediate, max_positions;
    float eps;
    jpo_norm_kind norm;
    jpo_norm_place norm_place;
    jpo_qk_norm qk_norm;
    jpo_activation activation;
    bool gated;                               /* f(gate) * up; otherwise f(up) */
    bool norm_bias;                           /* norms of rows have biases, those of q and k never */
    bool parallel;                            /* x + attention(h) + mlp(h), h = norm(x) */
    bool tied;                                /* the head is the embedding */
    bool learned_positions;                   /* a table of positions is added to the embedding */
    int64_t biases;                           /* bit m: linear module m has a bias */
    float attention_scale, attention_softcap; /* soft-caps: 0 is none */
    float logits_softcap, logits_multiplier, embedding_multiplier, residual_multiplier;
    int64_t rotaries;
    const jpo_rotary *rotary;      /* (rotaries) */
    const jpo_layer_choice *layer; /* (layers) */
} jpo_config;

static inline int64_t jpo_query_width(const jpo_config *c) { return c->heads * c->head_dim; }
static inline int64_t jpo_key_width(const jpo_config *c) { return c->kv_heads * c->head_dim; }

/* One row of the list of tensors under a configuration. */
typedef struct {
    const char *name, *gguf;
    jpo_tensor_kind kind;
    jpo_tensor_scope scope;
    int64_t n, k; /* k is 1 for vectors */
    bool present, bias;
} jpo_tensor_info;
jpo_tensor_info jpo_tensor_describe(const jpo_config *c, jpo_tensor tensor);

jpo_status jpo_config_check(const jpo_config *c, jpo_error *err);

#endif

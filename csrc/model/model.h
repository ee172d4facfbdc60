/* The weights of a decoder LM, its adapter and their gradients. A pass over them is another struct (model/pass.h).
 * The letters of shapes are those of csrc/README.md. */
#ifndef JPO_MODEL_MODEL_H
#define JPO_MODEL_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "model/config.h"
#include "ops/linear.h"
#include "ops/lora.h"
#include "ops/norm.h"

/* One linear module: weight, optional bias, optional adapter, optional gradients (full fine-tuning). */
typedef struct {
    jpo_weight weight; /* data NULL: this model has no such module */
    const float *bias; /* (N) or NULL */
    float *dweight, *dbias;
    jpo_lora lora;
    int mask; /* modules of a layer with one number drop the same values of their common input */
} jpo_linear;

typedef struct {
    jpo_linear module[JPO_MODULES];
    jpo_norm norm[JPO_LAYER_NORMS]; /* by tensor code less JPO_MODULES */
} jpo_layer;

/* All weights of a model. */
typedef struct {
    jpo_weight embedding, positions, head;  /* head repeats embedding's data where tied */
    float *dembedding, *dpositions, *dhead; /* NULL: frozen; dhead = dembedding where both are one */
    jpo_lora embedding_lora, head_lora;     /* A (r, V), B (H, r); A (r, H), B (V, r); without dropout */
    jpo_norm final_norm;
    jpo_layer *layer; /* (layers) */
} jpo_weights;

typedef struct {
    jpo_config config;  /* its arrays are the model's own */
    jpo_weights stored; /* as jpo_model_set gave them: the reference, without adapter and gradients */
    jpo_weights live;   /* with the adapter and what is trained beside it, or with all weights trained */
    bool full;          /* all weights are trained: there is no reference */
    void *arrays;       /* memory of config's arrays */
} jpo_model;

/* The weights of a pass with or without the adapter. */
static inline const jpo_weights *jpo_model_weights(const jpo_model *model, bool adapter) {
    return adapter || model->full ? &model->live : &model->stored;
}

/* Allocates the layers for `config` (its arrays are copied); the weights come by jpo_model_set. On failure
 * jpo_model_free is still due. */
jpo_status jpo_model_init(jpo_model *model, const jpo_config *config, jpo_error *err);
void jpo_model_free(jpo_model *model);

/* The tensor's own values, borrowed: rows of `dtype` for linear modules and tables, float32 for vectors and biases. */
void jpo_model_set(jpo_model *model, jpo_tensor tensor, int64_t layer, const void *data, jpo_dtype dtype,
                   jpo_compute compute);
void jpo_model_set_bias(jpo_model *model, jpo_tensor tensor, int64_t layer, const float *bias /* (N) */);
/* After all are set: ties the head, checks that the weights can be multiplied, and remembers them as stored. */
jpo_status jpo_model_prepare(jpo_model *model, jpo_error *err);

/* From now on the live tensor's (or its bias') values are trained ones: float32 of its shape, and their gradient. A
 * tied head is a tensor of its own here: it stays the stored one until it is trained too. */
void jpo_model_train(jpo_model *model, jpo_tensor tensor, int64_t layer, bool bias, const float *values,
                     float *gradient);
/* An adapter of one module, of the embedding or of the head; r 0 removes it. Modules that share `a` share their dropout
 * mask. */
void jpo_model_adapt(jpo_model *model, jpo_tensor module, int64_t layer, const jpo_lora *lora);
/* Every weight is the stored one again; no adapter and no gradient is left. */
void jpo_model_restore(jpo_model *model);

static inline const jpo_norm *jpo_layer_norm(const jpo_layer *layer, jpo_tensor norm) {
    return &layer->norm[norm - JPO_MODULES];
}

#endif

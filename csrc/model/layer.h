/* One decoder layer in a pass: its linear modules with their adapters, and the block that they make up. */
#ifndef JPO_MODEL_LAYER_H
#define JPO_MODEL_LAYER_H

#include "model/pass.h"

/* Where the output of a module stands. */
typedef struct {
    jpo_tensor module;
    float *y; /* (T, N; ldy) */
    int64_t ldy;
} jpo_module_output;

/* y = or += W x + bias + adapter for modules that read the same x; up to JPO_LINEAR_GROUP. */
jpo_status jpo_modules_forward(jpo_pass *pass, int64_t layer, const jpo_module_output *outputs, int count,
                               const jpo_linear_rows *x, const jpo_saved_layer *saved, int64_t rows, bool accumulate,
                               jpo_error *err);

/* Where the gradient of a module's output stands. */
typedef struct {
    jpo_tensor module;
    const float *dy; /* (T, N; lddy) */
    int64_t lddy;
} jpo_module_gradient;

/* Gradients of the modules' own weights (weight, bias, adapter), and dx (T, K) = or += the gradient of their common
 * input x; dx NULL: that is not needed. What x's `prepare` writes may be rows of x and of the dy. dx may be x. */
jpo_status jpo_modules_backward(jpo_pass *pass, int64_t layer, const jpo_module_gradient *gradients, int count,
                                float *dx, bool accumulate, const jpo_linear_rows *x, const jpo_saved_layer *saved,
                                jpo_error *err);
/* Whether a module in first..last is trained in this pass. */
bool jpo_modules_trained(const jpo_pass *pass, int64_t layer, jpo_tensor first, jpo_tensor last);

/* JPO_ERR_INTERRUPTED where the user asked to stop; asked between layers. */
jpo_status jpo_pass_poll(jpo_pass *pass, jpo_error *err);
/* x (T, H) = the first block's input. */
void jpo_pass_embed(jpo_pass *pass, float *x, const int32_t *tokens, const int32_t *positions, int64_t rows);

/* One block: saved->x (T, H) -> x_next (T, H). Attention plan and key target come from the caller, so that generation
 * runs the same code over its cache (target NULL: keys stay in saved->qkv). x_next NULL: as far as backward needs it
 * again, where the down projection is not adapted and its output not normed. */
jpo_status jpo_block_forward(jpo_pass *pass, int64_t layer, const jpo_saved_layer *saved, float *x_next, int64_t rows,
                             const int32_t *positions, const jpo_attention *attention, const jpo_kv_target *target,
                             jpo_error *err);
/* work.dx (T, H): gradient of the block's output -> of its input (left unfinished where need_dx is false). */
jpo_status jpo_block_backward(jpo_pass *pass, int64_t layer, const jpo_saved_layer *saved, bool need_dx,
                              jpo_error *err);

#endif

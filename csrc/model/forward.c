/* A pass over a forest: embedding, blocks, final norm and head at the rows that carry a loss; below it, its backward.
 */
#include <math.h>
#include <string.h>

#include "model/model.h"
#include "base/threads.h"
#include "ops/embedding.h"
#include "ops/rmsnorm.h"

static jpo_status poll(jpo_model *model, jpo_error *err) {
    if (jpo_compute_interrupted() || (model->poll && model->poll(model->poll_context)))
        return jpo_fail(err, JPO_ERR_INTERRUPTED, "interrupted");
    return JPO_OK;
}

/* dst (N, H) <- rows of src (R, H), and back: dst (R, H), zero elsewhere. */
static void gather_rows(float *dst, const float *src, const int32_t *row, int64_t n, int64_t hidden) {
    for (int64_t i = 0; i < n; i++) memcpy(dst + i * hidden, src + row[i] * hidden, (size_t)hidden * sizeof(float));
}

static jpo_head_batch head_batch(const jpo_model *model) {
    return (jpo_head_batch){model->plan.loss_rows, model->plan.entries, model->head_h, model->head_entry_row,
                            model->entry_target};
}

static jpo_status head_forward(jpo_model *model, double *logps, jpo_error *err) {
    const jpo_config *c = &model->config;
    int64_t n = model->plan.loss_rows;
    if (n == 0) return JPO_OK;
    double start = jpo_profile_start(&model->profile);
    gather_rows(model->head_h, model->final_x, model->loss_row, n, c->hidden);
    jpo_rmsnorm_forward(model->head_h, model->final_rstd, model->head_h, model->norm, n, c->hidden, c->eps);
    jpo_head_batch batch = head_batch(model);
    JPO_TRY(jpo_head_forward(logps, model->head_state, model->head_pw, &batch, &model->head, model->options.statistics,
                             &model->scratch, err));
    jpo_profile_add(&model->profile, JPO_OP_HEAD, start,
                    (model->head_pw ? 4.0 : 2.0) * (double)(n * c->hidden) * (double)c->vocab);
    return JPO_OK;
}

static jpo_status forward(jpo_model *model, double *logps, const jpo_forest *forest, const jpo_forward_options *options,
                          jpo_error *err) {
    JPO_TRY(jpo_forest_check(forest, &model->config, err));
    JPO_TRY(jpo_plan_apply(model, forest, options, err));
    int64_t layers = model->config.layers, rows = model->plan.rows;
    jpo_saved_layer saved = jpo_saved_get(model, 0);
    double start = jpo_profile_start(&model->profile);
    jpo_embedding_forward(saved.x, model->tokens, &model->embedding, rows);
    jpo_profile_add(&model->profile, JPO_OP_EMBEDDING, start, 0);
    for (int64_t layer = 0; layer < layers; layer++) {
        JPO_TRY(poll(model, err));
        jpo_saved_layer next = jpo_saved_get(model, layer + 1 < layers ? layer + 1 : layer);
        float *x_next = layer + 1 < layers ? next.x : model->final_x;
        JPO_TRY(jpo_block_forward(model, layer, &saved, x_next, rows, model->position, &model->attention, NULL, err));
        saved = next;
    }
    JPO_TRY(poll(model, err));
    JPO_TRY(head_forward(model, logps, err));
    if (jpo_compute_interrupted()) return jpo_fail(err, JPO_ERR_INTERRUPTED, "interrupted");
    model->kept = options->keep;
    return JPO_OK;
}

jpo_status jpo_model_forward(jpo_model *model, double *logps, const jpo_forest *forest,
                             const jpo_forward_options *options, jpo_error *err) {
    jpo_status status = forward(model, logps, forest, options, err);
    if (status != JPO_OK) model->final_x = NULL; /* a pass that ended early leaves no rows */
    return status;
}

/* work.dx (R, H) <- gradient of the last block's output. */
static jpo_status head_backward(jpo_model *model, const double *coefficients, jpo_error *err) {
    const jpo_config *c = &model->config;
    int64_t n = model->plan.loss_rows, hidden = c->hidden;
    float *dh = model->work.dh, *dx = model->work.dx; /* dh (N, H) fits: N <= R */
    memset(dx, 0, (size_t)(model->plan.rows * hidden) * sizeof(float));
    if (n == 0) return JPO_OK;
    double start = jpo_profile_start(&model->profile);
    jpo_head_batch batch = head_batch(model);
    if (model->full)
        JPO_TRY(jpo_head_backward_full(dh, model->dhead, model->head_tile, coefficients, model->head_state, &batch,
                                       &model->head, &model->scratch, err));
    else
        JPO_TRY(jpo_head_backward(dh, coefficients, model->head_state, model->head_pw, &batch, &model->head,
                                  &model->scratch, err));
    /* The norm's backward needs its input; work.h is free here, and so is head_h. */
    float *x = model->work.h, *dn = model->head_h;
    gather_rows(x, model->final_x, model->loss_row, n, hidden);
    memset(dn, 0, (size_t)(n * hidden) * sizeof(float));
    jpo_rmsnorm_backward(dn, model->dnorm, dh, x, model->norm, model->final_rstd, n, hidden);
    for (int64_t i = 0; i < n; i++)
        memcpy(dx + model->loss_row[i] * hidden, dn + i * hidden, (size_t)hidden * sizeof(float));
    jpo_profile_add(&model->profile, JPO_OP_HEAD_BACKWARD, start,
                    model->full ? 6.0 * (double)(n * hidden) * (double)c->vocab : 0);
    return JPO_OK;
}

/* The lowest layer whose weights are trained: backward ends there. */
static int64_t lowest_layer(const jpo_model *model) {
    if (model->full) return 0;
    for (int64_t i = 0; i < model->config.layers; i++)
        for (int m = 0; m < JPO_MODULES; m++)
            if (model->layer[i].module[m].lora.r) return i;
    return model->config.layers;
}

/* What the layer's forward left in the shared slab, again; the highest layer's is still there. An adapted down
 * projection needs its own input's product, so that the block runs to its end (into work.dh, which is free between
 * blocks). */
static jpo_status forward_again(jpo_model *model, int64_t layer, const jpo_saved_layer *saved, jpo_error *err) {
    if (!model->plan.recompute || layer + 1 == model->config.layers) return JPO_OK;
    const bool whole = model->options.adapter && model->layer[layer].module[JPO_DOWN].lora.r;
    return jpo_block_forward(model, layer, saved, whole ? model->work.dh : NULL, model->plan.rows, model->position,
                             &model->attention, NULL, err);
}

jpo_status jpo_model_backward(jpo_model *model, const double *coefficients, jpo_error *err) {
    if (!model->kept)
        return jpo_fail(err, JPO_ERR_VALUE, "backward needs a forward pass with keep=True directly before it");
    model->kept = false; /* saved gates are overwritten by their gradients */
    JPO_TRY(head_backward(model, coefficients, err));
    int64_t lowest = lowest_layer(model);
    for (int64_t layer = model->config.layers - 1; layer >= lowest; layer--) {
        JPO_TRY(poll(model, err));
        jpo_saved_layer saved = jpo_saved_get(model, layer);
        JPO_TRY(forward_again(model, layer, &saved, err));
        JPO_TRY(jpo_block_backward(model, layer, &saved, model->full || layer > lowest, err));
    }
    if (model->full)
        jpo_embedding_backward(model->dembedding, model->work.dx, model->tokens, model->plan.rows,
                               model->config.hidden);
    return JPO_OK;
}

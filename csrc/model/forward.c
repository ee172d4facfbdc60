/* A pass over a forest: embedding, blocks, final norm and head at the rows that carry a loss; below it, its backward.
 */
#include <math.h>
#include <string.h>

#include "base/size.h"
#include "base/threads.h"
#include "model/layer.h"
#include "ops/embedding.h"
#include "ops/group.h"
#include "ops/sgemm.h"

jpo_status jpo_pass_poll(jpo_pass *pass, jpo_error *err) {
    if (jpo_compute_interrupted() || (pass->poll && pass->poll(pass->poll_context)))
        return jpo_fail(err, JPO_ERR_INTERRUPTED, "interrupted");
    return JPO_OK;
}

/* dst (N, H) <- rows of src (T, H). */
static void gather_rows(float *dst, const float *src, const int32_t *row, int64_t n, int64_t hidden) {
    for (int64_t i = 0; i < n; i++) memcpy(dst + i * hidden, src + row[i] * hidden, (size_t)hidden * sizeof(float));
}

void jpo_pass_embed(jpo_pass *pass, float *x, const int32_t *tokens, const int32_t *positions, int64_t rows) {
    const jpo_config *c = &pass->model->config;
    const jpo_weights *weights = jpo_pass_weights(pass);
    const jpo_embedding embedding = {&weights->embedding, c->learned_positions ? &weights->positions : NULL,
                                     c->embedding_multiplier};
    double start = jpo_profile_start(&pass->profile);
    jpo_embedding_forward(x, tokens, positions, &embedding, rows);
    if (weights->embedding_lora.r) jpo_embedding_lora_forward(x, tokens, &weights->embedding_lora, &embedding, rows);
    jpo_profile_add(&pass->profile, JPO_OP_EMBEDDING, start, 0);
}

/* y = the last norm of x. stat may be NULL; y may be x. */
static void final_norm(const jpo_pass *pass, float *y, float *stat, const float *x, int64_t rows) {
    const jpo_config *c = &pass->model->config;
    const jpo_norm_shape shape = {c->norm, rows, 1, c->hidden, c->eps};
    jpo_norm_forward(y, c->hidden, stat, x, c->hidden, &jpo_pass_weights(pass)->final_norm, &shape);
}

/* The head's low-rank update; xa (n, r) = scale h A^T of its rows. r 0: there is none. */
static jpo_low_rank head_update(const jpo_pass *pass, float *xa) {
    const jpo_lora *lora = &jpo_pass_weights(pass)->head_lora;
    return (jpo_low_rank){xa, lora->a, lora->b, lora->r, lora->scale};
}

static jpo_status project_head(jpo_pass *pass, const float *h, int64_t n, jpo_error *err) {
    const jpo_low_rank update = head_update(pass, pass->head.xa);
    const jpo_weight *w = &jpo_pass_weights(pass)->head;
    const jpo_linear_output output = {.w = w, .update = &update};
    const jpo_linear_rows rows = {.x = h, .ldx = w->k};
    return update.r ? jpo_group_project(&output, 1, &rows, n, &pass->scratch, err) : JPO_OK;
}

static jpo_head_batch head_batch(const jpo_pass *pass) {
    return (jpo_head_batch){.rows = pass->plan.loss_rows,
                            .entries = pass->plan.entries,
                            .h = pass->head.h,
                            .row = pass->index.head_entry_row,
                            .target = pass->index.entry_target,
                            .softcap = pass->model->config.logits_softcap,
                            .update = head_update(pass, pass->head.xa),
                            .slope = pass->head.slope};
}

/* The head multiplies m h, m the multiplier of logits: then the logits are m h W^T. */
static jpo_status head_forward(jpo_pass *pass, double *logps, jpo_error *err) {
    const jpo_config *c = &pass->model->config;
    const jpo_head_memory *head = &pass->head;
    int64_t n = pass->plan.loss_rows;
    if (n == 0) return JPO_OK;
    double start = jpo_profile_start(&pass->profile);
    gather_rows(head->h, pass->final_x, pass->index.loss_row, n, c->hidden);
    final_norm(pass, head->h, head->stat, head->h, n);
    if (c->logits_multiplier != 1) jpo_scale(head->h, c->logits_multiplier, n * c->hidden);
    JPO_TRY(project_head(pass, head->h, n, err));
    const jpo_head_batch batch = head_batch(pass);
    JPO_TRY(jpo_head_forward(logps, head->state, head->pw, &batch, &jpo_pass_weights(pass)->head,
                             pass->options.statistics, &pass->scratch, err));
    jpo_profile_add(&pass->profile, JPO_OP_HEAD, start,
                    (head->pw ? 4.0 : 2.0) * (double)(n * c->hidden) * (double)c->vocab);
    return JPO_OK;
}

static jpo_status forward(jpo_pass *pass, double *logps, const jpo_forest *forest, const jpo_forward_options *options,
                          jpo_error *err) {
    const jpo_config *c = &pass->model->config;
    JPO_TRY(jpo_forest_check(forest, c, err));
    JPO_TRY(jpo_plan_apply(pass, forest, options, err));
    int64_t rows = pass->plan.rows, last = 0;
    for (int64_t row = 0; row < rows; row++) last = jpo_max64(last, pass->index.position[row]);
    JPO_TRY(jpo_angles_reserve(pass, last + 1, last + 1, err));
    jpo_saved_layer saved = jpo_saved_get(pass, 0);
    jpo_pass_embed(pass, saved.x, pass->index.tokens, pass->index.position, rows);
    for (int64_t layer = 0; layer < c->layers; layer++) {
        JPO_TRY(jpo_pass_poll(pass, err));
        jpo_saved_layer next = jpo_saved_get(pass, layer + 1 < c->layers ? layer + 1 : layer);
        float *x_next = layer + 1 < c->layers ? next.x : pass->final_x;
        JPO_TRY(
            jpo_block_forward(pass, layer, &saved, x_next, rows, pass->index.position, &pass->attention, NULL, err));
        saved = next;
    }
    JPO_TRY(jpo_pass_poll(pass, err));
    JPO_TRY(head_forward(pass, logps, err));
    if (jpo_compute_interrupted()) return jpo_fail(err, JPO_ERR_INTERRUPTED, "interrupted");
    pass->kept = options->keep;
    return JPO_OK;
}

jpo_status jpo_pass_forward(jpo_pass *pass, double *logps, const jpo_forest *forest, const jpo_forward_options *options,
                            jpo_error *err) {
    jpo_status status = forward(pass, logps, forest, options, err);
    if (status != JPO_OK) pass->final_x = NULL; /* a pass that ended early leaves no rows */
    return status;
}

/* Behind jpo_head_backward_full: the adapter's A, and dh (N, H) through it. */
static jpo_status head_lora_backward(jpo_pass *pass, float *dh, int64_t n, jpo_error *err) {
    const jpo_lora *lora = &jpo_pass_weights(pass)->head_lora;
    const int64_t hidden = pass->model->config.hidden;
    float *dxa = pass->head.dxa;
    jpo_scale(dxa, lora->scale, n * lora->r);
    float *scratch;
    JPO_TRY(jpo_sgemm_reserve(&pass->scratch, &scratch, err));
    jpo_sgemm_add_low_rank(dh, hidden, dxa, lora->r, lora->a, hidden, false, n, hidden, lora->r, 1, scratch);
    return jpo_linear_backward_weight(lora->da, dxa, lora->r, pass->head.h, hidden, lora->r, hidden, n,
                                      JPO_COMPUTE_FLOAT32, &pass->weight_scratch, err);
}

/* work.dx (T, H) <- gradient of the last block's output. */
static jpo_status head_backward(jpo_pass *pass, const double *coefficients, jpo_error *err) {
    const jpo_weights *weights = jpo_pass_weights(pass);
    const jpo_config *c = &pass->model->config;
    const jpo_head_memory *head = &pass->head;
    int64_t n = pass->plan.loss_rows, hidden = c->hidden;
    float *dh = pass->work.dh, *dx = pass->work.dx; /* dh (N, H) fits: N <= T */
    memset(dx, 0, (size_t)(pass->plan.rows * hidden) * sizeof(float));
    if (n == 0) return JPO_OK;
    double start = jpo_profile_start(&pass->profile);
    const jpo_head_batch batch = head_batch(pass);
    const jpo_head_gradient gradient = {weights->dhead, head->dxa, weights->head_lora.db};
    const bool trained = weights->dhead || weights->head_lora.r;
    if (trained)
        JPO_TRY(jpo_head_backward_full(dh, &gradient, head->tile, coefficients, head->state, &batch, &weights->head,
                                       &pass->scratch, &pass->weight_scratch, err));
    else
        JPO_TRY(
            jpo_head_backward(dh, coefficients, head->state, head->pw, &batch, &weights->head, &pass->scratch, err));
    if (weights->head_lora.r) JPO_TRY(head_lora_backward(pass, dh, n, err));
    if (c->logits_multiplier != 1) jpo_scale(dh, c->logits_multiplier, n * hidden);
    /* The norm's backward needs its input; work.h is free here, and so is head.h. */
    float *x = pass->work.h, *dn = head->h;
    gather_rows(x, pass->final_x, pass->index.loss_row, n, hidden);
    memset(dn, 0, (size_t)(n * hidden) * sizeof(float));
    const jpo_norm_shape shape = {c->norm, n, 1, hidden, c->eps};
    jpo_norm_backward(dn, hidden, dh, hidden, x, hidden, head->stat, &weights->final_norm, &shape);
    for (int64_t i = 0; i < n; i++)
        memcpy(dx + pass->index.loss_row[i] * hidden, dn + i * hidden, (size_t)hidden * sizeof(float));
    jpo_profile_add(&pass->profile, JPO_OP_HEAD_BACKWARD, start,
                    trained ? 6.0 * (double)(n * hidden) * (double)c->vocab : 0);
    return JPO_OK;
}

static bool norms_trained(const jpo_layer *layer) {
    for (int n = 0; n < JPO_LAYER_NORMS; n++)
        if (layer->norm[n].dw || layer->norm[n].db) return true;
    return false;
}

static bool tables_trained(const jpo_weights *weights) {
    return weights->dembedding || weights->dpositions || weights->embedding_lora.r;
}

/* The lowest layer whose weights are trained: backward ends there. */
static int64_t lowest_layer(const jpo_pass *pass) {
    const jpo_weights *weights = jpo_pass_weights(pass);
    int64_t i = 0;
    if (tables_trained(weights)) return 0;
    while (i < pass->model->config.layers && !norms_trained(weights->layer + i) &&
           !jpo_modules_trained(pass, i, (jpo_tensor)0, JPO_DOWN))
        i++;
    return i;
}

/* Whether anything needs the gradient of the layer's input, its first norm included. */
static bool input_needed(const jpo_pass *pass, int64_t layer, int64_t lowest) {
    const jpo_weights *weights = jpo_pass_weights(pass);
    return layer > lowest || tables_trained(weights) || norms_trained(weights->layer + layer);
}

/* What the layer's forward left in the shared slab, again; the highest layer's is still there. The block runs to its
 * end (into work.dh, which is free between blocks) where backward needs its last products: an adapted down
 * projection's x A^T, a norm's input, a parallel block's output projection. */
static jpo_status forward_again(jpo_pass *pass, int64_t layer, const jpo_saved_layer *saved, jpo_error *err) {
    const jpo_config *c = &pass->model->config;
    if (!pass->plan.recompute || layer + 1 == c->layers) return JPO_OK;
    const bool adapted = jpo_pass_weights(pass)->layer[layer].module[JPO_DOWN].lora.r;
    const bool whole = adapted || c->norm_place != JPO_BEFORE || c->parallel;
    return jpo_block_forward(pass, layer, saved, whole ? pass->work.dh : NULL, pass->plan.rows, pass->index.position,
                             &pass->attention, NULL, err);
}

static void embedding_backward(const jpo_pass *pass) {
    const jpo_weights *weights = jpo_pass_weights(pass);
    const jpo_config *c = &pass->model->config;
    if (weights->dembedding)
        jpo_embedding_backward(weights->dembedding, pass->work.dx, pass->index.tokens, c->embedding_multiplier,
                               pass->plan.rows, c->hidden);
    const jpo_embedding embedding = {&weights->embedding, NULL, c->embedding_multiplier};
    if (weights->embedding_lora.r)
        jpo_embedding_lora_backward(pass->work.dx, pass->index.tokens, &weights->embedding_lora, &embedding,
                                    pass->plan.rows);
    if (weights->dpositions)
        jpo_embedding_backward(weights->dpositions, pass->work.dx, pass->index.position, 1, pass->plan.rows, c->hidden);
}

jpo_status jpo_pass_backward(jpo_pass *pass, const double *coefficients, jpo_error *err) {
    if (!pass->kept)
        return jpo_fail(err, JPO_ERR_VALUE, "backward needs a forward pass with keep=True directly before it");
    pass->kept = false; /* saved gates are overwritten by their gradients */
    JPO_TRY(head_backward(pass, coefficients, err));
    int64_t lowest = lowest_layer(pass);
    for (int64_t layer = pass->model->config.layers - 1; layer >= lowest; layer--) {
        JPO_TRY(jpo_pass_poll(pass, err));
        jpo_saved_layer saved = jpo_saved_get(pass, layer);
        JPO_TRY(forward_again(pass, layer, &saved, err));
        JPO_TRY(jpo_block_backward(pass, layer, &saved, input_needed(pass, layer, lowest), err));
    }
    embedding_backward(pass);
    return JPO_OK;
}

/* ---- what a pass leaves to be read ---- */

void jpo_pass_statistics(const jpo_pass *pass, double *entropy, double *mean_logit, double *log_p2, bool *hit) {
    for (int64_t e = 0; e < pass->plan.entries; e++) {
        const jpo_head_row *s = pass->head.state + pass->index.head_entry_row[e];
        entropy[e] = s->max + log(s->sum) - s->sum_pz / s->sum;
        mean_logit[e] = s->sum_z / (double)pass->model->config.vocab;
        log_p2[e] = log(s->sum_p2) - 2 * log(s->sum);
        hit[e] = s->best == pass->index.entry_target[e];
    }
}

int64_t jpo_pass_rows(const jpo_pass *pass) { return pass->final_x ? pass->plan.rows : 0; }

void jpo_pass_hidden(const jpo_pass *pass, float *out, int64_t row) {
    final_norm(pass, out, NULL, pass->final_x + row * pass->model->config.hidden, 1);
}

jpo_status jpo_pass_logits(jpo_pass *pass, float *logits, float *h, int64_t rows, jpo_error *err) {
    const jpo_config *c = &pass->model->config;
    double start = jpo_profile_start(&pass->profile);
    if (c->logits_multiplier != 1) jpo_scale(h, c->logits_multiplier, rows * c->hidden);
    size_t bytes;
    const jpo_lora *lora = &jpo_pass_weights(pass)->head_lora;
    if (!jpo_size_mul3((size_t)rows, (size_t)lora->r, sizeof(float), &bytes))
        return jpo_fail(err, JPO_ERR_MEMORY, "too many rows: %lld", (long long)rows);
    JPO_TRY(jpo_block_reserve(&pass->decode_block, bytes, err)); /* attention's plan is no longer needed */
    const jpo_low_rank update = head_update(pass, pass->decode_block.data);
    const jpo_linear_output output = {logits, c->vocab, &jpo_pass_weights(pass)->head, false,
                                      update.r ? &update : NULL};
    const jpo_linear_rows in = {.x = h, .ldx = c->hidden};
    JPO_TRY(jpo_linear_forward_group(&output, 1, &in, rows, &pass->scratch, err));
    if (c->logits_softcap > 0) jpo_softcap(logits, c->logits_softcap, rows * c->vocab);
    jpo_profile_add(&pass->profile, JPO_OP_HEAD, start, 2.0 * (double)(rows * c->hidden) * (double)c->vocab);
    return JPO_OK;
}

/* One decoder block, forward and directly under it backward:
 * x_mid = x + O attention(rope(Q norm1(x)), rope(K ..), V ..);  x_next = x_mid + DOWN(silu(GATE norm2(x_mid)) * UP ..).
 */
#include <string.h>

#include "base/size.h"
#include "base/threads.h"
#include "model/model.h"
#include "ops/pointwise.h"
#include "ops/rmsnorm.h"

/* Where a module's saved x A^T stands: the ranks of the modules before it, R rows each. */
static float *saved_xa(const jpo_layer *layer, float *xa, jpo_module module, int64_t rows) {
    for (int m = 0; m < (int)module; m++) xa += rows * layer->module[m].lora.r;
    return xa;
}

/* The adapter of this module in this pass; dropout only in training, its mask different for each module. */
static jpo_lora pass_lora(const jpo_model *model, int64_t layer, jpo_module module) {
    jpo_lora lora = model->layer[layer].module[module].lora;
    if (!model->options.train) lora.dropout = 0;
    lora.seed = model->options.seed * 0x9e3779b97f4a7c15ULL + (uint64_t)(layer * JPO_MODULES + module) + 1;
    return lora;
}

/* y (R, N; ldy) = or += W x + bias + adapter. */
static jpo_status module_forward(jpo_model *model, int64_t layer, jpo_module module, float *y, int64_t ldy,
                                 const float *x, const jpo_saved_layer *saved, int64_t rows, bool accumulate,
                                 jpo_error *err) {
    const jpo_linear *linear = &model->layer[layer].module[module];
    int64_t n = linear->weight.n, k = linear->weight.k;
    const bool adapted = model->options.adapter && linear->lora.r;
    jpo_addition plus;
    if (adapted) {
        double start = jpo_profile_start(&model->profile);
        jpo_lora lora = pass_lora(model, layer, module);
        plus = jpo_lora_forward(saved_xa(&model->layer[layer], saved->xa, module, rows), x, model->work.dropped, &lora,
                                rows, k);
        jpo_profile_add(&model->profile, JPO_OP_LORA, start, 2.0 * (double)(rows * lora.r) * (double)k);
    }
    double start = jpo_profile_start(&model->profile);
    JPO_TRY(jpo_linear_forward(y, ldy, x, k, &linear->weight, rows, accumulate, adapted ? &plus : NULL, &model->scratch,
                               err));
    if (linear->bias) jpo_bias_forward(y, ldy, linear->bias, rows, n);
    jpo_profile_add(&model->profile, JPO_OP_LINEAR, start,
                    2.0 * (double)(rows * n) * (double)(k + (adapted ? linear->lora.r : 0)));
    return JPO_OK;
}

/* Gradients of a module's own weights: weight, bias, adapter. x: the module's input. work.dxa is left for
 * module_backward_input. */
static jpo_status module_backward_weights(jpo_model *model, int64_t layer, jpo_module module, const float *dy,
                                          int64_t lddy, const float *x, const jpo_saved_layer *saved, jpo_error *err) {
    const jpo_linear *linear = &model->layer[layer].module[module];
    int64_t n = linear->weight.n, k = linear->weight.k, rows = model->plan.rows;
    double start = jpo_profile_start(&model->profile);
    if (linear->dweight)
        JPO_TRY(jpo_linear_backward_weight(linear->dweight, dy, lddy, x, k, n, k, rows, &model->scratch, err));
    if (linear->dbias) jpo_bias_backward(linear->dbias, dy, lddy, rows, n);
    if (linear->dweight)
        jpo_profile_add(&model->profile, JPO_OP_LINEAR_WEIGHT, start, 2.0 * (double)(rows * n) * (double)k);
    if (model->options.adapter && linear->lora.r) {
        start = jpo_profile_start(&model->profile);
        jpo_lora lora = pass_lora(model, layer, module);
        jpo_lora_backward_weights(model->work.dxa, dy, lddy, saved_xa(&model->layer[layer], saved->xa, module, rows), x,
                                  model->work.dropped, &lora, rows, n, k);
        jpo_profile_add(&model->profile, JPO_OP_LORA_BACKWARD, start, 4.0 * (double)(rows * lora.r) * (double)(n + k));
    }
    return JPO_OK;
}

/* dx (R, K) = or += dy W + adapter's part; after module_backward_weights of the same module. */
static jpo_status module_backward_input(jpo_model *model, int64_t layer, jpo_module module, float *dx, const float *dy,
                                        int64_t lddy, bool accumulate, jpo_error *err) {
    const jpo_linear *linear = &model->layer[layer].module[module];
    int64_t rows = model->plan.rows;
    const bool adapted = model->options.adapter && linear->lora.r;
    const jpo_lora lora = pass_lora(model, layer, module);
    const bool together = adapted && lora.dropout == 0;
    const jpo_addition plus = jpo_lora_backward_addition(model->work.dxa, &lora, linear->weight.k);
    double start = jpo_profile_start(&model->profile);
    JPO_TRY(jpo_linear_backward_input(dx, linear->weight.k, dy, lddy, &linear->weight, rows, accumulate,
                                      together ? &plus : NULL, &model->scratch, err));
    jpo_profile_add(&model->profile, JPO_OP_LINEAR_INPUT, start,
                    2.0 * (double)(rows * linear->weight.k) * (double)(linear->weight.n + (together ? lora.r : 0)));
    if (adapted && !together) {
        start = jpo_profile_start(&model->profile);
        jpo_lora_backward_input(dx, model->work.dxa, model->work.dropped, &lora, rows, linear->weight.k);
        jpo_profile_add(&model->profile, JPO_OP_LORA_BACKWARD, start,
                        2.0 * (double)(rows * lora.r) * (double)linear->weight.k);
    }
    return JPO_OK;
}

/* Both; dx NULL: the input needs no gradient. dx must not be x. */
static jpo_status module_backward(jpo_model *model, int64_t layer, jpo_module module, float *dx, const float *dy,
                                  int64_t lddy, const float *x, const jpo_saved_layer *saved, bool accumulate,
                                  jpo_error *err) {
    JPO_TRY(module_backward_weights(model, layer, module, dy, lddy, x, saved, err));
    return dx ? module_backward_input(model, layer, module, dx, dy, lddy, accumulate, err) : JPO_OK;
}

typedef struct {
    const jpo_kv_target *target;
    const float *qkv;
    int64_t layer, q, kv, rows;
} store_job;

static void store_task(void *context, int64_t row, int thread) {
    (void)thread;
    store_job *job = context;
    const float *k = job->qkv + row * (job->q + 2 * job->kv) + job->q;
    size_t to = (size_t)((job->layer * job->target->capacity + job->target->kv_row[row]) * job->kv);
    memcpy(job->target->k + to, k, (size_t)job->kv * sizeof(float));
    memcpy(job->target->v + to, k + job->kv, (size_t)job->kv * sizeof(float));
}

static jpo_status attend(jpo_model *model, int64_t layer, const jpo_saved_layer *saved, int64_t rows,
                         const jpo_attention *attention, const jpo_kv_target *target, jpo_error *err) {
    const jpo_config *c = &model->config;
    int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim, ld = q + 2 * kv;
    float *lse = model->options.keep ? saved->lse : NULL;
    if (!target)
        return jpo_attention_forward(saved->attn, lse, saved->qkv, ld, saved->qkv + q, saved->qkv + q + kv, ld,
                                     attention, &model->scratch, err);
    store_job job = {target, saved->qkv, layer, q, kv, rows};
    jpo_parallel(rows, store_task, &job);
    size_t base = (size_t)(layer * target->capacity * kv);
    return jpo_attention_forward(saved->attn, lse, saved->qkv, ld, target->k + base, target->v + base, kv, attention,
                                 &model->scratch, err);
}

/* An operator without a matrix product, under the profile's clock. */
#define TIMED(op, call)                                    \
    do {                                                   \
        double start = jpo_profile_start(&model->profile); \
        call;                                              \
        jpo_profile_add(&model->profile, op, start, 0);    \
    } while (0)

jpo_status jpo_block_forward(jpo_model *model, int64_t layer, const jpo_saved_layer *saved, float *x_next, int64_t rows,
                             const int32_t *positions, const jpo_attention *attention, const jpo_kv_target *target,
                             jpo_error *err) {
    const jpo_config *c = &model->config;
    const jpo_layer *weights = model->layer + layer;
    int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim, ld = q + 2 * kv, half = c->head_dim / 2;
    float *h = model->work.h, *act = model->work.act;
    TIMED(JPO_OP_NORM, jpo_rmsnorm_forward(h, saved->rstd1, saved->x, weights->norm1, rows, c->hidden, c->eps));
    JPO_TRY(module_forward(model, layer, JPO_Q, saved->qkv, ld, h, saved, rows, false, err));
    JPO_TRY(module_forward(model, layer, JPO_K, saved->qkv + q, ld, h, saved, rows, false, err));
    JPO_TRY(module_forward(model, layer, JPO_V, saved->qkv + q + kv, ld, h, saved, rows, false, err));
    TIMED(JPO_OP_ROPE,
          jpo_rope(saved->qkv, ld, c->heads + c->kv_heads, half, model->cosine, model->sine, positions, rows, 1));
    double start = jpo_profile_start(&model->profile);
    JPO_TRY(attend(model, layer, saved, rows, attention, target, err));
    if (model->profile.on)
        jpo_profile_add(&model->profile, JPO_OP_ATTENTION, start, 4.0 * (double)q * jpo_attention_pairs(attention));
    memcpy(saved->x_mid, saved->x, (size_t)(rows * c->hidden) * sizeof(float));
    JPO_TRY(module_forward(model, layer, JPO_O, saved->x_mid, c->hidden, saved->attn, saved, rows, true, err));

    TIMED(JPO_OP_NORM, jpo_rmsnorm_forward(h, saved->rstd2, saved->x_mid, weights->norm2, rows, c->hidden, c->eps));
    JPO_TRY(module_forward(model, layer, JPO_GATE, saved->gate, c->intermediate, h, saved, rows, false, err));
    JPO_TRY(module_forward(model, layer, JPO_UP, saved->up, c->intermediate, h, saved, rows, false, err));
    if (!x_next) return JPO_OK;
    TIMED(JPO_OP_SWIGLU, jpo_swiglu_forward(act, saved->gate, saved->up, rows * c->intermediate));
    memcpy(x_next, saved->x_mid, (size_t)(rows * c->hidden) * sizeof(float));
    return module_forward(model, layer, JPO_DOWN, x_next, c->hidden, act, saved, rows, true, err);
}

static bool adapted(const jpo_model *model, int64_t layer, jpo_module first, jpo_module last) {
    for (int m = (int)first; m <= (int)last; m++) {
        const jpo_linear *linear = &model->layer[layer].module[m];
        if (linear->dweight || (model->options.adapter && linear->lora.r)) return true;
    }
    return false;
}

/* dx: gradient of x_next -> of x_mid. */
static jpo_status mlp_backward(jpo_model *model, int64_t layer, const jpo_saved_layer *saved, jpo_error *err) {
    const jpo_config *c = &model->config;
    const jpo_layer *weights = model->layer + layer;
    int64_t rows = model->plan.rows, inner = c->intermediate;
    jpo_work *w = &model->work;
    if (adapted(model, layer, JPO_DOWN, JPO_DOWN))
        TIMED(JPO_OP_SWIGLU, jpo_swiglu_forward(w->act, saved->gate, saved->up, rows * inner));
    JPO_TRY(module_backward_weights(model, layer, JPO_DOWN, w->dx, c->hidden, w->act, saved, err));
    JPO_TRY(module_backward_input(model, layer, JPO_DOWN, w->act, w->dx, c->hidden, false, err)); /* act is done with */
    TIMED(JPO_OP_SWIGLU, jpo_swiglu_backward(saved->gate, saved->up, w->act, rows * inner));
    if (adapted(model, layer, JPO_GATE, JPO_UP) || weights->dnorm2)
        TIMED(JPO_OP_NORM, jpo_rmsnorm_forward(w->h, NULL, saved->x_mid, weights->norm2, rows, c->hidden, c->eps));
    JPO_TRY(module_backward(model, layer, JPO_GATE, w->dh, saved->gate, inner, w->h, saved, false, err));
    JPO_TRY(module_backward(model, layer, JPO_UP, w->dh, saved->up, inner, w->h, saved, true, err));
    TIMED(JPO_OP_NORM, jpo_rmsnorm_backward(w->dx, weights->dnorm2, w->dh, saved->x_mid, weights->norm2, saved->rstd2,
                                            rows, c->hidden));
    return JPO_OK;
}

/* dx: gradient of x_mid -> of x. */
static jpo_status attention_backward(jpo_model *model, int64_t layer, const jpo_saved_layer *saved, bool need_dx,
                                     jpo_error *err) {
    const jpo_config *c = &model->config;
    const jpo_layer *weights = model->layer + layer;
    int64_t rows = model->plan.rows, q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim, ld = q + 2 * kv;
    jpo_work *w = &model->work;
    if (!need_dx && !adapted(model, layer, JPO_Q, JPO_V)) /* nothing below needs a gradient */
        return module_backward(model, layer, JPO_O, NULL, w->dx, c->hidden, saved->attn, saved, false, err);
    JPO_TRY(module_backward(model, layer, JPO_O, w->dh, w->dx, c->hidden, saved->attn, saved, false, err));
    double start = jpo_profile_start(&model->profile);
    JPO_TRY(jpo_attention_backward(w->dqkv, w->dqkv + q, w->dqkv + q + kv, ld, w->dh, saved->attn, saved->lse,
                                   saved->qkv, saved->qkv + q, saved->qkv + q + kv, ld, &model->attention,
                                   &model->scratch, err));
    if (model->profile.on)
        jpo_profile_add(&model->profile, JPO_OP_ATTENTION_BACKWARD, start,
                        10.0 * (double)q * jpo_attention_pairs(&model->attention));
    TIMED(JPO_OP_ROPE, jpo_rope(w->dqkv, ld, c->heads + c->kv_heads, c->head_dim / 2, model->cosine, model->sine,
                                model->position, rows, -1));
    if (adapted(model, layer, JPO_Q, JPO_V) || weights->dnorm1)
        TIMED(JPO_OP_NORM, jpo_rmsnorm_forward(w->h, NULL, saved->x, weights->norm1, rows, c->hidden, c->eps));
    float *dh = need_dx ? w->dh : NULL;
    JPO_TRY(module_backward(model, layer, JPO_Q, dh, w->dqkv, ld, w->h, saved, false, err));
    JPO_TRY(module_backward(model, layer, JPO_K, dh, w->dqkv + q, ld, w->h, saved, true, err));
    JPO_TRY(module_backward(model, layer, JPO_V, dh, w->dqkv + q + kv, ld, w->h, saved, true, err));
    if (need_dx)
        TIMED(JPO_OP_NORM, jpo_rmsnorm_backward(w->dx, weights->dnorm1, w->dh, saved->x, weights->norm1, saved->rstd1,
                                                rows, c->hidden));
    return JPO_OK;
}

jpo_status jpo_block_backward(jpo_model *model, int64_t layer, const jpo_saved_layer *saved, bool need_dx,
                              jpo_error *err) {
    if (!need_dx && !adapted(model, layer, JPO_Q, JPO_UP)) { /* only the last product is adapted */
        TIMED(JPO_OP_SWIGLU, jpo_swiglu_forward(model->work.act, saved->gate, saved->up,
                                                model->plan.rows * model->config.intermediate));
        return module_backward(model, layer, JPO_DOWN, NULL, model->work.dx, model->config.hidden, model->work.act,
                               saved, false, err);
    }
    JPO_TRY(mlp_backward(model, layer, saved, err));
    return attention_backward(model, layer, saved, need_dx, err);
}

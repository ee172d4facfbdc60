/* One decoder block, forward and directly under it backward. With the norms n1, n2 before and m1, m2 after (each may be
 * absent), the residual multiplier r and, where the configuration says so, both branches from the same h:
 *   sequential: x_mid = x + r m1(O attention(..n1(x))),  x_next = x_mid + r m2(DOWN f(..n2(x_mid)))
 *   parallel:   h = n1(x),  x_next = x + r O attention(..h) + r DOWN f(..h)
 * attention takes q and k normed (each head or the whole row) and rotated; f is silu or GELU of GATE h times UP h, or
 * of UP h alone. */
#include <string.h>

#include "base/size.h"
#include "base/threads.h"
#include "model/layer.h"
#include "ops/quantize.h"

/* What the functions of a block share. */
typedef struct {
    jpo_pass *pass;
    const jpo_config *c;
    const jpo_layer *weights;
    const jpo_saved_layer *saved;
    int64_t layer, rows, q, kv, ld; /* widths of q and k, of a row of qkv */
} block;

static block block_of(jpo_pass *pass, int64_t layer, const jpo_saved_layer *saved, int64_t rows) {
    const jpo_config *c = &pass->model->config;
    int64_t q = jpo_query_width(c), kv = jpo_key_width(c);
    return (block){pass, c, jpo_pass_weights(pass)->layer + layer, saved, layer, rows, q, kv, q + 2 * kv};
}

/* An operator without a matrix product, under the profile's clock. */
#define TIMED(pass, op, call)                               \
    do {                                                    \
        double began = jpo_profile_start(&(pass)->profile); \
        call;                                               \
        jpo_profile_add(&(pass)->profile, op, began, 0);    \
    } while (0)

/* ---- norms ---- */

static const jpo_norm *norm_of(const block *b, jpo_tensor tensor) { return jpo_layer_norm(b->weights, tensor); }

static jpo_norm_shape row_shape(const block *b) {
    return (jpo_norm_shape){b->c->norm, b->rows, 1, b->c->hidden, b->c->eps};
}

/* y = norm(x) over whole rows, or x itself where this model has no such norm; statistics may be NULL. */
static const float *norm_rows(const block *b, jpo_tensor tensor, float *y, float *stat, const float *x) {
    const jpo_norm_shape shape = row_shape(b);
    const int64_t h = b->c->hidden;
    if (!norm_of(b, tensor)->w) return x;
    TIMED(b->pass, JPO_OP_NORM, jpo_norm_forward(y, h, stat, x, h, norm_of(b, tensor), &shape));
    return y;
}

/* The same on the way into the products that read y, 32 rows at a time (ops/linear.h). */
typedef struct {
    const block *b;
    jpo_tensor tensor;
    float *y, *stat;
    const float *x;
} prepared;

static void prepare_norm(const void *context, int64_t row0, int64_t count) {
    const prepared *p = context;
    const int64_t h = p->b->c->hidden;
    jpo_norm_shape shape = row_shape(p->b);
    shape.rows = count;
    jpo_norm_forward(p->y + row0 * h, h, p->stat ? p->stat + row0 * JPO_NORM_STATISTICS : NULL, p->x + row0 * h, h,
                     norm_of(p->b, p->tensor), &shape);
}

/* Rows of norm(x), or of x itself; `from` lives as long as the rows. */
static jpo_linear_rows normed_rows(const block *b, prepared *from, jpo_tensor tensor, float *y, float *stat,
                                   const float *x) {
    const bool normed = norm_of(b, tensor)->w;
    *from = (prepared){b, tensor, y, stat, x};
    return (jpo_linear_rows){normed ? y : x, b->c->hidden, normed ? prepare_norm : NULL, from};
}

/* dx += through the norm from dy. */
static void norm_rows_backward(const block *b, jpo_tensor tensor, float *dx, const float *dy, const float *x,
                               const float *stat) {
    const jpo_norm_shape shape = row_shape(b);
    const int64_t h = b->c->hidden;
    TIMED(b->pass, JPO_OP_NORM, jpo_norm_backward(dx, h, dy, h, x, h, stat, norm_of(b, tensor), &shape));
}

/* The norm of q (or of k) by heads or over the whole width. */
static jpo_norm_shape head_shape(const block *b, jpo_tensor tensor) {
    int64_t heads = tensor == JPO_Q_NORM ? b->c->heads : b->c->kv_heads;
    bool each = b->c->qk_norm == JPO_QK_HEAD;
    return (jpo_norm_shape){b->c->norm, b->rows, each ? heads : 1, each ? b->c->head_dim : heads * b->c->head_dim,
                            b->c->eps};
}

static void norm_qk(const block *b) {
    const jpo_norm_shape q = head_shape(b, JPO_Q_NORM), k = head_shape(b, JPO_K_NORM);
    const jpo_saved_layer *s = b->saved;
    const int64_t raw = b->q + b->kv;
    jpo_norm_forward(s->qkv, b->ld, s->q_stat, s->qk_raw, raw, norm_of(b, JPO_Q_NORM), &q);
    jpo_norm_forward(s->qkv + b->q, b->ld, s->k_stat, s->qk_raw + b->q, raw, norm_of(b, JPO_K_NORM), &k);
}

/* work.dqk_raw = the gradient of q and k before their norms. */
static void norm_qk_backward(const block *b) {
    const jpo_norm_shape q = head_shape(b, JPO_Q_NORM), k = head_shape(b, JPO_K_NORM);
    const jpo_saved_layer *s = b->saved;
    const jpo_work *w = &b->pass->work;
    const int64_t raw = b->q + b->kv;
    memset(w->dqk_raw, 0, (size_t)(b->rows * raw) * sizeof(float));
    jpo_norm_backward(w->dqk_raw, raw, w->dqkv, b->ld, s->qk_raw, raw, s->q_stat, norm_of(b, JPO_Q_NORM), &q);
    jpo_norm_backward(w->dqk_raw + b->q, raw, w->dqkv + b->q, b->ld, s->qk_raw + b->q, raw, s->k_stat,
                      norm_of(b, JPO_K_NORM), &k);
}

static void rotate(const block *b, float *qkv, const int32_t *positions, float sign) {
    const int64_t index = b->c->layer[b->layer].rotary;
    if (index < 0) return;
    const jpo_rotary *rotary = b->c->rotary + index;
    const float *cosine = b->pass->angles[index];
    const jpo_rotary_table table = {.heads = b->c->heads + b->c->kv_heads,
                                    .head_dim = b->c->head_dim,
                                    .half = rotary->half,
                                    .pairs = rotary->pairs,
                                    .cosine = cosine,
                                    .sine = cosine + b->pass->positions * rotary->half};
    TIMED(b->pass, JPO_OP_ROPE, jpo_rope(qkv, b->ld, &table, positions, b->rows, sign));
}

/* ---- attention ---- */

typedef struct {
    const jpo_kv_target *target;
    const float *qkv;
    int64_t layer, q, kv;
} store_job;

static void store_task(void *context, int64_t row, int thread) {
    (void)thread;
    store_job *job = context;
    const jpo_kv_target *to = job->target;
    const float *k = job->qkv + row * (job->q + 2 * job->kv) + job->q;
    const size_t at = (size_t)(job->layer * to->capacity + to->kv_row[row]) * jpo_dtype_row_bytes(to->dtype, job->kv);
    jpo_quantize_row(to->k + at, k, to->dtype, job->kv);
    jpo_quantize_row(to->v + at, k + job->kv, to->dtype, job->kv);
}

/* The pass' attention plan as this layer sees it. */
static jpo_attention layer_attention(const block *b, const jpo_attention *attention) {
    jpo_attention at = *attention;
    at.window = b->c->layer[b->layer].window;
    at.compute = b->weights->module[JPO_Q].weight.compute;
    return at;
}

static jpo_status attend(const block *b, const jpo_attention *plan, const jpo_kv_target *target, jpo_error *err) {
    const jpo_attention at = layer_attention(b, plan);
    const jpo_saved_layer *s = b->saved;
    jpo_pass *pass = b->pass;
    float *lse = pass->options.keep ? s->lse : NULL;
    jpo_key_rows keys = {s->qkv + b->q, s->qkv + b->q + b->kv, JPO_F32, b->ld};
    double start = jpo_profile_start(&pass->profile);
    if (target) {
        store_job job = {target, s->qkv, b->layer, b->q, b->kv};
        jpo_parallel(b->rows, store_task, &job);
        const size_t base = (size_t)(b->layer * target->capacity) * jpo_dtype_row_bytes(target->dtype, b->kv);
        keys = (jpo_key_rows){target->k + base, target->v + base, target->dtype, b->kv};
    }
    JPO_TRY(jpo_attention_forward(s->attn, lse, s->qkv, b->ld, &keys, &at, &pass->scratch, err));
    if (pass->profile.on)
        jpo_profile_add(&pass->profile, JPO_OP_ATTENTION, start, 4.0 * (double)b->q * jpo_attention_pairs(&at));
    return JPO_OK;
}

/* saved->attn = attention of the normed rows h. */
static jpo_status attention_forward(const block *b, const jpo_linear_rows *h, const int32_t *positions,
                                    const jpo_attention *plan, const jpo_kv_target *target, jpo_error *err) {
    const jpo_saved_layer *s = b->saved;
    jpo_pass *pass = b->pass;
    const bool raw = b->c->qk_norm != JPO_QK_NONE;
    float *q = raw ? s->qk_raw : s->qkv;
    int64_t ld = raw ? b->q + b->kv : b->ld;
    const jpo_module_output outputs[] = {{JPO_Q, q, ld}, {JPO_K, q + b->q, ld}, {JPO_V, s->qkv + b->q + b->kv, b->ld}};
    JPO_TRY(jpo_modules_forward(pass, b->layer, outputs, 3, h, s, b->rows, false, err));
    if (raw) TIMED(pass, JPO_OP_NORM, norm_qk(b));
    rotate(b, s->qkv, positions, 1);
    return attend(b, plan, target, err);
}

/* Gradients of work.dattn through attention, norms and rotation: work.dqkv, and q and k before their norms at *dq. */
static jpo_status attention_core_backward(const block *b, float **dq, int64_t *lddq, jpo_error *err) {
    jpo_pass *pass = b->pass;
    const jpo_saved_layer *s = b->saved;
    const jpo_work *w = &pass->work;
    const jpo_attention at = layer_attention(b, &pass->attention);
    double start = jpo_profile_start(&pass->profile);
    JPO_TRY(jpo_attention_backward(w->dqkv, w->dqkv + b->q, w->dqkv + b->q + b->kv, b->ld, w->dattn, s->attn, s->lse,
                                   s->qkv, s->qkv + b->q, s->qkv + b->q + b->kv, b->ld, &at, &pass->scratch, err));
    if (pass->profile.on)
        jpo_profile_add(&pass->profile, JPO_OP_ATTENTION_BACKWARD, start,
                        10.0 * (double)b->q * jpo_attention_pairs(&at));
    rotate(b, w->dqkv, pass->index.position, -1);
    const bool raw = b->c->qk_norm != JPO_QK_NONE;
    if (raw) TIMED(pass, JPO_OP_NORM, norm_qk_backward(b));
    *dq = raw ? w->dqk_raw : w->dqkv;
    *lddq = raw ? b->q + b->kv : b->ld;
    return JPO_OK;
}

/* ---- a branch's last product and its way into the residual stream ---- */

/* y (T, H) = x, beside the rows that the product added to it reads: by the same tasks, 32 rows at a time. */
typedef struct {
    const jpo_linear_rows *input;
    float *y;
    const float *x;
    int64_t width;
} copied;

static void prepare_copy(const void *context, int64_t row0, int64_t count) {
    const copied *p = context;
    if (p->input->prepare) p->input->prepare(p->input->context, row0, count);
    memcpy(p->y + row0 * p->width, p->x + row0 * p->width, (size_t)(count * p->width) * sizeof(float));
}

/* y = x + r norm(module(input)); y may be x. Without norm and factor the product is added as it is computed. */
static jpo_status branch_forward(const block *b, jpo_tensor module, jpo_tensor norm, float *y, const float *x,
                                 const jpo_linear_rows *input, float *out, float *stat, jpo_error *err) {
    jpo_pass *pass = b->pass;
    const int64_t h = b->c->hidden, count = b->rows * h;
    if (!norm_of(b, norm)->w && b->c->residual_multiplier == 1) {
        const copied copy = {input, y, x, h};
        const jpo_linear_rows both = {input->x, input->ldx, prepare_copy, &copy};
        const jpo_module_output sum = {module, y, h};
        return jpo_modules_forward(pass, b->layer, &sum, 1, y == x ? input : &both, b->saved, b->rows, true, err);
    }
    const jpo_module_output branch = {module, norm_of(b, norm)->w ? out : pass->work.branch, h};
    JPO_TRY(jpo_modules_forward(pass, b->layer, &branch, 1, input, b->saved, b->rows, false, err));
    const float *normed = norm_rows(b, norm, pass->work.branch, stat, branch.y);
    jpo_residual(y, x, normed, b->c->residual_multiplier, count);
    return JPO_OK;
}

/* The gradient of the branch's last product: work.dx times r through the norm, in work.branch where that changes it. */
static const float *branch_backward(const block *b, jpo_tensor norm, const float *out, const float *stat) {
    const jpo_work *w = &b->pass->work;
    const int64_t count = b->rows * b->c->hidden;
    const float r = b->c->residual_multiplier;
    if (!norm_of(b, norm)->w && r == 1) return w->dx;
    if (!norm_of(b, norm)->w) {
        memcpy(w->branch, w->dx, (size_t)count * sizeof(float));
        jpo_scale(w->branch, r, count);
        return w->branch;
    }
    memset(w->branch, 0, (size_t)count * sizeof(float)); /* here r is 1: jpo_config_check */
    norm_rows_backward(b, norm, w->branch, w->dx, out, stat);
    return w->branch;
}

/* ---- the whole block ---- */

/* work.act = f(gate) * up, or f(up), for these rows. */
static void prepare_activation(const void *context, int64_t row0, int64_t count) {
    const block *b = context;
    const jpo_saved_layer *s = b->saved;
    const int64_t inner = b->c->intermediate, at = row0 * inner;
    jpo_activation_forward(b->pass->work.act + at, (b->c->gated ? s->gate : s->up) + at,
                           b->c->gated ? s->up + at : NULL, b->c->activation, count * inner);
}

static jpo_linear_rows activated_rows(const block *b) {
    return (jpo_linear_rows){b->pass->work.act, b->c->intermediate, prepare_activation, b};
}

/* saved->gate and up of the normed rows h. */
static jpo_status mlp_forward(const block *b, const jpo_linear_rows *h, jpo_error *err) {
    const jpo_saved_layer *s = b->saved;
    const jpo_module_output outputs[] = {{JPO_GATE, s->gate, b->c->intermediate}, {JPO_UP, s->up, b->c->intermediate}};
    const int first = b->c->gated ? 0 : 1;
    return jpo_modules_forward(b->pass, b->layer, outputs + first, 2 - first, h, s, b->rows, false, err);
}

jpo_status jpo_block_forward(jpo_pass *pass, int64_t layer, const jpo_saved_layer *saved, float *x_next, int64_t rows,
                             const int32_t *positions, const jpo_attention *attention, const jpo_kv_target *target,
                             jpo_error *err) {
    const block b = block_of(pass, layer, saved, rows);
    const jpo_work *w = &pass->work;
    const bool parallel = b.c->parallel;
    float *x_mid = parallel ? x_next : saved->x_mid;
    prepared from;
    jpo_linear_rows h = normed_rows(&b, &from, JPO_ATTENTION_NORM, w->h, saved->norm1, saved->x);
    const jpo_linear_rows attn = {.x = saved->attn, .ldx = b.q};
    JPO_TRY(attention_forward(&b, &h, positions, attention, target, err));
    h.prepare = NULL; /* both branches read it where they are parallel; attn may not stand in its place */
    if (x_mid)
        JPO_TRY(branch_forward(&b, JPO_O, JPO_ATTENTION_OUT_NORM, x_mid, saved->x, &attn, saved->attn_out,
                               saved->attn_out_stat, err));
    if (!parallel) h = normed_rows(&b, &from, JPO_MLP_NORM, w->h, saved->norm2, saved->x_mid);
    JPO_TRY(mlp_forward(&b, &h, err));
    if (!x_next) return JPO_OK;
    const jpo_linear_rows act = activated_rows(&b);
    return branch_forward(&b, JPO_DOWN, JPO_MLP_OUT_NORM, x_next, x_mid, &act, saved->mlp_out, saved->mlp_out_stat,
                          err);
}

/* The gradient of a branch's input h: added straight to work.dx where h is the residual stream itself. */
typedef struct {
    float *to;
    bool accumulate; /* from the first product on */
} input_gradient;

static input_gradient open_input(const block *b, jpo_tensor norm) {
    const jpo_work *w = &b->pass->work;
    return norm_of(b, norm)->w ? (input_gradient){w->dh, false} : (input_gradient){w->dx, true};
}

/* Rows of the MLP's backward: gate and up become their gradients, from the gradient of the activation in work.act;
 * beside them h, where gate's and up's weights are trained. */
static void prepare_mlp_backward(const void *context, int64_t row0, int64_t count) {
    const prepared *p = context;
    const block *b = p->b;
    const jpo_saved_layer *s = b->saved;
    const int64_t inner = b->c->intermediate, at = row0 * inner;
    jpo_activation_backward((b->c->gated ? s->gate : s->up) + at, b->c->gated ? s->up + at : NULL,
                            b->pass->work.act + at, b->c->activation, count * inner);
    if (p->y) prepare_norm(p, row0, count);
}

/* MLP: work.dx -> gradients of its weights, and the gradient of h at `in`. x: what h was normed from. */
static jpo_status mlp_backward(const block *b, jpo_tensor norm, const float *x, input_gradient in, jpo_error *err) {
    jpo_pass *pass = b->pass;
    const jpo_saved_layer *s = b->saved;
    const jpo_work *w = &pass->work;
    const int64_t inner = b->c->intermediate, layer = b->layer;
    const jpo_module_gradient down = {JPO_DOWN, branch_backward(b, JPO_MLP_OUT_NORM, s->mlp_out, s->mlp_out_stat),
                                      b->c->hidden};
    jpo_linear_rows act = activated_rows(b);
    if (!jpo_modules_trained(pass, layer, JPO_DOWN, JPO_DOWN)) act.prepare = NULL;
    JPO_TRY(jpo_modules_backward(pass, layer, &down, 1, w->act, false, &act, s, err));
    prepared from;
    jpo_linear_rows h = normed_rows(b, &from, norm, w->h, NULL, x);
    if (!h.prepare || !jpo_modules_trained(pass, layer, JPO_GATE, JPO_UP)) from.y = NULL;
    h.prepare = prepare_mlp_backward;
    const jpo_module_gradient gradients[] = {{JPO_GATE, s->gate, inner}, {JPO_UP, s->up, inner}};
    const int first = b->c->gated ? 0 : 1;
    return jpo_modules_backward(pass, layer, gradients + first, 2 - first, in.to, in.accumulate, &h, s, err);
}

/* Attention: work.dx (of the branch's sum) -> gradients of its weights, and of h at `in`, where `need_input`. */
static jpo_status attention_backward(const block *b, input_gradient in, bool need_input, jpo_error *err) {
    jpo_pass *pass = b->pass;
    const jpo_saved_layer *s = b->saved;
    const jpo_work *w = &pass->work;
    const int64_t layer = b->layer;
    const jpo_module_gradient o = {JPO_O, branch_backward(b, JPO_ATTENTION_OUT_NORM, s->attn_out, s->attn_out_stat),
                                   b->c->hidden};
    const jpo_linear_rows attn = {.x = s->attn, .ldx = b->q};
    const bool below = jpo_modules_trained(pass, layer, JPO_Q, JPO_V), more = need_input || below;
    JPO_TRY(jpo_modules_backward(pass, layer, &o, 1, more ? w->dattn : NULL, false, &attn, s, err));
    if (!more) return JPO_OK; /* nothing below needs a gradient */
    float *dq;
    int64_t lddq;
    JPO_TRY(attention_core_backward(b, &dq, &lddq, err));
    prepared from;
    jpo_linear_rows h = normed_rows(b, &from, JPO_ATTENTION_NORM, w->h, NULL, s->x);
    if (!below) h.prepare = NULL;
    const jpo_module_gradient gradients[] = {
        {JPO_Q, dq, lddq}, {JPO_K, dq + b->q, lddq}, {JPO_V, w->dqkv + b->q + b->kv, b->ld}};
    return jpo_modules_backward(pass, layer, gradients, 3, need_input ? in.to : NULL, in.accumulate, &h, s, err);
}

static jpo_status sequential_backward(const block *b, bool need_dx, jpo_error *err) {
    const jpo_saved_layer *s = b->saved;
    const jpo_work *w = &b->pass->work;
    input_gradient in = open_input(b, JPO_MLP_NORM);
    JPO_TRY(mlp_backward(b, JPO_MLP_NORM, s->x_mid, in, err));
    if (!in.accumulate) norm_rows_backward(b, JPO_MLP_NORM, w->dx, w->dh, s->x_mid, s->norm2);
    in = open_input(b, JPO_ATTENTION_NORM);
    JPO_TRY(attention_backward(b, in, need_dx, err));
    if (need_dx && !in.accumulate) norm_rows_backward(b, JPO_ATTENTION_NORM, w->dx, w->dh, s->x, s->norm1);
    return JPO_OK;
}

/* Both branches read h = norm(x): their gradients meet in work.dh before the one norm. */
static jpo_status parallel_backward(const block *b, bool need_dx, jpo_error *err) {
    const jpo_saved_layer *s = b->saved;
    const jpo_work *w = &b->pass->work;
    input_gradient in = open_input(b, JPO_ATTENTION_NORM);
    JPO_TRY(mlp_backward(b, JPO_ATTENTION_NORM, s->x, in, err));
    in.accumulate = true;
    JPO_TRY(attention_backward(b, in, need_dx, err));
    if (need_dx) norm_rows_backward(b, JPO_ATTENTION_NORM, w->dx, w->dh, s->x, s->norm1);
    return JPO_OK;
}

jpo_status jpo_block_backward(jpo_pass *pass, int64_t layer, const jpo_saved_layer *saved, bool need_dx,
                              jpo_error *err) {
    const block b = block_of(pass, layer, saved, pass->plan.rows);
    if (!need_dx && !jpo_modules_trained(pass, layer, JPO_Q, JPO_UP)) { /* only the last product is adapted */
        const jpo_module_gradient down = {
            JPO_DOWN, branch_backward(&b, JPO_MLP_OUT_NORM, saved->mlp_out, saved->mlp_out_stat), b.c->hidden};
        const jpo_linear_rows act = activated_rows(&b);
        return jpo_modules_backward(pass, layer, &down, 1, NULL, false, &act, saved, err);
    }
    return b.c->parallel ? parallel_backward(&b, need_dx, err) : sequential_backward(&b, need_dx, err);
}

/* Linear modules with their biases and adapters, forward and directly under it backward. Where the rows of an adapted
 * weight have magnitudes (ops/dora.h), u = W x + s B A x is kept for their gradient, and y = factor u. Dropout is seen
 * by u alone, d = dropout(x): y = factor (W d + s B A d) + W (x - d), as in PEFT; such modules run one by one. */
#include "model/layer.h"

#include "base/mix.h"

/* Where a module's saved x A^T stands: the ranks of the modules before it, T rows each. */
static float *saved_xa(const jpo_layer *layer, float *xa, jpo_tensor module, int64_t rows) {
    for (int m = 0; m < (int)module; m++) xa += rows * layer->module[m].lora.r;
    return xa;
}

/* Where a module's part of `products` stands, T rows of the outputs that have magnitudes: behind the modules before it.
 */
static float *product_of(const jpo_layer *layer, float *products, jpo_tensor module, int64_t rows) {
    for (int m = 0; m < (int)module; m++)
        if (layer->module[m].lora.magnitude) products += rows * layer->module[m].weight.n;
    return products;
}

/* The adapter of this module in this pass; dropout only in training, one mask for modules that share their input's A.
 */
static jpo_lora pass_lora(const jpo_pass *pass, int64_t layer, jpo_tensor module) {
    const jpo_linear *linear = &jpo_pass_weights(pass)->layer[layer].module[module];
    jpo_lora lora = linear->lora;
    lora.mask_key = pass->index.mask_key;
    if (!lora.mask_key) lora.dropout = 0;
    lora.seed = jpo_mix64(pass->options.seed + JPO_GOLDEN64) +
                JPO_GOLDEN64 * (uint64_t)(layer * JPO_MODULES + linear->mask) + 1;
    return lora;
}

/* Several modules of one input. */
typedef struct {
    jpo_pass *pass;
    const jpo_layer *weights;
    const jpo_saved_layer *saved;
    const jpo_linear_rows *x;
    int64_t rows, k;
    int count;
    const jpo_linear *linear[JPO_LINEAR_GROUP];
    jpo_lora lora[JPO_LINEAR_GROUP]; /* r 0: not adapted */
    float *xa[JPO_LINEAR_GROUP];     /* (T, r) */
    jpo_low_rank update[JPO_LINEAR_GROUP];
    float *product[JPO_LINEAR_GROUP];       /* (T, N): before the magnitudes; NULL: none */
    jpo_row_norms *norms[JPO_LINEAR_GROUP]; /* of its rows */
    bool drops;                             /* some module's adapter has dropout */
} modules;

static modules modules_of(jpo_pass *pass, int64_t layer, const jpo_saved_layer *saved, const jpo_linear_rows *x,
                          int64_t rows) {
    return (modules){
        .pass = pass, .weights = jpo_pass_weights(pass)->layer + layer, .saved = saved, .x = x, .rows = rows};
}

static void add_module(modules *all, int64_t layer, jpo_tensor module) {
    const int i = all->count++;
    all->linear[i] = all->weights->module + module;
    all->lora[i] = pass_lora(all->pass, layer, module);
    all->xa[i] = saved_xa(all->weights, all->saved->xa, module, all->rows);
    all->k = all->linear[i]->weight.k;
    all->norms[i] = all->pass->norms + layer * JPO_MODULES + module;
    if (all->lora[i].magnitude) all->product[i] = product_of(all->weights, all->saved->product, module, all->rows);
    all->drops |= all->lora[i].r && all->lora[i].dropout > 0;
}

/* Multiplications and additions of the modules' products: 2 T N K, and of their adapters. */
static double products_flop(const modules *all) {
    double flop = 0;
    for (int i = 0; i < all->count; i++) {
        const jpo_weight *w = &all->linear[i]->weight;
        flop +=
            2.0 * (double)all->rows * ((double)w->n * (double)w->k + (double)all->lora[i].r * (double)(w->n + w->k));
    }
    return flop;
}

/* Whether a module has magnitudes and dropout, which no group of products serves. */
static bool drops_with_magnitudes(const jpo_pass *pass, int64_t layer, jpo_tensor module) {
    const jpo_lora lora = pass_lora(pass, layer, module);
    return lora.magnitude && lora.dropout > 0;
}

/* The norms of the rows that have magnitudes, for the adapter as it is now. */
static jpo_status update_norms(const modules *all, jpo_error *err) {
    for (int i = 0; i < all->count; i++)
        if (all->lora[i].magnitude)
            JPO_TRY(jpo_row_norms_update(all->norms[i], &all->linear[i]->weight, &all->lora[i],
                                         all->pass->options.decode, &all->pass->scratch, err));
    return JPO_OK;
}

/* Adapters with dropout read rows of their own: x has to be there before the products begin. */
static jpo_status forward_dropped(modules *all, jpo_error *err) {
    const double start = jpo_profile_start(&all->pass->profile);
    double flop = 0;
    for (int i = 0; i < all->count; i++) {
        const jpo_lora *lora = &all->lora[i];
        if (!lora->r) continue;
        JPO_TRY(jpo_lora_forward(&all->update[i], all->xa[i], all->x->x, all->pass->work.dropped, lora, all->rows,
                                 all->k, &all->pass->scratch, err));
        if (lora->dropout > 0) flop += 2.0 * (double)(all->rows * lora->r) * (double)all->k;
    }
    if (all->drops) jpo_profile_add(&all->pass->profile, JPO_OP_LORA, start, flop);
    return JPO_OK;
}

static jpo_status forward_group(jpo_pass *pass, int64_t layer, const jpo_module_output *outputs, int count,
                                const jpo_linear_rows *x, const jpo_saved_layer *saved, int64_t rows, bool accumulate,
                                jpo_error *err) {
    modules all = modules_of(pass, layer, saved, x, rows);
    jpo_linear_output products[JPO_LINEAR_GROUP];
    jpo_linear_rows in = *x;
    for (int i = 0; i < count; i++) add_module(&all, layer, outputs[i].module);
    if (all.drops) {
        jpo_linear_prepare(x, rows);
        in.prepare = NULL;
    }
    JPO_TRY(forward_dropped(&all, err));
    JPO_TRY(update_norms(&all, err));
    for (int i = 0; i < count; i++) {
        const jpo_weight *w = &all.linear[i]->weight;
        float *product = all.product[i];
        products[i] = (jpo_linear_output){product ? product : outputs[i].y, product ? w->n : outputs[i].ldy, w,
                                          !product && accumulate, all.lora[i].r ? &all.update[i] : NULL};
    }
    const double start = jpo_profile_start(&pass->profile);
    JPO_TRY(jpo_linear_forward_group(products, count, &in, rows, &pass->scratch, err));
    for (int i = 0; i < count; i++) {
        const int64_t n = all.linear[i]->weight.n;
        if (all.product[i])
            jpo_dora_forward(outputs[i].y, outputs[i].ldy, all.product[i], all.norms[i]->factor, rows, n, accumulate);
        if (all.linear[i]->bias) jpo_bias_forward(outputs[i].y, outputs[i].ldy, all.linear[i]->bias, rows, n);
    }
    jpo_profile_add(&pass->profile, JPO_OP_LINEAR, start, products_flop(&all));
    return JPO_OK;
}

/* One module with magnitudes and dropout; x is there. */
static jpo_status forward_masked(jpo_pass *pass, int64_t layer, const jpo_module_output *out, const float *x,
                                 const jpo_saved_layer *saved, int64_t rows, bool accumulate, jpo_error *err) {
    const jpo_linear_rows in = {.x = x};
    modules all = modules_of(pass, layer, saved, &in, rows);
    add_module(&all, layer, out->module);
    const jpo_weight *w = &all.linear[0]->weight;
    float *dropped = pass->work.dropped;
    const double start = jpo_profile_start(&pass->profile);
    jpo_low_rank update;
    JPO_TRY(jpo_lora_forward(&update, all.xa[0], x, dropped, &all.lora[0], rows, w->k, &pass->scratch, err));
    const jpo_linear_output product = {all.product[0], w->n, w, false, &update};
    const jpo_linear_rows seen = {.x = dropped, .ldx = w->k};
    JPO_TRY(update_norms(&all, err));
    JPO_TRY(jpo_linear_forward_group(&product, 1, &seen, rows, &pass->scratch, err));
    jpo_dora_forward(out->y, out->ldy, all.product[0], all.norms[0]->factor, rows, w->n, accumulate);
    jpo_scale(dropped, -1, rows * w->k);
    jpo_residual(dropped, dropped, x, 1, rows * w->k); /* x - d: what the path does not see */
    JPO_TRY(jpo_linear_forward(out->y, out->ldy, dropped, w->k, w, rows, true, &pass->scratch, err));
    if (all.linear[0]->bias) jpo_bias_forward(out->y, out->ldy, all.linear[0]->bias, rows, w->n);
    jpo_profile_add(&pass->profile, JPO_OP_LINEAR, start, 2 * products_flop(&all));
    return JPO_OK;
}

jpo_status jpo_modules_forward(jpo_pass *pass, int64_t layer, const jpo_module_output *outputs, int count,
                               const jpo_linear_rows *x, const jpo_saved_layer *saved, int64_t rows, bool accumulate,
                               jpo_error *err) {
    bool masked = false;
    for (int i = 0; i < count; i++) masked |= drops_with_magnitudes(pass, layer, outputs[i].module);
    if (!masked) return forward_group(pass, layer, outputs, count, x, saved, rows, accumulate, err);
    const jpo_linear_rows there = {.x = x->x, .ldx = x->ldx};
    jpo_linear_prepare(x, rows);
    for (int i = 0; i < count; i++)
        if (drops_with_magnitudes(pass, layer, outputs[i].module))
            JPO_TRY(forward_masked(pass, layer, &outputs[i], x->x, saved, rows, accumulate, err));
        else
            JPO_TRY(forward_group(pass, layer, &outputs[i], 1, &there, saved, rows, accumulate, err));
    return JPO_OK;
}

/* ---- backward ---- */

typedef struct {
    const modules *all;
    const jpo_module_gradient *gradients;
    jpo_lora_gradient *adapters; /* (adapted) */
    int adapted;
} weights_hook;

static jpo_status backward_full(const weights_hook *hook, jpo_error *err) {
    const modules *all = hook->all;
    jpo_pass *pass = all->pass;
    for (int i = 0; i < all->count; i++) {
        const jpo_linear *linear = all->linear[i];
        const jpo_module_gradient *g = &hook->gradients[i];
        const int64_t n = linear->weight.n;
        const double start = jpo_profile_start(&pass->profile);
        if (linear->dweight)
            JPO_TRY(jpo_linear_backward_weight(linear->dweight, g->dy, g->lddy, all->x->x, all->k, n, all->k, all->rows,
                                               linear->weight.compute, &pass->weight_scratch, err));
        if (linear->dbias) jpo_bias_backward(linear->dbias, g->dy, g->lddy, all->rows, n);
        if (linear->dweight)
            jpo_profile_add(&pass->profile, JPO_OP_LINEAR_WEIGHT, start,
                            2.0 * (double)(all->rows * n) * (double)all->k);
    }
    return JPO_OK;
}

/* Gradients of the modules' own weights, between the conversion of dy and the product that may overwrite x. */
static jpo_status backward_weights(const void *context, jpo_error *err) {
    const weights_hook *hook = context;
    const modules *all = hook->all;
    jpo_pass *pass = all->pass;
    JPO_TRY(backward_full(hook, err));
    if (!hook->adapted) return JPO_OK;
    const double start = jpo_profile_start(&pass->profile);
    double flop = 0;
    jpo_lora_backward_weights(hook->adapters, hook->adapted, all->x->x, pass->work.dropped, all->rows, all->k);
    for (int i = 0; i < hook->adapted; i++)
        flop += 2.0 * (double)(all->rows * hook->adapters[i].lora->r) * (double)(hook->adapters[i].n + all->k);
    jpo_profile_add(&pass->profile, JPO_OP_LORA_BACKWARD, start, flop);
    return JPO_OK;
}

/* With dropout: dx += the adapters' part through their masks. */
static jpo_status backward_dropped(const modules *all, float *dx, jpo_error *err) {
    const double start = jpo_profile_start(&all->pass->profile);
    double flop = 0;
    for (int i = 0; i < all->count; i++) {
        const jpo_lora *lora = &all->lora[i];
        if (!lora->r || lora->dropout == 0) continue;
        JPO_TRY(jpo_lora_backward_input(dx, all->update[i].u, all->pass->work.dropped, lora, all->rows, all->k, false,
                                        &all->pass->scratch, err));
        flop += 2.0 * (double)(all->rows * lora->r) * (double)all->k;
    }
    jpo_profile_add(&all->pass->profile, JPO_OP_LORA_BACKWARD, start, flop);
    return JPO_OK;
}

/* The gradient of a module's product: dy itself, or where it has magnitudes (whose gradient is added) its own. */
static const float *product_gradient(const modules *all, int i, const jpo_module_gradient *g, int64_t *ld) {
    const jpo_lora *lora = &all->lora[i];
    const int64_t n = all->linear[i]->weight.n;
    *ld = g->lddy;
    if (!lora->magnitude) return g->dy;
    float *du = product_of(all->weights, all->pass->work.dproduct, g->module, all->rows);
    jpo_dora_backward(lora->dmagnitude, du, g->dy, g->lddy, all->product[i], all->norms[i], all->rows, n);
    *ld = n;
    return du;
}

static bool magnitudes_among(const jpo_pass *pass, int64_t layer, const jpo_module_gradient *gradients, int count) {
    for (int i = 0; i < count; i++)
        if (jpo_pass_weights(pass)->layer[layer].module[gradients[i].module].lora.magnitude) return true;
    return false;
}

static jpo_status backward_group(jpo_pass *pass, int64_t layer, const jpo_module_gradient *gradients, int count,
                                 float *dx, bool accumulate, const jpo_linear_rows *x, const jpo_saved_layer *saved,
                                 jpo_error *err) {
    modules all = modules_of(pass, layer, saved, x, pass->plan.rows);
    jpo_linear_input inputs[JPO_LINEAR_GROUP];
    jpo_lora_gradient adapters[JPO_LINEAR_GROUP];
    weights_hook weights = {&all, gradients, adapters, 0};
    for (int i = 0; i < count; i++) {
        const jpo_module_gradient *g = &gradients[i];
        add_module(&all, layer, g->module);
        const jpo_weight *w = &all.linear[i]->weight;
        float *dxa = saved_xa(all.weights, pass->work.dxa, g->module, all.rows);
        all.update[i] = jpo_lora_backward(dxa, &all.lora[i]);
        int64_t ld;
        const float *dy = product_gradient(&all, i, g, &ld);
        inputs[i] = (jpo_linear_input){dy, ld, w, all.lora[i].r ? &all.update[i] : NULL};
        if (all.lora[i].r)
            adapters[weights.adapted++] = (jpo_lora_gradient){&all.lora[i], dxa, all.xa[i], dy, ld, w->n};
    }
    const jpo_linear_hook hook = {backward_weights, &weights};
    const double start = jpo_profile_start(&pass->profile), before = jpo_profile_total(&pass->profile);
    if (!dx && !weights.adapted) {
        jpo_linear_prepare(x, all.rows);
        return backward_weights(&weights, err);
    }
    JPO_TRY(jpo_linear_backward_group(dx, all.k, accumulate, inputs, count, x, &hook, all.rows, &pass->scratch, err));
    jpo_profile_add(&pass->profile, JPO_OP_LINEAR_INPUT, start + jpo_profile_total(&pass->profile) - before,
                    dx ? products_flop(&all) : 0);
    if (dx && all.drops) JPO_TRY(backward_dropped(&all, dx, err));
    return JPO_OK;
}

/* One module with magnitudes and dropout: dx = or += dy W + mask((du - dy) W + dxa A); x and dy are there. */
static jpo_status backward_masked(jpo_pass *pass, int64_t layer, const jpo_module_gradient *g, float *dx,
                                  bool accumulate, const jpo_linear_rows *x, const jpo_saved_layer *saved,
                                  jpo_error *err) {
    modules all = modules_of(pass, layer, saved, x, pass->plan.rows);
    add_module(&all, layer, g->module);
    const jpo_weight *w = &all.linear[0]->weight;
    float *du = product_of(all.weights, pass->work.dproduct, g->module, all.rows), *part = pass->work.dropped;
    int64_t ld;
    const jpo_lora_gradient adapter = {&all.lora[0], saved_xa(all.weights, pass->work.dxa, g->module, all.rows),
                                       all.xa[0],    product_gradient(&all, 0, g, &ld),
                                       w->n,         w->n};
    all.update[0] = jpo_lora_backward(saved_xa(all.weights, pass->work.dxa, g->module, all.rows), &all.lora[0]);
    const jpo_linear_input input = {du, w->n, w, &all.update[0]};
    const jpo_linear_rows there = {.x = x->x, .ldx = x->ldx};
    JPO_TRY(jpo_linear_backward_group(NULL, w->k, false, &input, 1, &there, NULL, all.rows, &pass->scratch, err));
    jpo_lora_backward_weights(&adapter, 1, x->x, part, all.rows, w->k);
    if (all.linear[0]->dbias) jpo_bias_backward(all.linear[0]->dbias, g->dy, g->lddy, all.rows, w->n);
    if (!dx) return JPO_OK;
    jpo_dora_difference(du, g->dy, g->lddy, all.rows, w->n);
    JPO_TRY(jpo_linear_backward_input(part, w->k, du, w->n, w, all.rows, false, &pass->scratch, err));
    JPO_TRY(jpo_linear_backward_input(dx, w->k, g->dy, g->lddy, w, all.rows, accumulate, &pass->scratch, err));
    JPO_TRY(
        jpo_lora_backward_input(dx, all.update[0].u, part, &all.lora[0], all.rows, w->k, true, &pass->scratch, err));
    return JPO_OK;
}

jpo_status jpo_modules_backward(jpo_pass *pass, int64_t layer, const jpo_module_gradient *gradients, int count,
                                float *dx, bool accumulate, const jpo_linear_rows *x, const jpo_saved_layer *saved,
                                jpo_error *err) {
    bool masked = false;
    for (int i = 0; i < count; i++) masked |= drops_with_magnitudes(pass, layer, gradients[i].module);
    if (!magnitudes_among(pass, layer, gradients, count))
        return backward_group(pass, layer, gradients, count, dx, accumulate, x, saved, err);
    const jpo_linear_rows there = {.x = x->x, .ldx = x->ldx};
    jpo_linear_prepare(x, pass->plan.rows); /* the products' own gradients need dy before the group begins */
    if (!masked) return backward_group(pass, layer, gradients, count, dx, accumulate, &there, saved, err);
    for (int i = 0; i < count; i++, accumulate = true)
        if (drops_with_magnitudes(pass, layer, gradients[i].module))
            JPO_TRY(backward_masked(pass, layer, &gradients[i], dx, accumulate, &there, saved, err));
        else
            JPO_TRY(backward_group(pass, layer, &gradients[i], 1, dx, accumulate, &there, saved, err));
    return JPO_OK;
}

bool jpo_modules_trained(const jpo_pass *pass, int64_t layer, jpo_tensor first, jpo_tensor last) {
    for (int m = (int)first; m <= (int)last; m++) {
        const jpo_linear *linear = &jpo_pass_weights(pass)->layer[layer].module[m];
        if (linear->dweight || linear->dbias || linear->lora.r) return true;
    }
    return false;
}

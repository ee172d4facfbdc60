/* A linear module with its bias and adapter, forward and directly under it backward. */
#include "model/layer.h"

#include "base/mix.h"

/* Where a module's saved x A^T stands: the ranks of the modules before it, T rows each. */
static float *saved_xa(const jpo_layer *layer, float *xa, jpo_tensor module, int64_t rows) {
    for (int m = 0; m < (int)module; m++) xa += rows * layer->module[m].lora.r;
    return xa;
}

/* The adapter of this module in this pass; dropout only in training, one mask for modules that share their input's A.
 */
static jpo_lora pass_lora(const jpo_pass *pass, int64_t layer, jpo_tensor module) {
    const jpo_linear *linear = &pass->model->layer[layer].module[module];
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
    bool drops; /* some module's adapter has dropout */
} modules;

static modules modules_of(jpo_pass *pass, int64_t layer, const jpo_saved_layer *saved, const jpo_linear_rows *x,
                          int64_t rows) {
    return (modules){.pass = pass, .weights = pass->model->layer + layer, .saved = saved, .x = x, .rows = rows};
}

static void add_module(modules *all, int64_t layer, jpo_tensor module) {
    const int i = all->count++;
    all->linear[i] = all->weights->module + module;
    all->lora[i] = pass_lora(all->pass, layer, module);
    if (!all->pass->options.adapter) all->lora[i].r = 0;
    all->xa[i] = saved_xa(all->weights, all->saved->xa, module, all->rows);
    all->k = all->linear[i]->weight.k;
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

/* Adapters with dropout read rows of their own: x has to be there before the products begin. */
static void forward_dropped(modules *all) {
    const double start = jpo_profile_start(&all->pass->profile);
    double flop = 0;
    for (int i = 0; i < all->count; i++) {
        const jpo_lora *lora = &all->lora[i];
        if (!lora->r) continue;
        all->update[i] = jpo_lora_forward(all->xa[i], all->x->x, all->pass->work.dropped, lora, all->rows, all->k);
        if (lora->dropout > 0) flop += 2.0 * (double)(all->rows * lora->r) * (double)all->k;
    }
    if (all->drops) jpo_profile_add(&all->pass->profile, JPO_OP_LORA, start, flop);
}

jpo_status jpo_modules_forward(jpo_pass *pass, int64_t layer, const jpo_module_output *outputs, int count,
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
    forward_dropped(&all);
    for (int i = 0; i < count; i++)
        products[i] = (jpo_linear_output){outputs[i].y, outputs[i].ldy, &all.linear[i]->weight, accumulate,
                                          all.lora[i].r ? &all.update[i] : NULL};
    const double start = jpo_profile_start(&pass->profile);
    JPO_TRY(jpo_linear_forward_group(products, count, &in, rows, &pass->scratch, err));
    for (int i = 0; i < count; i++)
        if (all.linear[i]->bias)
            jpo_bias_forward(outputs[i].y, outputs[i].ldy, all.linear[i]->bias, rows, all.linear[i]->weight.n);
    jpo_profile_add(&pass->profile, JPO_OP_LINEAR, start, products_flop(&all));
    return JPO_OK;
}

/* ---- backward ---- */

typedef struct {
    const modules *all;
    const jpo_module_gradient *gradients;
    jpo_lora_gradient *adapters; /* (adapted) */
    int adapted;
} weights_hook;

static void backward_full(const weights_hook *hook) {
    const modules *all = hook->all;
    jpo_pass *pass = all->pass;
    for (int i = 0; i < all->count; i++) {
        const jpo_linear *linear = all->linear[i];
        const jpo_module_gradient *g = &hook->gradients[i];
        const int64_t n = linear->weight.n;
        const double start = jpo_profile_start(&pass->profile);
        if (linear->dweight)
            jpo_linear_backward_weight(linear->dweight, g->dy, g->lddy, all->x->x, all->k, n, all->k, all->rows);
        if (linear->dbias) jpo_bias_backward(linear->dbias, g->dy, g->lddy, all->rows, n);
        if (linear->dweight)
            jpo_profile_add(&pass->profile, JPO_OP_LINEAR_WEIGHT, start,
                            2.0 * (double)(all->rows * n) * (double)all->k);
    }
}

/* Gradients of the modules' own weights, between the conversion of dy and the product that may overwrite x. */
static void backward_weights(const void *context) {
    const weights_hook *hook = context;
    const modules *all = hook->all;
    jpo_pass *pass = all->pass;
    backward_full(hook);
    if (!hook->adapted) return;
    const double start = jpo_profile_start(&pass->profile);
    double flop = 0;
    jpo_lora_backward_weights(hook->adapters, hook->adapted, all->x->x, pass->work.dropped, all->rows, all->k);
    for (int i = 0; i < hook->adapted; i++)
        flop += 2.0 * (double)(all->rows * hook->adapters[i].lora->r) * (double)(hook->adapters[i].n + all->k);
    jpo_profile_add(&pass->profile, JPO_OP_LORA_BACKWARD, start, flop);
}

/* With dropout: dx += the adapters' part through their masks. */
static void backward_dropped(const modules *all, float *dx) {
    const double start = jpo_profile_start(&all->pass->profile);
    double flop = 0;
    for (int i = 0; i < all->count; i++) {
        const jpo_lora *lora = &all->lora[i];
        if (!lora->r || lora->dropout == 0) continue;
        jpo_lora_backward_input(dx, all->update[i].u, all->pass->work.dropped, lora, all->rows, all->k);
        flop += 2.0 * (double)(all->rows * lora->r) * (double)all->k;
    }
    jpo_profile_add(&all->pass->profile, JPO_OP_LORA_BACKWARD, start, flop);
}

jpo_status jpo_modules_backward(jpo_pass *pass, int64_t layer, const jpo_module_gradient *gradients, int count,
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
        inputs[i] = (jpo_linear_input){g->dy, g->lddy, w, all.lora[i].r ? &all.update[i] : NULL};
        if (all.lora[i].r)
            adapters[weights.adapted++] = (jpo_lora_gradient){&all.lora[i], dxa, all.xa[i], g->dy, g->lddy, w->n};
    }
    const jpo_linear_hook hook = {backward_weights, &weights};
    const double start = jpo_profile_start(&pass->profile), before = jpo_profile_total(&pass->profile);
    if (!dx && !weights.adapted) {
        jpo_linear_prepare(x, all.rows);
        backward_weights(&weights);
        return JPO_OK;
    }
    JPO_TRY(jpo_linear_backward_group(dx, all.k, accumulate, inputs, count, x, &hook, all.rows, &pass->scratch, err));
    jpo_profile_add(&pass->profile, JPO_OP_LINEAR_INPUT, start + jpo_profile_total(&pass->profile) - before,
                    dx ? products_flop(&all) : 0);
    if (dx && all.drops) backward_dropped(&all, dx);
    return JPO_OK;
}

bool jpo_modules_trained(const jpo_pass *pass, int64_t layer, jpo_tensor first, jpo_tensor last) {
    for (int m = (int)first; m <= (int)last; m++) {
        const jpo_linear *linear = &pass->model->layer[layer].module[m];
        if (linear->dweight || linear->dbias || (pass->options.adapter && linear->lora.r)) return true;
    }
    return false;
}

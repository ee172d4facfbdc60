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

jpo_status jpo_module_forward(jpo_pass *pass, int64_t layer, jpo_tensor module, float *y, int64_t ldy, const float *x,
                              const jpo_saved_layer *saved, int64_t rows, bool accumulate, jpo_error *err) {
    const jpo_layer *weights = pass->model->layer + layer;
    const jpo_linear *linear = weights->module + module;
    int64_t n = linear->weight.n, k = linear->weight.k;
    const bool adapted = pass->options.adapter && linear->lora.r;
    jpo_addition plus;
    if (adapted) {
        double start = jpo_profile_start(&pass->profile);
        jpo_lora lora = pass_lora(pass, layer, module);
        plus = jpo_lora_forward(saved_xa(weights, saved->xa, module, rows), x, pass->work.dropped, &lora, rows, k);
        jpo_profile_add(&pass->profile, JPO_OP_LORA, start, 2.0 * (double)(rows * lora.r) * (double)k);
    }
    double start = jpo_profile_start(&pass->profile);
    JPO_TRY(jpo_linear_forward(y, ldy, x, k, &linear->weight, rows, accumulate, adapted ? &plus : NULL, &pass->scratch,
                               err));
    if (linear->bias) jpo_bias_forward(y, ldy, linear->bias, rows, n);
    jpo_profile_add(&pass->profile, JPO_OP_LINEAR, start,
                    2.0 * (double)(rows * n) * (double)(k + (adapted ? linear->lora.r : 0)));
    return JPO_OK;
}

jpo_status jpo_module_backward_weights(jpo_pass *pass, int64_t layer, jpo_tensor module, const float *dy, int64_t lddy,
                                       const float *x, const jpo_saved_layer *saved, jpo_error *err) {
    const jpo_layer *weights = pass->model->layer + layer;
    const jpo_linear *linear = weights->module + module;
    int64_t n = linear->weight.n, k = linear->weight.k, rows = pass->plan.rows;
    double start = jpo_profile_start(&pass->profile);
    if (linear->dweight)
        JPO_TRY(jpo_linear_backward_weight(linear->dweight, dy, lddy, x, k, n, k, rows, &pass->scratch, err));
    if (linear->dbias) jpo_bias_backward(linear->dbias, dy, lddy, rows, n);
    if (linear->dweight)
        jpo_profile_add(&pass->profile, JPO_OP_LINEAR_WEIGHT, start, 2.0 * (double)(rows * n) * (double)k);
    if (pass->options.adapter && linear->lora.r) {
        start = jpo_profile_start(&pass->profile);
        jpo_lora lora = pass_lora(pass, layer, module);
        jpo_lora_backward_weights(pass->work.dxa, dy, lddy, saved_xa(weights, saved->xa, module, rows), x,
                                  pass->work.dropped, &lora, rows, n, k);
        jpo_profile_add(&pass->profile, JPO_OP_LORA_BACKWARD, start, 4.0 * (double)(rows * lora.r) * (double)(n + k));
    }
    return JPO_OK;
}

jpo_status jpo_module_backward_input(jpo_pass *pass, int64_t layer, jpo_tensor module, float *dx, const float *dy,
                                     int64_t lddy, bool accumulate, jpo_error *err) {
    const jpo_linear *linear = &pass->model->layer[layer].module[module];
    int64_t rows = pass->plan.rows;
    const bool adapted = pass->options.adapter && linear->lora.r;
    const jpo_lora lora = pass_lora(pass, layer, module);
    const bool together = adapted && lora.dropout == 0;
    const jpo_addition plus = jpo_lora_backward_addition(pass->work.dxa, &lora, linear->weight.k);
    double start = jpo_profile_start(&pass->profile);
    JPO_TRY(jpo_linear_backward_input(dx, linear->weight.k, dy, lddy, &linear->weight, rows, accumulate,
                                      together ? &plus : NULL, &pass->scratch, err));
    jpo_profile_add(&pass->profile, JPO_OP_LINEAR_INPUT, start,
                    2.0 * (double)(rows * linear->weight.k) * (double)(linear->weight.n + (together ? lora.r : 0)));
    if (adapted && !together) {
        start = jpo_profile_start(&pass->profile);
        jpo_lora_backward_input(dx, pass->work.dxa, pass->work.dropped, &lora, rows, linear->weight.k);
        jpo_profile_add(&pass->profile, JPO_OP_LORA_BACKWARD, start,
                        2.0 * (double)(rows * lora.r) * (double)linear->weight.k);
    }
    return JPO_OK;
}

jpo_status jpo_module_backward(jpo_pass *pass, int64_t layer, jpo_tensor module, float *dx, const float *dy,
                               int64_t lddy, const float *x, const jpo_saved_layer *saved, bool accumulate,
                               jpo_error *err) {
    JPO_TRY(jpo_module_backward_weights(pass, layer, module, dy, lddy, x, saved, err));
    return dx ? jpo_module_backward_input(pass, layer, module, dx, dy, lddy, accumulate, err) : JPO_OK;
}

bool jpo_modules_trained(const jpo_pass *pass, int64_t layer, jpo_tensor first, jpo_tensor last) {
    for (int m = (int)first; m <= (int)last; m++) {
        const jpo_linear *linear = &pass->model->layer[layer].module[m];
        if (linear->dweight || linear->dbias || (pass->options.adapter && linear->lora.r)) return true;
    }
    return false;
}

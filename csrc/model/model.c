/* Making and freeing a model, and handing it its tensors. */
#include "model/model.h"

#include <stdlib.h>
#include <string.h>

/* config's arrays in one piece of memory of the model's: layers, rotaries, frequencies. */
static jpo_status copy_arrays(jpo_model *model, const jpo_config *config, jpo_error *err) {
    size_t layers = (size_t)config->layers * sizeof(jpo_layer_choice);
    size_t rotaries = (size_t)config->rotaries * sizeof(jpo_rotary), bytes = layers + rotaries;
    for (int64_t i = 0; i < config->rotaries; i++) bytes += 2 * (size_t)config->rotary[i].half * sizeof(double);
    char *memory = malloc(bytes);
    model->arrays = memory;
    if (!memory) return jpo_fail(err, JPO_ERR_MEMORY, "could not allocate %lld layers", (long long)config->layers);
    jpo_rotary *rotary = (jpo_rotary *)(memory + layers);
    double *frequency = (double *)(memory + layers + rotaries);
    memcpy(memory, config->layer, layers);
    for (int64_t i = 0; i < config->rotaries; i++) {
        rotary[i] = config->rotary[i];
        rotary[i].inv_freq = frequency;
        memcpy(frequency, config->rotary[i].inv_freq, (size_t)rotary[i].half * sizeof(double));
        frequency += rotary[i].half;
        if (!rotary[i].long_freq) continue;
        rotary[i].long_freq = frequency;
        memcpy(frequency, config->rotary[i].long_freq, (size_t)rotary[i].half * sizeof(double));
        frequency += rotary[i].half;
    }
    model->config.layer = (const jpo_layer_choice *)memory;
    model->config.rotary = rotary;
    return JPO_OK;
}

jpo_status jpo_model_init(jpo_model *model, const jpo_config *config, jpo_error *err) {
    memset(model, 0, sizeof *model);
    JPO_TRY(jpo_config_check(config, err));
    model->config = *config;
    JPO_TRY(copy_arrays(model, config, err));
    model->live.layer = calloc((size_t)config->layers, sizeof *model->live.layer);
    model->stored.layer = calloc((size_t)config->layers, sizeof *model->stored.layer);
    if (!model->live.layer || !model->stored.layer)
        return jpo_fail(err, JPO_ERR_MEMORY, "could not allocate %lld layers", (long long)config->layers);
    return JPO_OK;
}

void jpo_model_free(jpo_model *model) {
    free(model->stored.layer);
    free(model->live.layer);
    free(model->arrays);
    memset(model, 0, sizeof *model);
}

static jpo_linear *linear_of(jpo_weights *weights, jpo_tensor tensor, int64_t layer) {
    return (int)tensor < JPO_MODULES ? &weights->layer[layer].module[tensor] : NULL;
}

static jpo_norm *norm_of(jpo_weights *weights, jpo_tensor tensor, int64_t layer) {
    if (tensor == JPO_FINAL_NORM) return &weights->final_norm;
    return (int)tensor >= JPO_MODULES && (int)tensor < JPO_LAYER_TENSORS
               ? &weights->layer[layer].norm[tensor - JPO_MODULES]
               : NULL;
}

static jpo_weight *table_of(jpo_weights *weights, jpo_tensor tensor) {
    return tensor == JPO_EMBEDDING ? &weights->embedding : tensor == JPO_HEAD ? &weights->head : &weights->positions;
}

void jpo_model_set(jpo_model *model, jpo_tensor tensor, int64_t layer, const void *data, jpo_dtype dtype,
                   jpo_compute compute) {
    jpo_norm *norm = norm_of(&model->stored, tensor, layer);
    jpo_linear *linear = linear_of(&model->stored, tensor, layer);
    if (norm) {
        norm->w = data;
        return;
    }
    jpo_tensor_info info = jpo_tensor_describe(&model->config, tensor);
    *(linear ? &linear->weight : table_of(&model->stored, tensor)) =
        (jpo_weight){.n = info.n, .k = info.k, .data = data, .dtype = dtype, .compute = compute};
}

void jpo_model_set_bias(jpo_model *model, jpo_tensor tensor, int64_t layer, const float *bias) {
    jpo_norm *norm = norm_of(&model->stored, tensor, layer);
    if (norm)
        norm->b = bias;
    else
        linear_of(&model->stored, tensor, layer)->bias = bias;
}

jpo_status jpo_model_prepare(jpo_model *model, jpo_error *err) {
    jpo_weights *stored = &model->stored;
    if (model->config.tied) stored->head = stored->embedding;
    for (int64_t i = 0; i < model->config.layers; i++)
        for (int m = 0; m < JPO_MODULES; m++) {
            jpo_linear *linear = &stored->layer[i].module[m];
            linear->mask = m;
            if (linear->weight.data) JPO_TRY(jpo_weight_check(&linear->weight, err));
        }
    JPO_TRY(jpo_weight_check(&stored->head, err));
    jpo_model_restore(model);
    return JPO_OK;
}

void jpo_model_restore(jpo_model *model) {
    jpo_layer *layers = model->live.layer;
    memcpy(layers, model->stored.layer, (size_t)model->config.layers * sizeof *layers);
    model->live = model->stored;
    model->live.layer = layers;
    model->full = false;
}

static void train_table(jpo_weights *live, jpo_tensor tensor, const float *values, float *gradient) {
    jpo_weight *table = table_of(live, tensor);
    table->data = values, table->dtype = JPO_F32;
    if (tensor == JPO_EMBEDDING)
        live->dembedding = gradient;
    else if (tensor == JPO_HEAD)
        live->dhead = gradient;
    else
        live->dpositions = gradient;
}

void jpo_model_train(jpo_model *model, jpo_tensor tensor, int64_t layer, bool bias, const float *values,
                     float *gradient) {
    jpo_norm *norm = norm_of(&model->live, tensor, layer);
    jpo_linear *linear = linear_of(&model->live, tensor, layer);
    if (norm && bias)
        norm->b = values, norm->db = gradient;
    else if (norm)
        norm->w = values, norm->dw = gradient;
    else if (linear && bias)
        linear->bias = values, linear->dbias = gradient;
    else if (linear)
        linear->weight.data = values, linear->weight.dtype = JPO_F32, linear->dweight = gradient;
    else
        train_table(&model->live, tensor, values, gradient);
}

void jpo_model_adapt(jpo_model *model, jpo_tensor module, int64_t layer, const jpo_lora *lora) {
    if (module == JPO_EMBEDDING || module == JPO_HEAD) {
        *(module == JPO_HEAD ? &model->live.head_lora : &model->live.embedding_lora) = *lora;
        return;
    }
    jpo_linear *all = model->live.layer[layer].module;
    all[module].lora = *lora;
    all[module].mask = (int)module;
    for (int m = 0; lora->r && m < (int)module; m++)
        if (all[m].lora.r && all[m].lora.a == lora->a) {
            all[module].mask = m;
            break;
        }
}

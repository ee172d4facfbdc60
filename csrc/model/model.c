/* Making and freeing a model; the shapes of its modules. */
#include "model/model.h"

#include <stdlib.h>
#include <string.h>

int64_t jpo_module_outputs(const jpo_config *c, jpo_module module) {
    const int64_t outputs[] = {
#define OUTPUTS(code, name, n, k) n,
        JPO_MODULE_LIST(OUTPUTS)
#undef OUTPUTS
    };
    return outputs[module];
}

int64_t jpo_module_inputs(const jpo_config *c, jpo_module module) {
    const int64_t inputs[] = {
#define INPUTS(code, name, n, k) k,
        JPO_MODULE_LIST(INPUTS)
#undef INPUTS
    };
    return inputs[module];
}

const char *jpo_module_name(jpo_module module) {
    static const char *const names[] = {
#define NAME(code, name, n, k) name,
        JPO_MODULE_LIST(NAME)
#undef NAME
    };
    return names[module];
}

static jpo_status check_config(const jpo_config *c, jpo_error *err) {
    const struct {
        const char *name;
        int64_t value;
    } sizes[] = {{"vocab_size", c->vocab},
                 {"hidden_size", c->hidden},
                 {"num_hidden_layers", c->layers},
                 {"num_attention_heads", c->heads},
                 {"num_key_value_heads", c->kv_heads},
                 {"head_dim", c->head_dim},
                 {"intermediate_size", c->intermediate},
                 {"max_position_embeddings", c->max_positions}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i].value < 1 || sizes[i].value > 1 << 28)
            return jpo_fail(err, JPO_ERR_VALUE, "%s must lie in 1..2^28, got %lld", sizes[i].name,
                            (long long)sizes[i].value);
    if (c->layers > 1 << 14)
        return jpo_fail(err, JPO_ERR_VALUE, "num_hidden_layers must be at most 2^14, got %lld", (long long)c->layers);
    if (c->heads * c->head_dim > 1 << 28)
        return jpo_fail(err, JPO_ERR_VALUE, "num_attention_heads times head_dim must be at most 2^28, got %lld * %lld",
                        (long long)c->heads, (long long)c->head_dim);
    if (c->heads % c->kv_heads)
        return jpo_fail(err, JPO_ERR_VALUE, "num_attention_heads %lld must be a multiple of num_key_value_heads %lld",
                        (long long)c->heads, (long long)c->kv_heads);
    if (c->head_dim % 2) return jpo_fail(err, JPO_ERR_VALUE, "head_dim must be even, got %lld", (long long)c->head_dim);
    if (c->window < 0)
        return jpo_fail(err, JPO_ERR_VALUE, "sliding_window must not be negative, got %lld", (long long)c->window);
    if (!(c->eps > 0)) return jpo_fail(err, JPO_ERR_VALUE, "rms_norm_eps must be positive, got %g", (double)c->eps);
    return JPO_OK;
}

jpo_status jpo_model_init(jpo_model *model, const jpo_config *config, jpo_error *err) {
    memset(model, 0, sizeof *model);
    JPO_TRY(check_config(config, err));
    model->config = *config;
    size_t half = (size_t)config->head_dim / 2;
    double *inv_freq = malloc(half * sizeof *inv_freq);
    model->config.inv_freq = inv_freq;
    model->layer = calloc((size_t)config->layers, sizeof *model->layer);
    if (!inv_freq || !model->layer)
        return jpo_fail(err, JPO_ERR_MEMORY, "could not allocate %lld layers", (long long)config->layers);
    memcpy(inv_freq, config->inv_freq, half * sizeof *inv_freq);
    return JPO_OK;
}

void jpo_model_trim(jpo_model *model) {
    model->kept = false;
    model->final_x = NULL;
    jpo_block_free(&model->saved);
    jpo_block_free(&model->work_block);
    jpo_block_free(&model->index);
    jpo_block_free(&model->head_block);
    jpo_block_free(&model->decode_block);
    jpo_scratch_free(&model->scratch);
}

void jpo_model_free(jpo_model *model) {
    jpo_model_trim(model);
    for (int64_t i = 0; model->layer && i < model->config.layers; i++)
        for (int m = 0; m < JPO_MODULES; m++) jpo_weight_release(&model->layer[i].module[m].weight);
    jpo_weight_release(&model->head);
    free(model->layer);
    free((void *)model->config.inv_freq);
    free(model->cosine);
    free(model->sine);
    memset(model, 0, sizeof *model);
}

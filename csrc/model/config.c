/* Choices by name, the tensors of a configuration, and what a configuration must satisfy. */
#include "model/config.h"

#include <math.h>
#include <string.h>

#define NAME(code, name) name,
const char *jpo_norm_place_name(jpo_norm_place place) {
    static const char *const names[] = {JPO_NORM_PLACE_LIST(NAME)};
    return names[place];
}

const char *jpo_qk_norm_name(jpo_qk_norm norm) {
    static const char *const names[] = {JPO_QK_NORM_LIST(NAME)};
    return names[norm];
}
#undef NAME

/* Whether a tensor that is present has a bias. */
static bool has_bias(const jpo_config *c, jpo_tensor tensor, jpo_tensor_kind kind) {
    if (kind == JPO_LINEAR) return c->biases >> tensor & 1;
    return kind == JPO_VECTOR && c->norm_bias && tensor != JPO_Q_NORM && tensor != JPO_K_NORM;
}

jpo_tensor_info jpo_tensor_describe(const jpo_config *c, jpo_tensor tensor) {
    const jpo_tensor_info list[] = {
#define ROW(code, name, gguf, kind, scope, n, k, present) {name, gguf, kind, scope, n, k, present, false},
        JPO_TENSOR_LIST(ROW)
#undef ROW
    };
    jpo_tensor_info info = list[tensor];
    info.bias = info.present && has_bias(c, tensor, info.kind);
    return info;
}

static jpo_status check_sizes(const jpo_config *c, jpo_error *err) {
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
    return JPO_OK;
}

static jpo_status check_numbers(const jpo_config *c, jpo_error *err) {
    const struct {
        const char *name;
        float value;
        bool zero; /* is allowed */
    } numbers[] = {{"norm_eps", c->eps, false},
                   {"attention_scale", c->attention_scale, false},
                   {"attention_softcap", c->attention_softcap, true},
                   {"logits_softcap", c->logits_softcap, true},
                   {"logits_multiplier", c->logits_multiplier, false},
                   {"embedding_multiplier", c->embedding_multiplier, false},
                   {"residual_multiplier", c->residual_multiplier, false}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!isfinite(numbers[i].value) || numbers[i].value < 0 || (numbers[i].value == 0 && !numbers[i].zero))
            return jpo_fail(err, JPO_ERR_VALUE, "%s must be %s, got %g", numbers[i].name,
                            numbers[i].zero ? "at least 0" : "positive", (double)numbers[i].value);
    if (c->parallel && c->norm_place != JPO_BEFORE)
        return jpo_fail(err, JPO_ERR_VALUE, "a parallel residual needs norm_place 'before'");
    if (c->residual_multiplier != 1 && c->norm_place != JPO_BEFORE)
        return jpo_fail(err, JPO_ERR_VALUE, "a residual_multiplier needs norm_place 'before'");
    return JPO_OK;
}

static jpo_status check_layers(const jpo_config *c, jpo_error *err) {
    for (int64_t i = 0; i < c->rotaries; i++)
        if (c->rotary[i].half < 1 || 2 * c->rotary[i].half > c->head_dim)
            return jpo_fail(err, JPO_ERR_VALUE, "rotary[%lld]: %lld frequencies do not fit head_dim %lld", (long long)i,
                            (long long)c->rotary[i].half, (long long)c->head_dim);
    for (int64_t i = 0; i < c->layers; i++) {
        if (c->layer[i].window < 0)
            return jpo_fail(err, JPO_ERR_VALUE, "layer %lld: the window must not be negative, got %lld", (long long)i,
                            (long long)c->layer[i].window);
        if (c->layer[i].rotary < -1 || c->layer[i].rotary >= c->rotaries)
            return jpo_fail(err, JPO_ERR_VALUE, "layer %lld: there is no rotary[%lld]", (long long)i,
                            (long long)c->layer[i].rotary);
    }
    return JPO_OK;
}

jpo_status jpo_config_check(const jpo_config *c, jpo_error *err) {
    JPO_TRY(check_sizes(c, err));
    JPO_TRY(check_numbers(c, err));
    return check_layers(c, err);
}

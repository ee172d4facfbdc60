/* Every tensor of a decoder, once. Binding, configuration, files, adapters and tests derive their lists from this one
 * (Python: _core.TENSORS and _core.tensors(config)).
 * X(code, name in Hugging Face's Llama, name in GGUF, kind, scope, rows, columns, present)
 * with the sizes and choices of a jpo_config `c`. kind: JPO_LINEAR (N, K) with an optional bias (N), to which an
 * adapter may be added; JPO_TABLE (N, K); JPO_VECTOR (N) with an optional bias. A layer's linear modules stand first,
 * in the order of their computation. A family's own names are mapped to these in jpo/formats/families. */
#ifndef JPO_MODEL_TENSORS_H
#define JPO_MODEL_TENSORS_H

#define JPO_TENSOR_LIST(X)                                                                                            \
    X(JPO_Q, "self_attn.q_proj", "attn_q", JPO_LINEAR, JPO_PER_LAYER, jpo_query_width(c), c->hidden, true)            \
    X(JPO_K, "self_attn.k_proj", "attn_k", JPO_LINEAR, JPO_PER_LAYER, jpo_key_width(c), c->hidden, true)              \
    X(JPO_V, "self_attn.v_proj", "attn_v", JPO_LINEAR, JPO_PER_LAYER, jpo_key_width(c), c->hidden, true)              \
    X(JPO_O, "self_attn.o_proj", "attn_output", JPO_LINEAR, JPO_PER_LAYER, c->hidden, jpo_query_width(c), true)       \
    X(JPO_GATE, "mlp.gate_proj", "ffn_gate", JPO_LINEAR, JPO_PER_LAYER, c->intermediate, c->hidden, c->gated)         \
    X(JPO_UP, "mlp.up_proj", "ffn_up", JPO_LINEAR, JPO_PER_LAYER, c->intermediate, c->hidden, true)                   \
    X(JPO_DOWN, "mlp.down_proj", "ffn_down", JPO_LINEAR, JPO_PER_LAYER, c->hidden, c->intermediate, true)             \
    X(JPO_ATTENTION_NORM, "input_layernorm", "attn_norm", JPO_VECTOR, JPO_PER_LAYER, c->hidden, 1,                    \
      c->norm_place != JPO_AFTER)                                                                                     \
    X(JPO_Q_NORM, "self_attn.q_norm", "attn_q_norm", JPO_VECTOR, JPO_PER_LAYER,                                       \
      c->qk_norm == JPO_QK_FULL ? jpo_query_width(c) : c->head_dim, 1, c->qk_norm != JPO_QK_NONE)                     \
    X(JPO_K_NORM, "self_attn.k_norm", "attn_k_norm", JPO_VECTOR, JPO_PER_LAYER,                                       \
      c->qk_norm == JPO_QK_FULL ? jpo_key_width(c) : c->head_dim, 1, c->qk_norm != JPO_QK_NONE)                       \
    X(JPO_ATTENTION_OUT_NORM, "attention_output_layernorm", "post_attention_norm", JPO_VECTOR, JPO_PER_LAYER,         \
      c->hidden, 1, c->norm_place != JPO_BEFORE)                                                                      \
    X(JPO_MLP_NORM, "post_attention_layernorm", "ffn_norm", JPO_VECTOR, JPO_PER_LAYER, c->hidden, 1,                  \
      c->norm_place != JPO_AFTER && !c->parallel)                                                                     \
    X(JPO_MLP_OUT_NORM, "mlp_output_layernorm", "post_ffw_norm", JPO_VECTOR, JPO_PER_LAYER, c->hidden, 1,             \
      c->norm_place != JPO_BEFORE)                                                                                    \
    X(JPO_EMBEDDING, "model.embed_tokens", "token_embd", JPO_TABLE, JPO_ONCE, c->vocab, c->hidden, true)              \
    X(JPO_POSITION_TABLE, "model.embed_positions", "position_embd", JPO_TABLE, JPO_ONCE, c->max_positions, c->hidden, \
      c->learned_positions)                                                                                           \
    X(JPO_FINAL_NORM, "model.norm", "output_norm", JPO_VECTOR, JPO_ONCE, c->hidden, 1, true)                          \
    X(JPO_HEAD, "lm_head", "output", JPO_TABLE, JPO_ONCE, c->vocab, c->hidden, !c->tied)

typedef enum {
#define JPO_TENSOR_CODE(code, name, gguf, kind, scope, n, k, present) code,
    JPO_TENSOR_LIST(JPO_TENSOR_CODE)
#undef JPO_TENSOR_CODE
        JPO_TENSORS
} jpo_tensor;

enum {
    JPO_MODULES = JPO_DOWN + 1,               /* linear modules of a layer */
    JPO_LAYER_TENSORS = JPO_MLP_OUT_NORM + 1, /* tensors of a layer */
    JPO_LAYER_NORMS = JPO_LAYER_TENSORS - JPO_MODULES
};

typedef enum { JPO_LINEAR, JPO_TABLE, JPO_VECTOR } jpo_tensor_kind;
typedef enum { JPO_PER_LAYER, JPO_ONCE } jpo_tensor_scope;

#endif

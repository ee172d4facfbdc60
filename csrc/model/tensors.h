/* The linear modules of a decoder block, in the order of their computation: one line adds one.
 * X(code, name in Hugging Face's and PEFT's files, outputs, inputs) with the sizes of a jpo_config `c`. */
#ifndef JPO_MODEL_TENSORS_H
#define JPO_MODEL_TENSORS_H

#define JPO_MODULE_LIST(X)                                                  \
    X(JPO_Q, "self_attn.q_proj", (c)->heads *(c)->head_dim, (c)->hidden)    \
    X(JPO_K, "self_attn.k_proj", (c)->kv_heads *(c)->head_dim, (c)->hidden) \
    X(JPO_V, "self_attn.v_proj", (c)->kv_heads *(c)->head_dim, (c)->hidden) \
    X(JPO_O, "self_attn.o_proj", (c)->hidden, (c)->heads *(c)->head_dim)    \
    X(JPO_GATE, "mlp.gate_proj", (c)->intermediate, (c)->hidden)            \
    X(JPO_UP, "mlp.up_proj", (c)->intermediate, (c)->hidden)                \
    X(JPO_DOWN, "mlp.down_proj", (c)->hidden, (c)->intermediate)

typedef enum {
#define JPO_MODULE_CODE(code, name, n, k) code,
    JPO_MODULE_LIST(JPO_MODULE_CODE)
#undef JPO_MODULE_CODE
        JPO_MODULES
} jpo_module;

#endif

/* Time and arithmetic of each operator of a model's passes, counted where `on` (JPO_PROFILE=1 prints the table). */
#ifndef JPO_MODEL_PROFILE_H
#define JPO_MODEL_PROFILE_H

#include <stdbool.h>
#include <stdint.h>

#include "ops/attention.h"

/* X(code, name): one line adds an operator. */
#define JPO_OPERATOR_LIST(X)                           \
    X(JPO_OP_EMBEDDING, "embedding")                   \
    X(JPO_OP_NORM, "norm")                             \
    X(JPO_OP_LINEAR, "linear")                         \
    X(JPO_OP_LINEAR_INPUT, "linear backward, input")   \
    X(JPO_OP_LINEAR_WEIGHT, "linear backward, weight") \
    X(JPO_OP_LORA, "adapter")                          \
    X(JPO_OP_LORA_BACKWARD, "adapter backward")        \
    X(JPO_OP_ROPE, "rope")                             \
    X(JPO_OP_ATTENTION, "attention")                   \
    X(JPO_OP_ATTENTION_BACKWARD, "attention backward") \
    X(JPO_OP_ACTIVATION, "activation")                 \
    X(JPO_OP_HEAD, "head")                             \
    X(JPO_OP_HEAD_BACKWARD, "head backward")

typedef enum {
#define JPO_OPERATOR_CODE(code, name) code,
    JPO_OPERATOR_LIST(JPO_OPERATOR_CODE)
#undef JPO_OPERATOR_CODE
        JPO_OPERATORS
} jpo_operator;

typedef struct {
    bool on;
    int64_t calls[JPO_OPERATORS];
    double seconds[JPO_OPERATORS], flop[JPO_OPERATORS]; /* flop: of products alone, additions and multiplications */
} jpo_profile;

const char *jpo_operator_name(jpo_operator op);
double jpo_profile_start(const jpo_profile *profile); /* seconds of a steady clock; 0 where off */
/* Seconds counted so far, of all operators: what runs inside another is taken off that. */
double jpo_profile_total(const jpo_profile *profile);
void jpo_profile_add(jpo_profile *profile, jpo_operator op, double start, double flop);
/* Visible pairs of a query and a key, heads not counted. */
double jpo_attention_pairs(const jpo_attention *attention);

#endif

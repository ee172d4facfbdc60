/* How numbers are stored: scalars, and the quantized blocks of GGUF (32 values along a row each). */
#ifndef JPO_BASE_DTYPE_H
#define JPO_BASE_DTYPE_H

#include <stddef.h>
#include <stdint.h>

/* X(code, name, values per block, bytes per block) */
#define JPO_DTYPE_LIST(X)                                                                   \
    X(JPO_F32, "F32", 1, 4)                                                                 \
    X(JPO_BF16, "BF16", 1, 2)                                                               \
    X(JPO_F16, "F16", 1, 2)                                                                 \
    X(JPO_Q8_0, "Q8_0", 32, 34) /* float16 d; int8 q[32]: x = d q */                        \
    X(JPO_Q4_0, "Q4_0", 32, 18) /* float16 d; 16 bytes, low nibbles first: x = d (q - 8) */ \
    X(JPO_Q4_1, "Q4_1", 32, 20) /* float16 d, m; 16 bytes: x = d q + m */

typedef enum {
#define JPO_DTYPE_CODE(code, name, values, bytes) code,
    JPO_DTYPE_LIST(JPO_DTYPE_CODE)
#undef JPO_DTYPE_CODE
        JPO_DTYPE_COUNT
} jpo_dtype;

const char *jpo_dtype_name(jpo_dtype dtype);
int jpo_dtype_from_name(const char *name); /* -1: no such type */

static inline int64_t jpo_dtype_block(jpo_dtype dtype) { /* values per block */
    switch (dtype) {
#define JPO_DTYPE_VALUES(code, name, values, bytes) \
    case code:                                      \
        return values;
        JPO_DTYPE_LIST(JPO_DTYPE_VALUES)
#undef JPO_DTYPE_VALUES
    default:
        return 1;
    }
}

static inline size_t jpo_dtype_block_bytes(jpo_dtype dtype) {
    switch (dtype) {
#define JPO_DTYPE_BYTES(code, name, values, bytes) \
    case code:                                     \
        return bytes;
        JPO_DTYPE_LIST(JPO_DTYPE_BYTES)
#undef JPO_DTYPE_BYTES
    default:
        return 0;
    }
}

/* Bytes of a row of k values (k a multiple of the block). */
static inline size_t jpo_dtype_row_bytes(jpo_dtype dtype, int64_t k) {
    return (size_t)(k / jpo_dtype_block(dtype)) * jpo_dtype_block_bytes(dtype);
}

#endif

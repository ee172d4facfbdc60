/* How numbers are stored (scalars, and the quantized blocks of GGUF, 32 or 256 values along a row each), and in which
 * number types products with them run. */
#ifndef JPO_BASE_DTYPE_H
#define JPO_BASE_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* X(with, code, name, values per block, bytes per block, where its float16 factor and offset (minimum) stand or -1):
 * one line adds a type; `with` is handed through. The blocks' layouts stand in kernels/blocks.inc (Q8_0, Q4_0 and Q4_1:
 * kernels/panels.inc). */
#define JPO_DTYPE_LIST(X, with)                                                                          \
    X(with, JPO_F32, "F32", 1, 4, -1, -1)                                                                \
    X(with, JPO_BF16, "BF16", 1, 2, -1, -1)                                                              \
    X(with, JPO_F16, "F16", 1, 2, -1, -1)                                                                \
    X(with, JPO_Q8_0, "Q8_0", 32, 34, 0, -1) /* float16 d; int8 q[32]: x = d q */                        \
    X(with, JPO_Q4_0, "Q4_0", 32, 18, 0, -1) /* float16 d; 16 bytes, low nibbles first: x = d (q - 8) */ \
    X(with, JPO_Q4_1, "Q4_1", 32, 20, 0, 2)  /* float16 d, m; 16 bytes: x = d q + m */                   \
    X(with, JPO_Q5_0, "Q5_0", 32, 22, 0, -1)                                                             \
    X(with, JPO_Q5_1, "Q5_1", 32, 24, 0, 2)                                                              \
    X(with, JPO_Q2_K, "Q2_K", 256, 84, 80, 82)                                                           \
    X(with, JPO_Q3_K, "Q3_K", 256, 110, 108, -1)                                                         \
    X(with, JPO_Q4_K, "Q4_K", 256, 144, 0, 2)                                                            \
    X(with, JPO_Q5_K, "Q5_K", 256, 176, 0, 2)                                                            \
    X(with, JPO_Q6_K, "Q6_K", 256, 210, 208, -1)                                                         \
    X(with, JPO_IQ4_NL, "IQ4_NL", 32, 18, 0, -1)                                                         \
    X(with, JPO_IQ4_XS, "IQ4_XS", 256, 136, 0, -1)

typedef enum {
#define JPO_DTYPE_CODE(with, code, name, values, bytes, d, m) code,
    JPO_DTYPE_LIST(JPO_DTYPE_CODE, )
#undef JPO_DTYPE_CODE
        JPO_DTYPE_COUNT
} jpo_dtype;

/* Number types of a product with a weight. X(code, name, what `jpo --help` says of it): the order is that of the
 * numbers that checkpoints and bindings pass on, new ones come last. */
#define JPO_COMPUTE_LIST(X)                                                                                           \
    X(JPO_COMPUTE_FLOAT32, "float32", "exact products, float32 sums; every processor")                                \
    X(JPO_COMPUTE_INT16, "int16", "blocks of 32 as 16-bit integers and a scale; AVX2 or AVX-512 VNNI")                \
    X(JPO_COMPUTE_BFLOAT16, "bfloat16", "both sides rounded to bfloat16; AMX tiles, or AVX512_BF16 where it is fast") \
    X(JPO_COMPUTE_BFLOAT16X2, "bfloat16x2", "activations in two bfloat16 parts, weights in one; AMX tiles")           \
    X(JPO_COMPUTE_BFLOAT16X3, "bfloat16x3", "both sides in two parts, three products, float32's class; AMX tiles")

typedef enum {
#define JPO_COMPUTE_CODE(code, name, meaning) code,
    JPO_COMPUTE_LIST(JPO_COMPUTE_CODE)
#undef JPO_COMPUTE_CODE
        JPO_COMPUTE_COUNT
} jpo_compute;

const char *jpo_compute_name(jpo_compute compute);
const char *jpo_compute_meaning(jpo_compute compute);
int jpo_compute_from_name(const char *name); /* -1: no such type */

const char *jpo_dtype_name(jpo_dtype dtype);
int jpo_dtype_from_name(const char *name); /* -1: no such type */

/* Forms whose blocks are integers times a scale that int16 multiplies as they are. */
static inline bool jpo_dtype_integers(jpo_dtype dtype) {
    return dtype == JPO_Q8_0 || dtype == JPO_Q4_0 || dtype == JPO_Q4_1;
}

static inline int64_t jpo_dtype_block(jpo_dtype dtype) { /* values per block */
    switch (dtype) {
#define JPO_DTYPE_VALUES(with, code, name, values, bytes, d, m) \
    case code:                                                  \
        return values;
        JPO_DTYPE_LIST(JPO_DTYPE_VALUES, )
#undef JPO_DTYPE_VALUES
    default:
        return 1;
    }
}

static inline size_t jpo_dtype_block_bytes(jpo_dtype dtype) {
    switch (dtype) {
#define JPO_DTYPE_BYTES(with, code, name, values, bytes, d, m) \
    case code:                                                 \
        return bytes;
        JPO_DTYPE_LIST(JPO_DTYPE_BYTES, )
#undef JPO_DTYPE_BYTES
    default:
        return 0;
    }
}

/* Offsets of the float16 numbers in a block (factor, then offset or minimum): returns how many there are. */
static inline int jpo_dtype_halves(jpo_dtype dtype, int offsets[2]) {
    switch (dtype) {
#define JPO_DTYPE_HALVES(with, code, name, values, bytes, d, m) \
    case code:                                                  \
        offsets[0] = d, offsets[1] = m;                         \
        break;
        JPO_DTYPE_LIST(JPO_DTYPE_HALVES, )
#undef JPO_DTYPE_HALVES
    default:
        return 0;
    }
    return (offsets[0] >= 0) + (offsets[1] >= 0);
}

/* switch over a dtype that calls call(CODE) with a constant code, so that each loop is compiled for one stored form. */
#define JPO_DTYPE_CASE(call, code, name, values, bytes, d, m) \
    case code:                                                \
        call(code);                                           \
        break;
#define JPO_FOR_DTYPE(dtype, call)           \
    switch (dtype) {                         \
        JPO_DTYPE_LIST(JPO_DTYPE_CASE, call) \
    default:                                 \
        break;                               \
    }

/* Bytes of a row of k values (k a multiple of the block). */
static inline size_t jpo_dtype_row_bytes(jpo_dtype dtype, int64_t k) {
    return (size_t)(k / jpo_dtype_block(dtype)) * jpo_dtype_block_bytes(dtype);
}

#endif

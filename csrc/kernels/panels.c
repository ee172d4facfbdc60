/* Portable widening of stored weights; the packed kernels have their own, straight into their panels. */
#include "kernels/panels.h"

#include <string.h>

static float bits_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

float jpo_half_widen(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 31) return bits_float(sign | 0x7f800000 | fraction << 13);
    if (exponent) return bits_float(sign | (exponent + 112) << 23 | fraction << 13);
    float tiny = (float)fraction * 0x1p-24f; /* zero or subnormal: exact */
    return sign ? -tiny : tiny;
}

static float half_at(const uint8_t *bytes) {
    uint16_t half;
    memcpy(&half, bytes, sizeof half);
    return jpo_half_widen(half);
}

static void widen_bf16(float *out, const uint8_t *in, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint16_t bits;
        memcpy(&bits, in + 2 * i, sizeof bits);
        out[i] = bits_float((uint32_t)bits << 16);
    }
}

static void widen_q8_0(float *restrict out, const uint8_t *restrict in, int64_t count) {
    for (int64_t i = 0; i < count; i += 32, in += 34) {
        float d = half_at(in);
        for (int j = 0; j < 32; j++) out[i + j] = d * (float)(int8_t)in[2 + j];
    }
}

static void widen_q4_0(float *restrict out, const uint8_t *restrict in, int64_t count) {
    for (int64_t i = 0; i < count; i += 32, in += 18) {
        float d = half_at(in);
        for (int j = 0; j < 16; j++) {
            out[i + j] = d * (float)((in[2 + j] & 15) - 8);
            out[i + 16 + j] = d * (float)((in[2 + j] >> 4) - 8);
        }
    }
}

static void widen_q4_1(float *restrict out, const uint8_t *restrict in, int64_t count) {
    for (int64_t i = 0; i < count; i += 32, in += 20) {
        float d = half_at(in), m = half_at(in + 2);
        for (int j = 0; j < 16; j++) {
            float low = d * (float)(in[4 + j] & 15), high = d * (float)(in[4 + j] >> 4);
            out[i + j] = low + m; /* two roundings on every machine: d q is exact (11 + 4 bits) */
            out[i + 16 + j] = high + m;
        }
    }
}

void jpo_panel_widen_row(float *out, jpo_dtype dtype, const void *row, int64_t column0, int64_t count) {
    const uint8_t *in = (const uint8_t *)row + jpo_dtype_row_bytes(dtype, column0);
    switch (dtype) {
        case JPO_F32: memcpy(out, in, (size_t)count * 4); break;
        case JPO_BF16: widen_bf16(out, in, count); break;
        case JPO_F16:
            for (int64_t i = 0; i < count; i++) out[i] = half_at(in + 2 * i);
            break;
        case JPO_Q8_0: widen_q8_0(out, in, count); break;
        case JPO_Q4_0: widen_q4_0(out, in, count); break;
        case JPO_Q4_1: widen_q4_1(out, in, count); break;
        default: break;
    }
}

void jpo_panel_widen(float *out, int64_t ldo, jpo_dtype dtype, const void *data, int64_t k, int64_t row0, int64_t rows,
                     int64_t column0, int64_t columns) {
    size_t stride = jpo_dtype_row_bytes(dtype, k);
    const uint8_t *row = (const uint8_t *)data + (size_t)row0 * stride;
    for (int64_t i = 0; i < rows; i++, row += stride) jpo_panel_widen_row(out + i * ldo, dtype, row, column0, columns);
}

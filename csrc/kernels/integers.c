#include "kernels/integers.h"

#include <math.h>
#include <string.h>

#include "kernels/panels.h"

enum { BLOCK = JPO_GEMM_BLOCK, LANES = 8, MOST = 32767 };

/* Where value v of a block stands in its 32 words: group (4), place in the group (8). */
static int word_of(int v) { return (v % 2 * 2 + v / 16) * 8 + v % 16 / 2; }

static void take_block(int16_t *q, float *scale, float *total, const float *in) {
    uint32_t top = 0;
    for (int v = 0; v < BLOCK; v++) { /* integers order like magnitudes, NaN above infinity */
        uint32_t bits;
        memcpy(&bits, in + v, sizeof bits);
        bits &= 0x7fffffff;
        top = bits > top ? bits : top;
    }
    float largest, inverse = 0, factor = 0;
    memcpy(&largest, &top, sizeof largest);
    if (top >= 0x7f800000)
        factor = NAN;
    else if (largest >= 0x1p-100f)
        factor = largest / MOST, inverse = MOST / largest;
    int32_t value[BLOCK], sum[LANES / 2] = {0};
    for (int v = 0; v < BLOCK; v++) value[v] = inverse == 0 ? 0 : (int32_t)nearbyintf(in[v] * inverse);
    for (int v = 0; v < BLOCK; v++) {
        int word = word_of(v);
        q[word / 8 * 16 + word % 8] = (int16_t)value[v];
        sum[word % 8 / 2] += value[v];
    }
    for (int lane = 0; lane < LANES / 2; lane++) scale[lane] = factor, total[lane] = factor * (float)sum[lane];
}

void jpo_integers_take(const jpo_gemm_integers *x, int64_t i, const float *in, int64_t k) {
    const int64_t blocks = k / BLOCK, pairs = (blocks + 1) / 2;
    for (int64_t block = 0; block < 2 * pairs; block++) {
        static const float zero[BLOCK];
        const int64_t place = i * pairs + block / 2, half = block % 2;
        take_block(x->q + place * 64 + half * 8, x->scale + place * LANES + half * 4, x->total + place * LANES + half * 4,
                   block < blocks ? in + block * BLOCK : zero);
    }
}

static float half_at(const uint8_t *bytes) {
    uint16_t half;
    memcpy(&half, bytes, sizeof half);
    return jpo_half_widen(half);
}

/* Adds the products of one block to four lanes. */
static void add_block(float *sum, jpo_dtype dtype, const uint8_t *w, const int16_t *q, const float *scale, const float *total) {
    const int offset = dtype == JPO_Q4_1 ? 4 : 2;
    const float d = half_at(w), m = dtype == JPO_Q4_1 ? half_at(w + 2) : -8 * d;
    int32_t part[LANES / 2] = {0};
    for (int v = 0; v < BLOCK; v++) {
        int word = word_of(v), stored = v < 16 ? w[offset + v] & 15 : w[offset + v - 16] >> 4;
        if (dtype == JPO_Q8_0) stored = (int8_t)w[offset + v];
        part[word % 8 / 2] += stored * q[word / 8 * 16 + word % 8];
    }
    for (int lane = 0; lane < LANES / 2; lane++) {
        sum[lane] = fmaf((float)part[lane], d * scale[lane], sum[lane]);
        if (dtype != JPO_Q8_0) sum[lane] = fmaf(m, total[lane], sum[lane]);
    }
}

static float dot_row(const jpo_gemm_integers *x, int64_t i, jpo_dtype dtype, const uint8_t *w, int64_t k) {
    const int64_t blocks = k / BLOCK, pairs = (blocks + 1) / 2;
    const size_t bytes = jpo_dtype_row_bytes(dtype, BLOCK);
    float sum[LANES] = {0};
    for (int64_t block = 0; block < 2 * pairs; block++) {
        const int64_t place = i * pairs + block / 2, half = block % 2;
        const int64_t stored = block < blocks ? block : blocks - 1; /* the last block alone: beside zeros of x */
        add_block(sum + half * 4, dtype, w + (size_t)stored * bytes, x->q + place * 64 + half * 8,
                  x->scale + place * LANES + half * 4, x->total + place * LANES + half * 4);
    }
    for (int lane = 0; lane < 4; lane++) sum[lane] += sum[lane + 4];
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

void jpo_integers_dot(float *y, int64_t ldy, const jpo_gemm_integers *x, int64_t m, const jpo_gemm_source *s, bool accumulate) {
    const size_t stride = jpo_dtype_row_bytes(s->dtype, s->k);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < s->rows; j++) {
            float sum = dot_row(x, i, s->dtype, (const uint8_t *)s->data + (size_t)(s->row0 + j) * stride, s->k);
            y[i * ldy + j] = accumulate ? y[i * ldy + j] + sum : sum;
        }
}

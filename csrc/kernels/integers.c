/* Rows in 16-bit integers times stored integers, in portable C: the definition of kernels/integers.h. */
#include "kernels/gemm_int16.h"
#include "kernels/integers.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/blocks.inc"

enum {
    BLOCK = JPO_GEMM_BLOCK,
    QUAD = JPO_INTEGERS_QUAD,
    WORDS = JPO_INTEGERS_WORDS,
    LANES = JPO_INTEGERS_LANES,
    MOST = JPO_GEMM_STORED_ROWS_MAX
};

/* Where value v of a block stands among its words: group (4), place in the group (8). */
static int word_of(int v) { return (v % 2 * 2 + v / 16) * 8 + v % 16 / 2; }

static void quantize_block(int16_t *q, float *scale, float *total, const float *in) {
    uint32_t top = 0;
    for (int v = 0; v < BLOCK; v++) { /* integers order like magnitudes, NaN above infinity */
        uint32_t bits;
        memcpy(&bits, in + v, sizeof bits);
        bits &= 0x7fffffff;
        top = bits > top ? bits : top;
    }
    float inverse;
    const float factor = jpo_int16_scale(top, MOST, &inverse);
    int32_t value[BLOCK], sum[LANES / QUAD] = {0};
    for (int v = 0; v < BLOCK; v++) value[v] = inverse == 0 ? 0 : (int32_t)nearbyintf(in[v] * inverse);
    for (int v = 0; v < BLOCK; v++) {
        int word = word_of(v);
        q[word / 8 * (8 * QUAD) + word % 8] = (int16_t)value[v];
        sum[word % 8 / 2] += value[v];
    }
    for (int lane = 0; lane < LANES / QUAD; lane++) scale[lane] = factor, total[lane] = factor * (float)sum[lane];
}

void jpo_integers_quantize(const jpo_gemm_integers *x, int64_t i, const float *in, int64_t k) {
    const int64_t blocks = k / BLOCK, quads = (blocks + QUAD - 1) / QUAD;
    for (int64_t block = 0; block < QUAD * quads; block++) {
        static const float zero[BLOCK];
        const int64_t place = i * quads + block / QUAD, part = block % QUAD;
        quantize_block(x->q + place * WORDS + part * 8, x->scale + place * LANES + part * 4,
                       x->total + place * LANES + part * 4, block < blocks ? in + block * BLOCK : zero);
    }
}

/* One block of 32 for four lanes: its integers, factor and constant; from `part` on in a K block. */
static void read_block(int16_t value[BLOCK], float *d, float *m, jpo_dtype dtype, const uint8_t *w, int part) {
    int8_t q[BLOCK];
    float factor[2], offset[2];
    *m = 0;
    if (dtype == JPO_Q8_0 || dtype == JPO_Q4_0 || dtype == JPO_Q4_1) {
        if (dtype == JPO_Q8_0)
            memcpy(q, w + 2, sizeof q);
        else
            nibble_integers(q, w + (dtype == JPO_Q4_1 ? 4 : 2), 0);
        *d = half_at(w);
        if (dtype != JPO_Q8_0) *m = dtype == JPO_Q4_1 ? half_at(w + 2) : -8 * *d;
        for (int v = 0; v < BLOCK; v++) value[v] = q[v];
        return;
    }
    plain_integers(q, dtype, w, part);
    piece_scales(dtype, w, part, factor, offset);
    *d = factor[0];
    if (dtype == JPO_Q5_0)
        *m = -16 * *d;
    else if (dtype == JPO_Q6_K)
        *d = half_at(w + 208);
    else
        *m = offset[0];
    for (int v = 0; v < BLOCK; v++) {
        value[v] = (int16_t)(dtype == JPO_Q5_0 ? q[v] + 16 : q[v]);
        if (dtype == JPO_Q6_K) value[v] = (int16_t)(q[v] * (int8_t)w[192 + 2 * part + v / 16]);
    }
}

/* Adds the products of one block to four lanes. */
static void add_block(float *sum, jpo_dtype dtype, const uint8_t *w, int block_part, const int16_t *q,
                      const float *scale, const float *total) {
    int16_t value[BLOCK];
    float d, m;
    int32_t part[LANES / QUAD] = {0};
    read_block(value, &d, &m, dtype, w, block_part);
    for (int v = 0; v < BLOCK; v++) {
        int word = word_of(v);
        part[word % 8 / 2] += value[v] * q[word / 8 * (8 * QUAD) + word % 8];
    }
    for (int lane = 0; lane < LANES / QUAD; lane++) {
        sum[lane] = fmaf((float)part[lane], d * scale[lane], sum[lane]);
        if (dtype != JPO_Q8_0 && dtype != JPO_Q6_K) sum[lane] = fmaf(m, total[lane], sum[lane]);
    }
}

static float dot_row(const jpo_gemm_integers *x, int64_t i, jpo_dtype dtype, const uint8_t *w, int64_t k) {
    const int64_t blocks = k / BLOCK, quads = (blocks + QUAD - 1) / QUAD;
    float sum[LANES] = {0};
    for (int64_t block = 0; block < QUAD * quads; block++) {
        const int64_t place = i * quads + block / QUAD, part = block % QUAD;
        const int64_t stored = block < blocks ? block : blocks - 1; /* the last block again: beside zeros of x */
        int within;
        const uint8_t *at = piece_block(dtype, w, stored * BLOCK, &within);
        add_block(sum + part * 4, dtype, at, within, x->q + place * WORDS + part * 8,
                  x->scale + place * LANES + part * 4, x->total + place * LANES + part * 4);
    }
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++) sum[lane] += sum[lane + half];
    return sum[0];
}

void jpo_integers_dot(float *y, int64_t ldy, const jpo_gemm_integers *x, int64_t m, const jpo_gemm_source *s,
                      bool accumulate) {
    const size_t stride = jpo_dtype_row_bytes(s->dtype, s->k);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < s->rows; j++) {
            float sum = dot_row(x, i, s->dtype, (const uint8_t *)s->data + (size_t)(s->row0 + j) * stride, s->k);
            y[i * ldy + j] = accumulate ? y[i * ldy + j] + sum : sum;
        }
}

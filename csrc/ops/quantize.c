/* Quantization of weights into the blocks of kernels/blocks.inc, for files.
 *
 * Blocks of 32 take their factor from the largest value (or from both ends of the range) and round. Blocks of 256
 * search: each group of 32 (Q4_K, Q5_K: x = scale q - low) or of 16 (Q6_K: x = scale q) tries some twenty roundings,
 * fits the scale to each by weighted least squares and keeps the best; the groups' scales are then rounded themselves,
 * to six or eight bits of a float16 factor, and the values are rounded anew to what is left of them. Which weights,
 * which tries and which order of sums are those of ggml's reference (ggml-quants.c, quantize_row_*_ref), so that its
 * bits come out: sums run in float32 from the first value to the last, and nothing here may be fused or reassociated.
 */
#include "ops/quantize.h"

#include <math.h>
#include <string.h>

#include "base/size.h"
#include "base/threads.h"

enum { SUPER = 256, TASK_VALUES = 1 << 15 };

static const float LEAST = 1e-15f; /* a group of Q6_K below this is zero */

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* IEEE binary16, rounded to nearest, ties to even; NaN stays NaN. */
static uint16_t half_of(float value) {
    const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (size >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and above: infinity */
    if (size < 0x38800000) /* below 2^-14: the sum's last bit is 2^-24, a half's smallest step */
        return (uint16_t)(sign | (bits_of(float_of(size) + 0.5f) - bits_of(0.5f)));
    return (uint16_t)(sign | (((size + 0xfff + (size >> 13 & 1)) >> 13) - 0x1c000));
}

/* What the half stands for: its factor is used as it is stored. Never NaN or infinite here unless the values were huge.
 */
static float half_value(uint16_t half) {
    const uint32_t exponent = half >> 10 & 31, fraction = half & 0x3ff, sign = (uint32_t)(half & 0x8000) << 16;
    if (exponent == 31) return float_of(sign | 0x7f800000 | fraction << 13);
    if (!exponent) return float_of(bits_of((float)fraction * 0x1p-24f) | sign);
    return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

static void put_half(uint8_t *to, float value) {
    const uint16_t half = half_of(value);
    memcpy(to, &half, sizeof half);
}

/* The nearest integer, ties to even, of a value whose size is below 2^22. */
static int nearest(float value) {
    return (int)(bits_of(value + 12582912.0f) & 0x7fffff) - 0x400000; /* 1.5 * 2^23: the last bit of the sum is 1 */
}

static int clamp(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

/* The value without its fraction, within low..high; a factor too small to invert gives infinity or NaN here. */
static int whole(float value, int low, int high) {
    return value > (float)low ? value < (float)high ? (int)value : high : low;
}

/* The value of largest size among n, the first of equal ones, with its sign. */
static float largest(const float *x /* (n) */, int n) {
    float found = 0, size = 0;
    for (int i = 0; i < n; i++)
        if (size < fabsf(x[i])) size = fabsf(x[i]), found = x[i];
    return found;
}

/* Scalars */

static void store_f32(uint8_t *out, const float *x, int64_t blocks) { memcpy(out, x, (size_t)blocks * sizeof *x); }

static void store_f16(uint8_t *out, const float *x, int64_t blocks) {
    for (int64_t i = 0; i < blocks; i++) put_half(out + 2 * i, x[i]);
}

static void store_bf16(uint8_t *out, const float *x, int64_t blocks) {
    for (int64_t i = 0; i < blocks; i++) {
        const uint32_t bits = bits_of(x[i]);
        const bool nan = (bits & 0x7fffffff) > 0x7f800000;
        const uint16_t high = (uint16_t)(nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
        memcpy(out + 2 * i, &high, sizeof high);
    }
}

/* Blocks of 32 */

static void store_q8_0(uint8_t *out, const float *x, int64_t blocks) {
    for (int64_t b = 0; b < blocks; b++, out += 34, x += 32) {
        const float factor = fabsf(largest(x, 32)) / 127, inverse = factor != 0 ? 1.0f / factor : 0.0f;
        put_half(out, factor);
        for (int i = 0; i < 32; i++) out[2 + i] = (uint8_t)whole(roundf(x[i] * inverse), -127, 127);
    }
}

/* Two nibbles a byte: value i low, value i + 16 high. */
static void store_q4_0(uint8_t *out, const float *x, int64_t blocks) {
    for (int64_t b = 0; b < blocks; b++, out += 18, x += 32) {
        const float factor = largest(x, 32) / -8, inverse = factor != 0 ? 1.0f / factor : 0.0f;
        put_half(out, factor);
        for (int i = 0; i < 16; i++) {
            const int low = whole(x[i] * inverse + 8.5f, 0, 15);
            const int high = whole(x[i + 16] * inverse + 8.5f, 0, 15);
            out[2 + i] = (uint8_t)(low | high << 4);
        }
    }
}

/* Values q (32) of five bits: the fifth bits as one word, then the nibbles as in Q4_0. */
static void put_five_bits(uint8_t *out /* (20) */, const int *q) {
    uint32_t fifth = 0;
    for (int i = 0; i < 32; i++) fifth |= (uint32_t)(q[i] >> 4) << i;
    memcpy(out, &fifth, sizeof fifth);
    for (int i = 0; i < 16; i++) out[4 + i] = (uint8_t)((q[i] & 15) | (q[i + 16] & 15) << 4);
}

static void store_q5_0(uint8_t *out, const float *x, int64_t blocks) {
    int q[32];
    for (int64_t b = 0; b < blocks; b++, out += 22, x += 32) {
        const float factor = largest(x, 32) / -16, inverse = factor != 0 ? 1.0f / factor : 0.0f;
        put_half(out, factor);
        for (int i = 0; i < 32; i++) q[i] = whole(x[i] * inverse + 16.5f, 0, 31);
        put_five_bits(out + 2, q);
    }
}

static void store_q5_1(uint8_t *out, const float *x, int64_t blocks) {
    int q[32];
    for (int64_t b = 0; b < blocks; b++, out += 24, x += 32) {
        float low = x[0], high = x[0];
        for (int i = 1; i < 32; i++) low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
        const float factor = (high - low) / 31, inverse = factor != 0 ? 1.0f / factor : 0.0f;
        put_half(out, factor);
        put_half(out + 2, low);
        for (int i = 0; i < 32; i++) q[i] = whole((x[i] - low) * inverse + 0.5f, 0, 31);
        put_five_bits(out + 4, q);
    }
}

/* Q4_K and Q5_K */

typedef struct {
    int most;          /* the largest q */
    float first, step; /* tries round with (most + first + step t) / range */
    int tries;         /* t = 0..tries */
} range_search;

/* sum w (scale q + low - x)^2 */
static float error_of(const float *x, const float *weight, const uint8_t *q, float scale, float low) {
    float sum = 0;
    for (int i = 0; i < 32; i++) {
        const float difference = scale * (float)q[i] + low - x[i];
        sum += weight[i] * (difference * difference);
    }
    return sum;
}

static void round_range(uint8_t *q, const float *x, float inverse, float low, int most) {
    for (int i = 0; i < 32; i++) q[i] = (uint8_t)clamp(nearest(inverse * (x[i] - low)), 0, most);
}

/* q (32), and the scale and low <= 0 with x ~ scale q + low, by the tries of `search`; returns the scale. */
static float fit_range(uint8_t *q, float *low_out, const float *x, const float *weight, const range_search *search) {
    float low = x[0], high = x[0], sum_w = weight[0], sum_x = sum_w * x[0];
    for (int i = 1; i < 32; i++) {
        low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
        sum_w += weight[i];
        sum_x += weight[i] * x[i];
    }
    if (low > 0) low = 0;
    if (high == low) {
        memset(q, 0, 32);
        *low_out = low;
        return 0;
    }
    float inverse = (float)search->most / (high - low), scale = 1 / inverse;
    round_range(q, x, inverse, low, search->most);
    float best = error_of(x, weight, q, scale, low);
    for (int t = 0; t <= search->tries; t++) {
        uint8_t tried[32];
        /* low is that of the best try so far, as in the reference */
        inverse = (search->first + search->step * (float)t + (float)search->most) / (high - low);
        round_range(tried, x, inverse, low, search->most);
        float sum_q = 0, sum_q2 = 0, sum_xq = 0;
        for (int i = 0; i < 32; i++) {
            const float part = weight[i] * (float)tried[i];
            sum_q += part;
            sum_q2 += part * (float)tried[i];
            sum_xq += part * x[i];
        }
        const float determinant = sum_w * sum_q2 - sum_q * sum_q;
        if (!(determinant > 0)) continue;
        float new_scale = (sum_w * sum_xq - sum_x * sum_q) / determinant;
        float new_low = (sum_q2 * sum_x - sum_q * sum_xq) / determinant;
        if (new_low > 0) new_low = 0, new_scale = sum_xq / sum_q2;
        const float error = error_of(x, weight, tried, new_scale, new_low);
        if (error < best) {
            memcpy(q, tried, 32);
            best = error, scale = new_scale, low = new_low;
        }
    }
    *low_out = low;
    return scale;
}

/* Eight scales and eight minima of six bits in 12 bytes: the first four of each in the low six bits of bytes 0..7, the
 * nibbles of the others in bytes 8..11, their upper two bits above the first ones'. */
static void put_six_bits(uint8_t *out /* (12) */, const uint8_t *scale, const uint8_t *minimum /* (8) each */) {
    for (int j = 0; j < 4; j++) {
        out[j] = (uint8_t)(scale[j] | scale[j + 4] >> 4 << 6);
        out[j + 4] = (uint8_t)(minimum[j] | minimum[j + 4] >> 4 << 6);
        out[j + 8] = (uint8_t)((scale[j + 4] & 15) | (minimum[j + 4] & 15) << 4);
    }
}

/* q (256) of a block of 256 values and its first 16 bytes: float16 factor of the scales and of the minima, 12 bytes. */
static void fit_super(uint8_t *out, uint8_t *q, const float *x, const range_search *search) {
    float scale[8], minimum[8], most_scale = 0, most_minimum = 0;
    for (int j = 0; j < 8; j++) {
        const float *group = x + 32 * j;
        float weight[32], squares = 0;
        for (int i = 0; i < 32; i++) squares += group[i] * group[i];
        const float size = sqrtf(squares / 32);
        for (int i = 0; i < 32; i++) weight[i] = size + fabsf(group[i]);
        scale[j] = fit_range(q + 32 * j, &minimum[j], group, weight, search);
        minimum[j] = -minimum[j];
        most_scale = scale[j] > most_scale ? scale[j] : most_scale;
        most_minimum = minimum[j] > most_minimum ? minimum[j] : most_minimum;
    }
    uint8_t scales[8], minima[8];
    const float to_scale = most_scale > 0 ? 63.0f / most_scale : 0.0f;
    const float to_minimum = most_minimum > 0 ? 63.0f / most_minimum : 0.0f;
    for (int j = 0; j < 8; j++) { /* a fitted scale may be negative: as a byte it is above 63, as in the reference */
        const uint8_t s = (uint8_t)nearest(to_scale * scale[j]), m = (uint8_t)nearest(to_minimum * minimum[j]);
        scales[j] = s < 63 ? s : 63;
        minima[j] = m < 63 ? m : 63;
    }
    put_half(out, most_scale / 63.0f);
    put_half(out + 2, most_minimum / 63.0f);
    put_six_bits(out + 4, scales, minima);
    const float unit = half_value(half_of(most_scale / 63.0f)), low_unit = half_value(half_of(most_minimum / 63.0f));
    for (int j = 0; j < 8; j++) {
        const float factor = unit * (float)scales[j], low = low_unit * (float)minima[j];
        if (factor == 0) continue;
        for (int i = 32 * j; i < 32 * (j + 1); i++)
            q[i] = (uint8_t)clamp(nearest((x[i] + low) / factor), 0, search->most);
    }
}

/* Nibbles of 64 values a run of 32 bytes: value i low, value i + 32 high. */
static void put_nibbles(uint8_t *out /* (128) */, const uint8_t *q /* (256) */) {
    for (int n = 0; n < SUPER; n += 64, out += 32)
        for (int i = 0; i < 32; i++) out[i] = (uint8_t)((q[n + i] & 15) | (q[n + i + 32] & 15) << 4);
}

static void store_q4_k(uint8_t *out, const float *x, int64_t blocks) {
    static const range_search search = {15, -1.0f, 0.1f, 20};
    uint8_t q[SUPER];
    for (int64_t b = 0; b < blocks; b++, out += 144, x += SUPER) {
        fit_super(out, q, x, &search);
        put_nibbles(out + 16, q);
    }
}

static void store_q5_k(uint8_t *out, const float *x, int64_t blocks) {
    static const range_search search = {31, -0.5f, 0.1f, 15};
    uint8_t q[SUPER];
    for (int64_t b = 0; b < blocks; b++, out += 176, x += SUPER) {
        fit_super(out, q, x, &search);
        memset(out + 16, 0, 32);
        for (int i = 0; i < SUPER; i++) out[16 + i % 32] |= (uint8_t)(q[i] >> 4 << i / 32);
        put_nibbles(out + 48, q);
    }
}

/* Q6_K */

/* One rounding of 16 values with `inverse`: sums of w x q and w q q, w = x x; q (16), if given, from 0 to 63. */
static void round_symmetric(int8_t *q, float *sum_xq, float *sum_q2, const float *x, float inverse) {
    float xq = 0, q2 = 0;
    for (int i = 0; i < 16; i++) {
        const int l = clamp(nearest(inverse * x[i]), -32, 31);
        if (q) q[i] = (int8_t)(l + 32);
        const float w = x[i] * x[i];
        xq += w * x[i] * (float)l;
        q2 += w * (float)l * (float)l;
    }
    *sum_xq = xq, *sum_q2 = q2;
}

/* q (16), and the scale with x ~ scale (q - 32). */
static float fit_symmetric(int8_t *q, const float *x) {
    const float most = largest(x, 16);
    if (fabsf(most) < LEAST) {
        memset(q, 0, 16);
        return 0;
    }
    float sum_xq, sum_q2;
    round_symmetric(q, &sum_xq, &sum_q2, x, -32 / most);
    float scale = sum_q2 != 0 ? sum_xq / sum_q2 : 0.0f, best = scale * sum_xq;
    for (int t = -9; t <= 9; t++) {
        if (!t) continue;
        const float inverse = -(32 + 0.1f * (float)t) / most;
        round_symmetric(NULL, &sum_xq, &sum_q2, x, inverse);
        if (sum_q2 > 0 && sum_xq * sum_xq > best * sum_q2) {
            scale = sum_xq / sum_q2, best = scale * sum_xq;
            round_symmetric(q, &sum_xq, &sum_q2, x, inverse);
        }
    }
    return scale;
}

static void store_q6_k(uint8_t *out, const float *x, int64_t blocks) {
    int8_t q[SUPER], *scales;
    float scale[16];
    for (int64_t b = 0; b < blocks; b++, out += 210, x += SUPER) {
        float most = 0;
        for (int j = 0; j < 16; j++) {
            scale[j] = fit_symmetric(q + 16 * j, x + 16 * j);
            if (fabsf(scale[j]) > fabsf(most)) most = scale[j];
        }
        memset(out, 0, 210);
        if (fabsf(most) < LEAST) continue;
        const float inverse = -128.0f / most, unit = half_value(half_of(1 / inverse));
        scales = (int8_t *)out + 192;
        put_half(out + 208, 1 / inverse);
        for (int j = 0; j < 16; j++) {
            const int s = nearest(inverse * scale[j]);
            scales[j] = (int8_t)(s < 127 ? s : 127);
            const float factor = unit * (float)scales[j];
            for (int i = 16 * j; factor != 0 && i < 16 * (j + 1); i++)
                q[i] = (int8_t)(clamp(nearest(x[i] / factor), -32, 31) + 32);
        }
        /* halves of 128: nibbles of values i and i + 64 share a byte, then two upper bits of four values share one */
        for (int i = 0; i < SUPER; i++) {
            const int half = i / 128, place = i % 128;
            out[64 * half + place % 64] |= (uint8_t)((q[i] & 15) << 4 * (place / 64));
            out[128 + 32 * half + place % 32] |= (uint8_t)(q[i] >> 4 << 2 * (place / 32));
        }
    }
}

typedef void (*store)(uint8_t *out, const float *x, int64_t blocks);

static const store STORES[JPO_DTYPE_COUNT] = {
    [JPO_F32] = store_f32,   [JPO_F16] = store_f16,   [JPO_BF16] = store_bf16, [JPO_Q8_0] = store_q8_0,
    [JPO_Q4_0] = store_q4_0, [JPO_Q5_0] = store_q5_0, [JPO_Q5_1] = store_q5_1, [JPO_Q4_K] = store_q4_k,
    [JPO_Q5_K] = store_q5_k, [JPO_Q6_K] = store_q6_k,
};

bool jpo_quantizes(jpo_dtype dtype) { return STORES[dtype] != NULL; }

typedef struct {
    uint8_t *out;
    const float *values;
    jpo_dtype dtype;
    int64_t blocks, each; /* in all, in one task */
} quantization;

static void quantize_task(void *context, int64_t task, int thread) {
    const quantization *job = context;
    (void)thread;
    const int64_t first = task * job->each, count = jpo_min64(job->each, job->blocks - first);
    STORES[job->dtype](job->out + (size_t)first * jpo_dtype_block_bytes(job->dtype),
                       job->values + first * jpo_dtype_block(job->dtype), count);
}

void jpo_quantize_row(void *out, const float *values, jpo_dtype dtype, int64_t count) {
    STORES[dtype](out, values, count / jpo_dtype_block(dtype));
}

void jpo_quantize(uint8_t *out, const float *values, jpo_dtype dtype, int64_t count) {
    const int64_t block = jpo_dtype_block(dtype);
    quantization job = {out, values, dtype, count / block, TASK_VALUES / block};
    jpo_parallel(jpo_ceil_div(job.blocks, job.each), quantize_task, &job);
}

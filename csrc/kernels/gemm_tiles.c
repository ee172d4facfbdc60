/* The tile kernels in portable C: what gemm_amx.c computes, bit for bit. It is the definition, and how the tile code is
 * tested where there are no tiles. */
#include <string.h>

#include "kernels/gemm.h"
#include "kernels/panels.inc"

enum { BLOCK = JPO_GEMM_BLOCK, PANEL = 32 };

typedef struct {
    char row[16][64];
} tile;

/* Subnormal numbers are zero, as in the hardware, which ignores the floating point environment. */
static float flushed(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x7f800000 ? x : bits_float(bits & 0x80000000);
}

/* To nearest even; subnormal numbers become zero, NaN stays NaN. */
static uint16_t round_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return (uint16_t)(bits >> 16 | 0x40);
    if (!(bits & 0x7f800000)) return (uint16_t)(bits >> 16 & 0x8000);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float bf16_at(const char *p) {
    uint16_t bits;
    memcpy(&bits, p, sizeof bits);
    return flushed(bits_float((uint32_t)bits << 16));
}

static void tile_load(tile *t, const void *p, int64_t stride) {
    for (int r = 0; r < 16; r++) memcpy(t->row[r], (const char *)p + r * stride, 64);
}
static void tile_store(const tile *t, void *p, int64_t stride) {
    for (int r = 0; r < 16; r++) memcpy((char *)p + r * stride, t->row[r], 64);
}
/* A product of two bfloat16 and its sum with a float are exact in double up to one rounding, and two roundings, the
 * second to less than half the bits, are one: this is the fused multiply-add. */
static void multiply_add(float *restrict sum, float x, const float *restrict y) {
    for (int j = 0; j < 16; j++) sum[j] = flushed((float)((double)x * y[j] + sum[j]));
}

static void tile_dot(tile *c, const tile *a, const tile *b) {
    float wide[2][16][16];
    for (int p = 0; p < 16; p++)
        for (int j = 0; j < 32; j++) wide[j % 2][p][j / 2] = bf16_at(b->row[p] + 2 * j);
    for (int r = 0; r < 16; r++) {
        float sum[2][16] = {{0}}, out[16];
        for (int p = 0; p < 16; p++) {
            multiply_add(sum[0], bf16_at(a->row[r] + 4 * p), wide[0][p]);
            multiply_add(sum[1], bf16_at(a->row[r] + 4 * p + 2), wide[1][p]);
        }
        memcpy(out, c->row[r], sizeof out);
        for (int j = 0; j < 16; j++) out[j] = flushed(flushed(out[j]) + flushed(sum[0][j] + sum[1][j]));
        memcpy(c->row[r], out, sizeof out);
    }
}

#define TILE_INLINE static inline
#define TILE_STATE tile tiles[8];
#define TILE_PARAMETER , tile *tiles
#define TILE_ARGUMENT , tiles
#define TILE_LOAD(t, p, stride) tile_load(&tiles[t], p, stride)
#define TILE_ZERO(t) memset(&tiles[t], 0, sizeof tiles[t])
#define TILE_STORE(t, p, stride) tile_store(&tiles[t], p, stride)
#define TILE_DOT(c, a, b) tile_dot(&tiles[c], &tiles[a], &tiles[b])
#define TILE_FENCE() ((void)0)
#define TILE_BEGIN NULL
#define TILE_END NULL
#define TILE_RANGE 2048
#define TILE_SMALL_ROWS 8

/* value -> its parts, part p at out + p * distance. */
static void split(char *out, int64_t distance, int parts, float value) {
    uint16_t bits = round_bf16(value);
    memcpy(out, &bits, sizeof bits);
    if (parts < 2) return;
    bits = round_bf16(value - bits_float((uint32_t)bits << 16));
    memcpy(out + distance, &bits, sizeof bits);
}

/* One tile of each part: 16 rows of 32 values, zeros where there are none; the parts are two tiles apart. */
static void split_rows(char *out, int parts, const float *x, int64_t ldx, int rows, int count) {
    for (int r = 0; r < 16; r++)
        for (int d = 0; d < 32; d++)
            split(out + r * 64 + 2 * d, 2048, parts, r < rows && d < count ? x[r * ldx + d] : 0);
}

/* A panel: blocks of 32 along the depth. */
static void pack_panel(char *panel, const jpo_gemm_source *s, bool backward, int parts) {
    const int64_t depth = backward ? s->rows : s->columns, width = backward ? s->columns : s->rows;
    const size_t stride = jpo_dtype_row_bytes(s->dtype, s->k);
    const char *data = (const char *)s->data + (size_t)s->row0 * stride;
    for (int64_t d0 = 0; d0 < depth; d0 += 32, panel += parts * 2048) {
        float part[32][32] = {{0}}; /* rows of W, columns of W */
        const int64_t count = depth - d0 < 32 ? depth - d0 : 32;
        for (int64_t r = 0; r < (backward ? count : width); r++)
            widen_row(part[r], s->dtype, data + (size_t)(backward ? d0 + r : r) * stride,
                      s->column0 + (backward ? 0 : d0), backward ? width : count);
        for (int d = 0; d < 32; d++)
            for (int c = 0; c < 32; c++)
                split(panel + c / 16 * 1024 + d / 2 * 64 + c % 16 * 4 + d % 2 * 2, 2048, parts,
                      backward ? part[d][c] : part[c][d]);
    }
}
static void pack(char *panel, const jpo_gemm_source *s, bool backward, int parts) {
    jpo_gemm_source one = *s;
    if (s->dtype == JPO_BF16) parts = 1;
    if (!backward) {
        pack_panel(panel, s, false, parts);
        return;
    }
    for (int64_t c = 0; c < s->columns; c += PANEL, panel += (s->rows + BLOCK - 1) / BLOCK * parts * 2048) {
        one.column0 = s->column0 + c, one.columns = s->columns - c < PANEL ? s->columns - c : PANEL;
        pack_panel(panel, &one, true, parts);
    }
}
static void forward_1(void *panel, const jpo_gemm_source *s) { pack(panel, s, false, 1); }
static void forward_2(void *panel, const jpo_gemm_source *s) { pack(panel, s, false, 2); }
static void backward_1(void *panel, const jpo_gemm_source *s) { pack(panel, s, true, 1); }
static void backward_2(void *panel, const jpo_gemm_source *s) { pack(panel, s, true, 2); }

#include "kernels/gemm_tiles.inc"

TILE_KERNEL(portable_bfloat16, JPO_COMPUTE_BFLOAT16, 0, 1, 1, &jpo_integers_generic, JPO_COMPUTE_BFLOAT16)
TILE_KERNEL(portable_bfloat16x2, JPO_COMPUTE_BFLOAT16X2, 0, 2, 1, &jpo_integers_generic, JPO_COMPUTE_BFLOAT16X3)
TILE_KERNEL(portable_bfloat16x3, JPO_COMPUTE_BFLOAT16X3, 0, 2, 2, NULL, JPO_COMPUTE_BFLOAT16X3)

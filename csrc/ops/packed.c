/* Packed tiles and their products: which table serves which compute type, the layout of a tile, the walk over it. */
#include "ops/packed.h"

#include "base/cpu.h"
#include "base/size.h"
#include "ops/blas.h"

enum { BLOCK = JPO_GEMM_BLOCK, MOST_DEPTH = 576, BLOCK_BYTES = 256 << 10 };

static bool portable_allowed, openblas_preferred;
void jpo_packed_allow_portable(bool allow) { portable_allowed = allow; }
void jpo_packed_prefer_openblas(bool prefer) { openblas_preferred = prefer; }

static const jpo_gemm_table *native_table(jpo_compute compute) {
#if defined(__x86_64__)
    const jpo_cpu *cpu = jpo_cpu_get();
    if (cpu->chosen == JPO_ISA_AVX512 && (compute != JPO_COMPUTE_INT16 || cpu->avx512_vnni) &&
        (compute != JPO_COMPUTE_BFLOAT16 || cpu->avx512_bf16))
        return &jpo_gemm_avx512;
    if (compute != JPO_COMPUTE_BFLOAT16 && cpu->avx2 && cpu->chosen != JPO_ISA_GENERIC) return &jpo_gemm_avx2;
#endif
    (void)compute;
    return NULL;
}

const jpo_gemm_table *jpo_packed_table(jpo_compute compute) {
    if (compute == JPO_COMPUTE_FLOAT32 && openblas_preferred) return NULL;
    const jpo_gemm_table *table = native_table(compute);
    if (!table && compute != JPO_COMPUTE_FLOAT32 && portable_allowed) table = &jpo_gemm_generic;
    return table;
}

const jpo_gemm_table *jpo_packed_dot_table(void) {
#if defined(__x86_64__)
    if (jpo_cpu_get()->chosen == JPO_ISA_AVX512) return &jpo_gemm_avx512;
    if (jpo_cpu_get()->chosen == JPO_ISA_AVX2) return &jpo_gemm_avx2;
#endif
    return &jpo_gemm_generic;
}

void jpo_packed_widen(float *out, const jpo_weight *w, int64_t row, int64_t column0, int64_t columns) {
    const char *data = (const char *)w->data + (size_t)row * jpo_dtype_row_bytes(w->dtype, w->k);
    jpo_packed_dot_table()->widen(out, w->dtype, data, column0, columns);
}

/* ---- layout: ranges of the depth, in each the panels one after the other ---- */

int64_t jpo_packed_range(int64_t depth) {
    return jpo_max64(jpo_round_up(jpo_ceil_div(depth, jpo_ceil_div(depth, MOST_DEPTH)), BLOCK), BLOCK);
}

/* Bytes of one panel over `depth`. */
static size_t panel_bytes(const jpo_gemm_table *table, const jpo_weight *w, bool backward, int64_t depth) {
    size_t line = (size_t)table->panel * 4;
    switch (w->compute) {
    case JPO_COMPUTE_INT16:
        return (size_t)(jpo_ceil_div(depth, BLOCK) * jpo_gemm_int16_lines(w->dtype, backward)) * line;
    case JPO_COMPUTE_BFLOAT16:
        return (size_t)jpo_ceil_div(depth, 2) * line;
    default:
        return (size_t)depth * line;
    }
}

size_t jpo_packed_tile_bytes(const jpo_weight *w, int64_t depth, int64_t columns) {
    const jpo_gemm_table *table = jpo_packed_table(w->compute);
    if (!table) return (size_t)jpo_round_up(w->dtype == JPO_F32 ? 0 : depth * columns * 4, 64);
    int64_t range = jpo_packed_range(depth), ranges = jpo_ceil_div(depth, range);
    size_t bytes = panel_bytes(table, w, false, range) * (size_t)(ranges - 1) + /* backward needs no more */
                   panel_bytes(table, w, false, depth - range * (ranges - 1));
    return (bytes * (size_t)jpo_ceil_div(columns, table->panel) + 63) / 64 * 64;
}

void jpo_packed_open(jpo_packed_tile *tile, void *memory, const jpo_weight *w, int64_t row0, int64_t rows,
                     int64_t column0, int64_t columns, bool backward) {
    *tile = (jpo_packed_tile){jpo_packed_table(w->compute),
                              w->compute,
                              backward ? rows : columns,
                              backward ? columns : rows,
                              w,
                              row0,
                              column0,
                              backward,
                              memory};
}

/* Panels; for OpenBLAS, groups of 32 rows that are widened into a rectangle of W's orientation. */
int64_t jpo_packed_parts(const jpo_packed_tile *tile) {
    if (tile->table) return jpo_ceil_div(tile->columns, tile->table->panel);
    if (tile->w->dtype == JPO_F32) return 0;
    return jpo_ceil_div(tile->backward ? tile->depth : tile->columns, BLOCK);
}

static void widen_part(const jpo_packed_tile *tile, int64_t part) {
    const jpo_weight *w = tile->w;
    int64_t rows = tile->backward ? tile->depth : tile->columns, columns = tile->backward ? tile->columns : tile->depth;
    int64_t first = part * BLOCK;
    for (int64_t row = first; row < jpo_min64(first + BLOCK, rows); row++)
        jpo_packed_widen((float *)tile->memory + row * columns, w, tile->row0 + row, tile->column0, columns);
}

void jpo_packed_pack_part(const jpo_packed_tile *tile, int64_t part) {
    const jpo_gemm_table *table = tile->table;
    if (!table) {
        widen_part(tile, part);
        return;
    }
    const jpo_weight *w = tile->w;
    jpo_gemm_pack pack = (tile->backward ? table->backward : table->forward)[w->compute];
    jpo_gemm_source source = {.data = w->data, .dtype = w->dtype, .k = w->k};
    int64_t range = jpo_packed_range(tile->depth), panels = jpo_packed_parts(tile);
    int64_t c0 = part * table->panel, width = jpo_min64(table->panel, tile->columns - c0);
    char *out = tile->memory;
    for (int64_t d0 = 0; d0 < tile->depth; d0 += range) {
        int64_t depth = jpo_min64(range, tile->depth - d0);
        size_t bytes = panel_bytes(table, w, tile->backward, depth);
        source.row0 = tile->row0 + (tile->backward ? d0 : c0), source.rows = tile->backward ? depth : width;
        source.column0 = tile->column0 + (tile->backward ? c0 : d0), source.columns = tile->backward ? width : depth;
        pack(out + (size_t)part * bytes, &source);
        out += (size_t)panels * bytes;
    }
}

void jpo_packed_pack(jpo_packed_tile *tile, void *memory, const jpo_weight *w, int64_t row0, int64_t rows,
                     int64_t column0, int64_t columns, bool backward) {
    jpo_packed_open(tile, memory, w, row0, rows, column0, columns, backward);
    for (int64_t part = 0; part < jpo_packed_parts(tile); part++) jpo_packed_pack_part(tile, part);
}

/* ---- activations ---- */

static int64_t row_pairs(jpo_compute compute, int64_t depth) {
    if (compute == JPO_COMPUTE_INT16) return jpo_ceil_div(depth, BLOCK) * (BLOCK / 2);
    return jpo_ceil_div(depth, 2);
}

size_t jpo_packed_scratch_bytes(const jpo_weight *w, int64_t m, int64_t depth) {
    if (w->compute == JPO_COMPUTE_FLOAT32) return 0;
    size_t blocks = w->compute == JPO_COMPUTE_INT16 ? 2 * (size_t)jpo_ceil_div(depth, BLOCK) : 0; /* scales, totals */
    return ((size_t)m * ((size_t)row_pairs(w->compute, depth) + blocks) * 4 + 63) / 64 * 64;
}

static void rows_open(jpo_packed_rows *rows, const jpo_gemm_table *table, const jpo_weight *w, bool backward,
                      const float *x, int64_t ldx, int64_t m, int64_t depth, void *memory) {
    *rows = (jpo_packed_rows){.table = table,
                              .compute = w->compute,
                              .depth = depth,
                              .x = x,
                              .ldx = ldx,
                              .in16 = {.pairs = memory, .ldp = row_pairs(w->compute, depth)}};
    if (w->compute != JPO_COMPUTE_INT16) return;
    jpo_gemm_rows *in16 = &rows->in16;
    in16->scale = (float *)(in16->pairs + m * in16->ldp);
    in16->lds = jpo_ceil_div(depth, BLOCK);
    if (jpo_gemm_int16_lines(w->dtype, backward) > BLOCK / 2 + 1) in16->total = in16->scale + m * in16->lds;
    rows->most = jpo_gemm_stored(w->dtype, backward) ? JPO_GEMM_STORED_ROWS_MAX : JPO_GEMM_ROWS_MAX;
}

void jpo_packed_rows_open(jpo_packed_rows *rows, const jpo_weight *w, bool backward, const float *x, int64_t ldx,
                          int64_t m, int64_t depth, void *memory) {
    rows_open(rows, jpo_packed_table(w->compute), w, backward, x, ldx, m, depth, memory);
}

/* From row `row` and block `block` on. */
static jpo_gemm_rows rows_from(const jpo_gemm_rows *all, int64_t row, int64_t block) {
    jpo_gemm_rows part = *all;
    part.pairs += row * all->ldp + block * (BLOCK / 2);
    part.scale += row * all->lds + block;
    if (part.total) part.total += row * all->lds + block;
    return part;
}

void jpo_packed_rows_convert(const jpo_packed_rows *rows, int64_t row0, int64_t count) {
    if (rows->compute == JPO_COMPUTE_FLOAT32) return;
    for (int64_t i = row0; i < row0 + count; i++) {
        if (rows->compute == JPO_COMPUTE_INT16) {
            const jpo_gemm_rows to = rows_from(&rows->in16, i, 0);
            rows->table->quantize_int16(&to, rows->x + i * rows->ldx, rows->depth, rows->most);
        } else {
            rows->table->round_bfloat16(rows->in16.pairs + i * rows->in16.ldp, rows->x + i * rows->ldx, rows->depth);
        }
    }
}

/* ---- products ---- */

typedef struct {
    const jpo_packed_rows *rows;
    const jpo_packed_tile *tile;
    float *y;
    int64_t ldy, row0, count;
    int group; /* rows of a full tile */
} walk;

static int group_rows(const jpo_gemm_table *table, jpo_compute compute) {
    return compute == JPO_COMPUTE_FLOAT32 ? table->rows_float32
           : compute == JPO_COMPUTE_INT16 ? table->rows_int16
                                          : table->rows_bfloat16;
}

static void multiply_group(const walk *w, int64_t i, int rows, int64_t d0, int64_t depth, const void *panel, int64_t c0,
                           int columns, bool accumulate) {
    const jpo_packed_rows *r = w->rows;
    const jpo_gemm_table *table = w->tile->table;
    float *out = w->y + i * w->ldy + c0;
    int64_t row = w->row0 + i;
    if (r->compute == JPO_COMPUTE_FLOAT32) {
        table->tile_float32(out, w->ldy, r->x + row * r->ldx + d0, r->ldx, panel, depth, rows, columns, accumulate);
    } else if (r->compute == JPO_COMPUTE_BFLOAT16) {
        table->tile_bfloat16(out, w->ldy, r->in16.pairs + row * r->in16.ldp + d0 / 2, r->in16.ldp, panel,
                             jpo_ceil_div(depth, 2), rows, columns, accumulate);
    } else {
        const jpo_gemm_rows a = rows_from(&r->in16, row, d0 / BLOCK);
        table->tile_int16(out, w->ldy, &a, panel, jpo_ceil_div(depth, BLOCK), rows, columns, accumulate);
    }
}

/* Rows of activations that stay in the second cache while the panels of one range pass: whole groups. */
static int64_t block_rows(const walk *w, int64_t depth) {
    int64_t bytes = depth * (w->tile->compute == JPO_COMPUTE_FLOAT32 ? 4 : 2);
    return jpo_max64(BLOCK_BYTES / bytes / w->group, 1) * w->group;
}

/* One panel for rows first..end: the panel stays in the first or second cache, groups of rows pass by. Rows are dealt
 * to groups evenly, so that none is left alone. */
static void multiply_panel(const walk *w, int64_t first, int64_t end, int64_t d0, int64_t depth, const void *panel,
                           int64_t c0, int columns, bool accumulate) {
    int64_t groups = jpo_ceil_div(end - first, w->group);
    for (int64_t g = 0, i = first; g < groups; g++) {
        int rows = (int)jpo_ceil_div(end - i, groups - g);
        multiply_group(w, i, rows, d0, depth, panel, c0, columns, accumulate);
        i += rows;
    }
}

void jpo_packed_multiply_rows(float *y, int64_t ldy, const jpo_packed_rows *rows, int64_t row0, int64_t count,
                              int64_t depth0, const jpo_packed_tile *tile, bool accumulate) {
    if (!tile->table) {
        bool whole = tile->w->dtype == JPO_F32; /* W itself, not a widened rectangle */
        int64_t ld = whole ? tile->w->k : tile->backward ? tile->columns : tile->depth;
        const float *b = whole ? (const float *)tile->w->data + tile->row0 * ld + tile->column0 : tile->memory;
        jpo_sgemm(false, !tile->backward, count, tile->columns, tile->depth, 1, rows->x + row0 * rows->ldx + depth0,
                  rows->ldx, b, ld, accumulate, y, ldy);
        return;
    }
    const walk w = {rows, tile, y, ldy, row0, count, group_rows(tile->table, tile->compute)};
    const int64_t range = jpo_packed_range(tile->depth), panel = tile->table->panel;
    const char *data = tile->memory;
    for (int64_t d0 = 0; d0 < tile->depth; d0 += range) {
        int64_t depth = jpo_min64(range, tile->depth - d0), block = block_rows(&w, depth);
        size_t bytes = panel_bytes(tile->table, tile->w, tile->backward, depth);
        for (int64_t i = 0; i < count; i += block)
            for (int64_t c0 = 0; c0 < tile->columns; c0 += panel)
                multiply_panel(&w, i, jpo_min64(i + block, count), depth0 + d0, depth,
                               data + (size_t)(c0 / panel) * bytes, c0, (int)jpo_min64(panel, tile->columns - c0),
                               accumulate || d0);
        data += (size_t)jpo_ceil_div(tile->columns, panel) * bytes;
    }
}

void jpo_packed_multiply(float *y, int64_t ldy, const float *x, int64_t ldx, int64_t m, const jpo_packed_tile *tile,
                         bool accumulate, void *scratch) {
    jpo_packed_rows rows;
    rows_open(&rows, tile->table, tile->w, tile->backward, x, ldx, m, tile->depth, scratch);
    jpo_packed_rows_convert(&rows, 0, m);
    jpo_packed_multiply_rows(y, ldy, &rows, 0, m, 0, tile, accumulate);
}

/* Packed tiles and their products: the layout of a tile, the loop over it. The kernel is the caller's choice, what a
 * panel and converted rows hold is the kernel's. */
#include "ops/packed.h"

#include "base/size.h"
#include "ops/blas.h"

enum {
    BLOCK = JPO_GEMM_BLOCK,
    OPENBLAS_RANGE = 576,
    WIDE_PART = 8, /* panels that a wide kernel packs together */
    /* Bytes of rows that stay in the second cache while the panels of one range pass. Where that cache is large (2 MB):
     * few where all the panels stay there too, else many. */
    ROWS_BYTES = 256 << 10,
    FEW_ROWS_BYTES = 128 << 10,
    MANY_ROWS_BYTES = 768 << 10,
    PANELS_BYTES = 1 << 20
};

static bool openblas_preferred;
void jpo_packed_prefer_openblas(bool prefer) { openblas_preferred = prefer; }

const jpo_gemm_kernel *jpo_packed_kernel(const jpo_weight *w) {
    return w->compute == JPO_COMPUTE_FLOAT32 && openblas_preferred ? NULL : jpo_gemm_find(w->compute);
}

void jpo_packed_widen(float *out, const jpo_weight *w, int64_t row, int64_t column0, int64_t columns) {
    const char *data = (const char *)w->data + (size_t)row * jpo_dtype_row_bytes(w->dtype, w->k);
    jpo_gemv_find()->widen(out, w->dtype, data, column0, columns);
}

/* ---- layout: ranges of the depth, in each the panels one after the other ---- */

int64_t jpo_packed_range(const jpo_gemm_kernel *kernel, int64_t depth) {
    const int64_t most = kernel ? kernel->range : OPENBLAS_RANGE;
    return jpo_max64(jpo_round_up(jpo_ceil_div(depth, jpo_ceil_div(depth, most)), BLOCK), BLOCK);
}

static size_t tile_bytes(const jpo_gemm_kernel *kernel, const jpo_weight *w, bool backward, int64_t depth,
                         int64_t columns) {
    int64_t range = jpo_packed_range(kernel, depth), ranges = jpo_ceil_div(depth, range);
    size_t bytes = kernel->panel_bytes(w->dtype, backward, range) * (size_t)(ranges - 1) +
                   kernel->panel_bytes(w->dtype, backward, depth - range * (ranges - 1));
    return bytes * (size_t)jpo_ceil_div(columns, kernel->panel);
}

size_t jpo_packed_tile_bytes(const jpo_weight *w, int64_t depth, int64_t columns) {
    const jpo_gemm_kernel *kernel = jpo_packed_kernel(w);
    if (!kernel) return (size_t)jpo_round_up(w->dtype == JPO_F32 ? 0 : depth * columns * 4, 64);
    size_t forward = tile_bytes(kernel, w, false, depth, columns),
           backward = tile_bytes(kernel, w, true, depth, columns);
    return ((forward > backward ? forward : backward) + 63) / 64 * 64;
}

void jpo_packed_open(jpo_packed_tile *tile, void *memory, const jpo_weight *w, int64_t row0, int64_t rows,
                     int64_t column0, int64_t columns, bool backward) {
    *tile = (jpo_packed_tile){.kernel = jpo_packed_kernel(w),
                              .depth = backward ? rows : columns,
                              .columns = backward ? columns : rows,
                              .w = w,
                              .row0 = row0,
                              .column0 = column0,
                              .backward = backward,
                              .memory = memory};
}

static int64_t panels_of(const jpo_packed_tile *tile) { return jpo_ceil_div(tile->columns, tile->kernel->panel); }

static int64_t panels_of_part(const jpo_packed_tile *tile) {
    return tile->backward && tile->kernel->wide ? WIDE_PART : 1;
}

/* Panels; for OpenBLAS, groups of 32 rows that are widened into a rectangle of W's orientation. */
int64_t jpo_packed_parts(const jpo_packed_tile *tile) {
    if (tile->kernel) return jpo_ceil_div(panels_of(tile), panels_of_part(tile));
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

static void pack_panels(const jpo_packed_tile *tile, int64_t first, int64_t count) {
    const jpo_gemm_kernel *kernel = tile->kernel;
    const jpo_weight *w = tile->w;
    jpo_gemm_source source = {.data = w->data, .dtype = w->dtype, .k = w->k};
    int64_t range = jpo_packed_range(kernel, tile->depth), panels = panels_of(tile);
    int64_t c0 = first * kernel->panel, width = jpo_min64(count * kernel->panel, tile->columns - c0);
    char *out = tile->memory;
    for (int64_t d0 = 0; d0 < tile->depth; d0 += range) {
        int64_t depth = jpo_min64(range, tile->depth - d0);
        size_t bytes = kernel->panel_bytes(w->dtype, tile->backward, depth);
        source.row0 = tile->row0 + (tile->backward ? d0 : c0), source.rows = tile->backward ? depth : width;
        source.column0 = tile->column0 + (tile->backward ? c0 : d0), source.columns = tile->backward ? width : depth;
        kernel->pack[tile->backward](out + (size_t)first * bytes, &source);
        out += (size_t)panels * bytes;
    }
}

void jpo_packed_pack_part(const jpo_packed_tile *tile, int64_t part) {
    if (tile->kernel)
        pack_panels(tile, part * panels_of_part(tile), panels_of_part(tile));
    else
        widen_part(tile, part);
}

void jpo_packed_pack(jpo_packed_tile *tile, void *memory, const jpo_weight *w, int64_t row0, int64_t rows,
                     int64_t column0, int64_t columns, bool backward) {
    jpo_packed_open(tile, memory, w, row0, rows, column0, columns, backward);
    for (int64_t part = 0; part < jpo_packed_parts(tile); part++) jpo_packed_pack_part(tile, part);
}

/* ---- activations ---- */

size_t jpo_packed_scratch_bytes(const jpo_weight *w, int64_t m, int64_t depth) {
    const jpo_gemm_kernel *kernel = jpo_packed_kernel(w);
    return kernel && kernel->rows_bytes ? (kernel->rows_bytes(m, depth) + 63) / 64 * 64 : 0;
}

void jpo_packed_rows_open(jpo_packed_rows *rows, const jpo_weight *w, bool backward, const float *x, int64_t ldx,
                          int64_t m, int64_t depth, void *memory) {
    *rows = (jpo_packed_rows){jpo_packed_kernel(w), {x, ldx, m, depth, memory, w->dtype, backward}};
}

void jpo_packed_rows_convert(const jpo_packed_rows *rows, int64_t row0, int64_t count) {
    if (rows->kernel && rows->kernel->convert) rows->kernel->convert(&rows->x, row0, count);
}

/* ---- products ---- */

/* Rows of activations that stay in the second cache: whole groups. */
static int64_t block_rows(const jpo_gemm_kernel *kernel, int64_t depth, size_t panels_bytes) {
    const size_t group =
        kernel->rows_bytes ? kernel->rows_bytes(kernel->rows, depth) : (size_t)(kernel->rows * depth) * 4;
    const int64_t bytes = !kernel->large_cache           ? ROWS_BYTES
                          : panels_bytes <= PANELS_BYTES ? FEW_ROWS_BYTES
                                                         : MANY_ROWS_BYTES;
    return jpo_max64(bytes / (int64_t)group, 1) * kernel->rows;
}

/* A range of the depth of the first term, and all of the others. */
typedef struct {
    const jpo_packed_term *term;
    const char *data[JPO_PACKED_TERMS]; /* the panels */
    size_t bytes[JPO_PACKED_TERMS];     /* of one */
    jpo_gemm_term part[JPO_PACKED_TERMS];
    int terms;
    bool accumulate;
    float *y;
    int64_t ldy, row0;
} sum;

static void add_part(sum *s, int64_t d0, int64_t depth, const char *data) {
    const jpo_packed_term *t = &s->term[s->terms];
    const jpo_gemm_kernel *kernel = t->tile.kernel;
    s->data[s->terms] = data;
    s->bytes[s->terms] = kernel->panel_bytes(t->tile.w->dtype, t->tile.backward, depth);
    s->part[s->terms++] = (jpo_gemm_term){&t->rows->x, t->depth0 + d0, NULL, depth, kernel->parts};
}

/* One panel for rows first..end: the panel stays in the first or second cache, groups of rows pass by. Rows are dealt
 * to groups evenly, so that none is left alone, where a group may begin anywhere. */
static void multiply_panel(sum *s, const jpo_gemm_kernel *kernel, int64_t first, int64_t end, int64_t panel) {
    const int64_t groups = jpo_ceil_div(end - first, kernel->rows), c0 = panel * kernel->panel;
    const int columns = (int)jpo_min64(kernel->panel, s->term->tile.columns - c0);
    for (int i = 0; i < s->terms; i++) s->part[i].panel = s->data[i] + (size_t)panel * s->bytes[i];
    for (int64_t g = 0, i = first; g < groups; g++) {
        int rows = (int)jpo_min64(jpo_round_up(jpo_ceil_div(end - i, groups - g), kernel->align), end - i);
        kernel->tile(s->y + i * s->ldy + c0, s->ldy, s->row0 + i, s->part, s->terms, rows, columns, s->accumulate);
        i += rows;
    }
}

static void multiply_by_openblas(float *y, int64_t ldy, const jpo_gemm_rows *x, int64_t row0, int64_t count,
                                 int64_t depth0, const jpo_packed_tile *tile, bool accumulate) {
    const bool whole = tile->w->dtype == JPO_F32; /* W itself, not a widened rectangle */
    const int64_t ld = whole ? tile->w->k : tile->backward ? tile->columns : tile->depth;
    const float *b = whole ? (const float *)tile->w->data + tile->row0 * ld + tile->column0 : tile->memory;
    jpo_blas_sgemm(false, !tile->backward, count, tile->columns, tile->depth, 1, x->x + row0 * x->ldx + depth0, x->ldx,
                   b, ld, accumulate, y, ldy);
}

void jpo_packed_multiply_rows(float *y, int64_t ldy, const jpo_packed_term *term, int terms, int64_t row0,
                              int64_t count, bool accumulate) {
    const jpo_packed_tile *tile = &term->tile;
    const jpo_gemm_kernel *kernel = tile->kernel;
    if (!kernel) {
        multiply_by_openblas(y, ldy, &term->rows->x, row0, count, term->depth0, tile, accumulate);
        return;
    }
    const int64_t range = jpo_packed_range(kernel, tile->depth), panels = panels_of(tile);
    const char *data = tile->memory;
    if (kernel->thread_begin) kernel->thread_begin();
    for (int64_t d0 = 0; d0 < tile->depth; d0 += range) {
        const int64_t depth = jpo_min64(range, tile->depth - d0);
        sum s = {.term = term, .accumulate = accumulate || d0, .y = y, .ldy = ldy, .row0 = row0};
        add_part(&s, d0, depth, data);
        if (d0 + depth == tile->depth)
            for (int i = 1; i < terms; i++) add_part(&s, 0, term[i].tile.depth, term[i].tile.memory);
        data += (size_t)panels * s.bytes[0];
        const int64_t block = block_rows(kernel, depth, (size_t)panels * s.bytes[0]);
        for (int64_t i = 0; i < count; i += block)
            for (int64_t panel = 0; panel < panels; panel++)
                multiply_panel(&s, kernel, i, jpo_min64(i + block, count), panel);
    }
    if (kernel->thread_end) kernel->thread_end();
}

void jpo_packed_multiply(float *y, int64_t ldy, const float *x, int64_t ldx, int64_t m, const jpo_packed_tile *tile,
                         bool accumulate, void *scratch) {
    const jpo_packed_rows rows = {tile->kernel, {x, ldx, m, tile->depth, scratch, tile->w->dtype, tile->backward}};
    const jpo_packed_term term = {&rows, 0, *tile};
    jpo_packed_rows_convert(&rows, 0, m);
    jpo_packed_multiply_rows(y, ldy, &term, 1, 0, m, accumulate);
}

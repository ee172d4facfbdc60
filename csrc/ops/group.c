/* Products by panels (ops/group.h), in three parallel regions: panels of the matrices that project into a low rank;
 * rows of activations, 32 at a time: prepared, converted once for all that read them, projected; tiles of the outputs.
 *
 * An output is a sum of terms, rows times a matrix. Where the kernel's converted rows serve an adapter too (its
 * `low_rank`), the low-rank update is one more term and its projection one more panel; elsewhere both run in float32,
 * the update while the tile is in the second cache. */
#include "ops/group.h"

#include <string.h>

#include "base/size.h"
#include "base/threads.h"
#include "kernels/kernels.h"
#include "ops/sgemm.h"

enum {
    ROWS = 32,
    UPDATE_ROWS = 192,
    TILE_PANELS = 4,
    WIDE_PANELS = 8,    /* of a tile whose sums wait */
    SUM_ROWS = 1024,    /* of a tile whose sums wait, at most */
    PAGE_FLOATS = 1024, /* 4 kB */
    LINE_FLOATS = 16,   /* of a line of the caches: rows of waiting sums lie so much farther apart than they are long */
    MOST = JPO_LINEAR_GROUP,
    SGEMM_BYTES = JPO_SGEMM_SCRATCH * sizeof(float)
};

typedef struct {
    jpo_packed_rows rows; /* (M, depth) */
    jpo_weight w;
    int64_t depth;
    bool follows; /* its sums go on from those of the term before, in the same call */
} term;

typedef struct {
    float *out; /* (M, width; ldo) */
    int64_t ldo, width, tiles;
    bool accumulate;
    int terms, updates;
    term term[2 * MOST];
    const jpo_low_rank *update[MOST]; /* added in float32 */
} product;

/* u = scale rows project, from the rows as they were converted for the products, or from x in float32. */
typedef struct {
    const jpo_low_rank *update;
    const float *x;
    int64_t ldx, depth;
    bool by_panels;
    jpo_weight w; /* project */
    jpo_packed_tile tile;
    jpo_packed_rows in, u; /* u: its converted rows */
} projection;

typedef struct {
    const jpo_gemm_kernel *kernel; /* NULL: OpenBLAS */
    bool backward;
    int64_t m, tile, chunk, chunks; /* rows; columns and rows of one task's output; chunks of rows */
    const jpo_linear_rows *rows;
    int sets, products, projections;
    jpo_packed_rows set[MOST]; /* what is converted */
    product product[MOST];
    projection projection[MOST];
    size_t shared; /* bytes of scratch->shared that are handed out; memory NULL: only counted */
    char *memory, *scratch;
    /* Bytes of one thread's scratch: that of ops/sgemm; panels; where sums wait, those of a tile (chunk, lds). */
    size_t part, panels;
    int64_t lds;
    bool wait; /* sums_wait */
} group;

/* ---- what a call needs: one function that counts, and run again hands out memory ---- */

static void *allot(group *g, size_t bytes) {
    void *memory = g->memory ? g->memory + g->shared : NULL;
    g->shared += (bytes + 63) / 64 * 64;
    return memory;
}

/* A float32 matrix of an adapter (n, k) for the compute type that meets rows of `kernel`. */
static jpo_weight adapter_matrix(const jpo_gemm_kernel *kernel, const float *data, int64_t n, int64_t k) {
    return (jpo_weight){.n = n, .k = k, .data = data, .dtype = JPO_F32, .compute = kernel->low_rank};
}

static bool adapts(const jpo_gemm_kernel *kernel) {
    return kernel && kernel->low_rank && jpo_gemm_find(kernel->low_rank);
}

static jpo_packed_rows open_rows(group *g, const jpo_weight *w, const float *x, int64_t ldx, int64_t depth) {
    jpo_packed_rows rows;
    jpo_packed_rows_open(&rows, w, g->backward, x, ldx, g->m, depth,
                         allot(g, jpo_packed_scratch_bytes(w, g->m, depth)));
    return rows;
}

static void add_term(product *p, jpo_packed_rows rows, const jpo_weight *w, int64_t depth, bool follows) {
    p->term[p->terms++] = (term){rows, *w, depth, follows};
}

/* The update of a product that reads `rows` (M, depth): as a term of p (NULL: u alone) or in float32. */
static void add_update(group *g, product *p, const jpo_low_rank *update, jpo_packed_rows rows, int64_t width) {
    const int64_t r = update->r, depth = rows.x.depth;
    projection *q = update->project ? &g->projection[g->projections++] : NULL;
    const bool by_panels = adapts(g->kernel) && q;
    if (q) *q = (projection){update, rows.x.x, rows.x.ldx, depth, by_panels, {0}, {0}, {0}, {0}};
    if (!by_panels) {
        if (p && update->v) p->update[p->updates++] = update;
        return;
    }
    q->w = g->backward ? adapter_matrix(g->kernel, update->project, depth, r)
                       : adapter_matrix(g->kernel, update->project, r, depth);
    q->in = (jpo_packed_rows){jpo_packed_kernel(&q->w), rows.x};
    q->in.x.dtype = JPO_F32;
    jpo_packed_open(&q->tile, allot(g, jpo_packed_tile_bytes(&q->w, depth, r)), &q->w, 0, q->w.n, 0, q->w.k,
                    g->backward);
    if (!p || !update->v) return;
    const jpo_weight v =
        g->backward ? adapter_matrix(g->kernel, update->v, r, width) : adapter_matrix(g->kernel, update->v, width, r);
    q->u = open_rows(g, &v, update->u, r, r);
    add_term(p, q->u, &v, r, r <= jpo_packed_range(g->kernel, r));
}

/* ---- the second region: rows ---- */

static void project_rows(const projection *q, bool backward, int64_t row0, int64_t count, float *scratch) {
    const jpo_low_rank *update = q->update;
    const int64_t r = update->r;
    float *u = update->u + row0 * r;
    const jpo_packed_term one = {&q->in, 0, q->tile};
    if (q->by_panels)
        jpo_packed_multiply_rows(u, r, &one, 1, row0, count, false);
    else
        jpo_sgemm(false, !backward, count, r, q->depth, 1, q->x + row0 * q->ldx, q->ldx, update->project,
                  backward ? r : q->depth, 0, u, r, scratch);
    if (update->scale != 1) jpo_kernels_get()->scale(u, update->scale, count * r);
    jpo_packed_rows_convert(&q->u, row0, count);
}

static void rows_task(void *context, int64_t task, int thread) {
    const group *g = context;
    const int64_t row0 = task * ROWS, count = jpo_min64(ROWS, g->m - row0);
    float *scratch = (float *)(g->scratch + (size_t)thread * g->part);
    if (g->rows->prepare) g->rows->prepare(g->rows->context, row0, count);
    for (int i = 0; i < g->sets; i++) jpo_packed_rows_convert(&g->set[i], row0, count);
    for (int i = 0; i < g->projections; i++) project_rows(&g->projection[i], g->backward, row0, count, scratch);
}

static void pack_projection(void *context, int64_t task, int thread) {
    const group *g = context;
    (void)thread;
    for (int i = 0; i < g->projections; i++) {
        const projection *q = &g->projection[i];
        const int64_t parts = q->by_panels ? jpo_packed_parts(&q->tile) : 0;
        if (task < parts) {
            jpo_packed_pack_part(&q->tile, task);
            return;
        }
        task -= parts;
    }
}

static void run_rows(group *g) {
    int64_t parts = 0;
    for (int i = 0; i < g->projections; i++)
        parts += g->projection[i].by_panels ? jpo_packed_parts(&g->projection[i].tile) : 0;
    jpo_parallel(parts, pack_projection, g);
    const bool converts = g->kernel && g->kernel->convert;
    if (g->rows->prepare || converts || g->projections) jpo_parallel(jpo_ceil_div(g->m, ROWS), rows_task, g);
}

/* ---- the third region: tiles of the outputs ---- */

/* Rows row0.. and columns c0.. of the output += the updates that run in float32. */
static void add_updates(const group *g, const product *p, int64_t row0, int64_t count, int64_t c0, int64_t columns,
                        float *scratch) {
    for (int i = 0; i < p->updates; i++) {
        const jpo_low_rank *a = p->update[i];
        const bool transposed = !g->backward;
        jpo_sgemm_add_low_rank(p->out + row0 * p->ldo + c0, p->ldo, a->u + row0 * a->r, a->r,
                               a->v + (transposed ? c0 * a->r : c0), transposed ? a->r : p->width, transposed, count,
                               columns, a->r, 1, scratch);
    }
}

/* A rectangle of an output, and where its sums are meanwhile: there, or in the thread's scratch. */
typedef struct {
    const product *p;
    int64_t row0, count, c0, columns;
    float *out, *sums; /* (count, columns; p->ldo), (count, columns; lds) */
    int64_t lds;
} rectangle;

/* Depth that one call multiplies. */
static int64_t range_of(const term *t) { return jpo_packed_range(t->rows.kernel, t->depth); }

/* The last of the terms that are multiplied together with term i. */
static int last_of_run(const product *p, int i) {
    while (i + 1 < p->terms && p->term[i + 1].follows) i++;
    return i;
}

static rectangle rectangle_of(const group *g, const product *p, char *scratch, int64_t row0, int64_t count,
                              int64_t c0) {
    rectangle r = {.p = p, .row0 = row0, .count = count, .c0 = c0, .columns = jpo_min64(g->tile, p->width - c0)};
    const bool wait = g->wait && (last_of_run(p, 0) + 1 < p->terms || p->term[0].depth > range_of(&p->term[0]));
    r.out = p->out + row0 * p->ldo + c0;
    r.sums = wait ? (float *)(scratch + SGEMM_BYTES + g->panels) : r.out;
    r.lds = wait ? g->lds : p->ldo;
    return r;
}

static void copy_rows(float *to, int64_t ldt, const float *from, int64_t ldf, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * ldt, from + i * ldf, (size_t)columns * sizeof(float));
}

/* One range of a term's depth, the last one with the terms that follow; the very last in chunks of rows that are still
 * in the second cache when the way to the output and the updates follow. */
static void multiply_range(const group *g, const rectangle *r, const jpo_packed_term *packed, int terms, bool add,
                           bool last, float *scratch) {
    const product *p = r->p;
    const bool wait = r->sums != r->out;
    const int64_t step = last && (p->updates || wait) ? UPDATE_ROWS : r->count;
    for (int64_t i = 0; i < r->count; i += step) {
        const int64_t some = jpo_min64(step, r->count - i), row = r->row0 + i;
        float *sums = r->sums + i * r->lds, *out = r->out + i * p->ldo;
        jpo_packed_multiply_rows(sums, r->lds, packed, terms, row, some, add);
        if (!last) continue;
        if (wait) copy_rows(out, p->ldo, sums, r->lds, some, r->columns);
        add_updates(g, p, row, some, r->c0, r->columns, scratch);
    }
}

/* packed = depth d0.. of a term for the rectangle's columns; returns the memory behind it. */
static char *pack_term(const group *g, const rectangle *r, const term *t, int64_t d0, int64_t depth,
                       jpo_packed_term *packed, char *memory) {
    packed->rows = &t->rows;
    packed->depth0 = d0;
    if (g->backward)
        jpo_packed_pack(&packed->tile, memory, &t->w, d0, depth, r->c0, r->columns, true);
    else
        jpo_packed_pack(&packed->tile, memory, &t->w, r->c0, r->columns, d0, depth, false);
    return memory + jpo_packed_tile_bytes(&t->w, depth, r->columns);
}

static void multiply_tile(const group *g, const product *p, char *scratch, int64_t row0, int64_t count, int64_t c0) {
    const rectangle r = rectangle_of(g, p, scratch, row0, count, c0);
    if (p->accumulate && r.sums != r.out) copy_rows(r.sums, r.lds, r.out, p->ldo, count, r.columns);
    for (int i = 0, end; i < p->terms; i = end) {
        const term *t = &p->term[i];
        const int64_t range = range_of(t);
        end = last_of_run(p, i) + 1;
        for (int64_t d0 = 0; d0 < t->depth; d0 += range) {
            const int64_t depth = jpo_min64(range, t->depth - d0);
            const bool done = d0 + depth == t->depth;
            jpo_packed_term packed[JPO_PACKED_TERMS];
            int terms = 1;
            char *memory = pack_term(g, &r, t, d0, depth, packed, scratch + SGEMM_BYTES);
            for (int j = i + 1; done && j < end; j++, terms++)
                memory = pack_term(g, &r, &p->term[j], 0, p->term[j].depth, packed + terms, memory);
            multiply_range(g, &r, packed, terms, p->accumulate || i || d0, done && end == p->terms, (float *)scratch);
        }
    }
}

static void tile_task(void *context, int64_t task, int thread) {
    const group *g = context;
    const int64_t row0 = task % g->chunks * g->chunk, count = jpo_min64(g->chunk, g->m - row0);
    int64_t tile = task / g->chunks;
    const product *p = g->product;
    while (tile >= p->tiles) tile -= p->tiles, p++;
    if (count > 0) multiply_tile(g, p, g->scratch + (size_t)thread * g->part, row0, count, tile * g->tile);
}

/* Whether the sums of a tile wait in the thread's scratch, where one range of the depth after the other goes on from
 * them. Rows of an output that lie a multiple of 4 kB apart share few places of the caches, which costs a kernel of
 * tiles up to a third of its rate; of others the copy costs more than it spares. Bits are the same either way. */
static bool sums_wait(const group *g) {
    bool near = false;
    for (int i = 0; i < g->products; i++) near |= g->product[i].ldo % PAGE_FLOATS == 0;
    return near && adapts(g->kernel);
}

static int64_t tiles_of(const group *g, int64_t tile) {
    int64_t tiles = 0;
    for (int i = 0; i < g->products; i++) tiles += jpo_ceil_div(g->product[i].width, tile);
    return tiles;
}

/* Panels of a tile: at most four, or eight where sums wait, which share the rows that they are multiplied with while
 * those are in the second cache; of these the number that lets the threads end together, with two tiles a thread or
 * more. */
static int64_t panels_of_tile(const group *g) {
    int64_t best = 1, cost = INT64_MAX, threads = jpo_threads_count();
    const int64_t most = g->wait ? WIDE_PANELS : TILE_PANELS;
    for (int64_t each = 1; each <= most; each++) {
        const int64_t tiles = tiles_of(g, each * g->kernel->panel), busiest = jpo_ceil_div(tiles, threads) * each;
        if (busiest > cost || (each > 1 && tiles < 2 * threads)) continue;
        best = each, cost = busiest;
    }
    return best;
}

/* Tiles of the output, and fewer rows where there are less than two tiles a thread, down to 128, as each tile packs its
 * panels anew; outputs do not depend on this cut. Those of OpenBLAS may, so that its cut is one of shape alone: four
 * tiles or more. */
static int64_t cut(group *g) {
    g->wait = sums_wait(g);
    g->tile = g->kernel ? panels_of_tile(g) * g->kernel->panel
                        : jpo_min64(jpo_round_up(jpo_ceil_div(g->product[0].width, 4), 32), 128);
    const int64_t tiles = tiles_of(g, g->tile);
    for (int i = 0; i < g->products; i++) g->product[i].tiles = jpo_ceil_div(g->product[i].width, g->tile);
    g->chunks = g->kernel ? jpo_max64(jpo_min64(2 * jpo_threads_count() / tiles, g->m / 128), 1) : 1;
    if (g->wait) g->chunks = jpo_max64(g->chunks, jpo_ceil_div(g->m, SUM_ROWS));
    g->chunk = jpo_ceil_div(g->m, g->chunks);
    if (g->kernel) g->chunk = jpo_round_up(g->chunk, g->kernel->align);
    return tiles * g->chunks;
}

static jpo_status reserve_parts(group *g, jpo_scratch *scratch, jpo_error *err) {
    size_t bytes;
    g->panels = 0;
    for (int i = 0; i < g->products; i++)
        for (int j = 0, end; j < g->product[i].terms; j = end) {
            const term *t = g->product[i].term;
            size_t part = 0;
            end = last_of_run(&g->product[i], j) + 1;
            for (int k = j; k < end; k++)
                part += jpo_packed_tile_bytes(&t[k].w, jpo_min64(range_of(&t[k]), t[k].depth), g->tile);
            if (part > g->panels) g->panels = part;
        }
    g->lds = g->tile + LINE_FLOATS;
    g->part = g->panels; /* a chunk has at most SUM_ROWS rows */
    if (g->products && g->wait) g->part += (size_t)(g->chunk * g->lds) * sizeof(float);
    if (!jpo_size_add(g->part, SGEMM_BYTES, &g->part) || !jpo_size_mul(g->part, (size_t)jpo_threads_count(), &bytes))
        return jpo_fail(err, JPO_ERR_MEMORY, "the panels of a product of %lld rows do not fit the address space",
                        (long long)g->m);
    JPO_TRY(jpo_block_reserve(&scratch->thread, bytes, err));
    g->scratch = scratch->thread.data;
    return JPO_OK;
}

static jpo_status run(group *g, const jpo_linear_hook *hook, jpo_scratch *scratch, jpo_error *err) {
    const int64_t tasks = g->products ? cut(g) : 0;
    JPO_TRY(reserve_parts(g, scratch, err));
    run_rows(g);
    if (hook) JPO_TRY(hook->run(hook->context, err));
    jpo_parallel(tasks, tile_task, g);
    return JPO_OK;
}

/* ---- forward ---- */

static void open_forward(group *g, const jpo_linear_output *outputs, int count) {
    const jpo_linear_rows *x = g->rows;
    const int64_t k = outputs[0].w->k;
    g->set[g->sets++] = open_rows(g, outputs[0].w, x->x, x->ldx, k);
    for (int i = 0; i < count; i++) {
        const jpo_linear_output *o = &outputs[i];
        product *p = &g->product[g->products++];
        *p = (product){.out = o->y, .ldo = o->ldy, .width = o->w->n, .accumulate = o->accumulate};
        add_term(p, g->set[0], o->w, k, false);
        if (o->update) add_update(g, p, o->update, g->set[0], o->w->n);
    }
}

jpo_status jpo_group_forward(const jpo_linear_output *outputs, int count, const jpo_linear_rows *x, int64_t m,
                             const jpo_gemm_kernel *kernel, jpo_scratch *scratch, jpo_error *err) {
    group sizes = {.kernel = kernel, .m = m, .rows = x}, g = sizes;
    open_forward(&sizes, outputs, count);
    JPO_TRY(jpo_block_reserve(&scratch->shared, sizes.shared, err));
    g.memory = scratch->shared.data;
    open_forward(&g, outputs, count);
    return run(&g, NULL, scratch, err);
}

/* ---- backward: d/dx of the forward products, one output of several terms ---- */

static void open_backward(group *g, float *dx, int64_t lddx, bool accumulate, const jpo_linear_input *inputs,
                          int count) {
    const int64_t k = inputs[0].w->k;
    product *p = dx ? &g->product[g->products++] : NULL;
    if (p) *p = (product){.out = dx, .ldo = lddx, .width = k, .accumulate = accumulate};
    for (int i = 0; i < count; i++) {
        const jpo_linear_input *in = &inputs[i];
        g->set[g->sets] = open_rows(g, in->w, in->dy, in->lddy, in->w->n);
        if (p) add_term(p, g->set[g->sets], in->w, in->w->n, false);
        g->sets++;
    }
    for (int i = 0; i < count; i++)
        if (inputs[i].update) add_update(g, p, inputs[i].update, g->set[i], k);
}

jpo_status jpo_group_backward(float *dx, int64_t lddx, bool accumulate, const jpo_linear_input *inputs, int count,
                              const jpo_linear_rows *rows, const jpo_linear_hook *hook, int64_t m,
                              const jpo_gemm_kernel *kernel, jpo_scratch *scratch, jpo_error *err) {
    group sizes = {.kernel = kernel, .m = m, .rows = rows, .backward = true}, g = sizes;
    open_backward(&sizes, dx, lddx, accumulate, inputs, count);
    JPO_TRY(jpo_block_reserve(&scratch->shared, sizes.shared, err));
    g.memory = scratch->shared.data;
    open_backward(&g, dx, lddx, accumulate, inputs, count);
    return run(&g, hook, scratch, err);
}

/* ---- without a product by panels ---- */

void jpo_linear_prepare(const jpo_linear_rows *rows, int64_t m) {
    group g = {.m = m, .rows = rows};
    run_rows(&g);
}

jpo_status jpo_group_project(const jpo_linear_output *outputs, int count, const jpo_linear_rows *x, int64_t m,
                             jpo_scratch *scratch, jpo_error *err) {
    group g = {.m = m, .rows = x};
    for (int i = 0; i < count; i++) {
        const jpo_low_rank *update = outputs[i].update;
        if (!update || !update->project) continue;
        g.projection[g.projections++] = (projection){update, x->x, x->ldx, outputs[i].w->k, false, {0}, {0}, {0}, {0}};
    }
    return run(&g, NULL, scratch, err);
}

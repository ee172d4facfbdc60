/* Every size of a pass, before anything is allocated, and the pointers into the blocks afterwards. One function walks
 * each block twice: to count and to hand out, so that the two cannot disagree. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "model/model.h"

/* Hands out parts of a block in whole cache lines; with base NULL it only counts. */
typedef struct {
    char *base;
    size_t used;
    bool overflow;
} cursor;

static void *take(cursor *at, int64_t a, int64_t b) { /* a * b words of 4 bytes */
    void *taken = at->base ? at->base + at->used : NULL;
    size_t bytes;
    if (!jpo_size_mul3((size_t)a, (size_t)b, 4, &bytes) || !jpo_size_add(bytes, 63, &bytes) ||
        !jpo_size_add(at->used, bytes / 64 * 64, &at->used))
        at->overflow = true;
    return taken;
}

static jpo_saved_layer take_layer(cursor *at, const jpo_config *c, const jpo_plan *plan) {
    int64_t r = plan->rows, q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    jpo_saved_layer saved;
    saved.x = take(at, r, c->hidden);
    saved.rstd1 = take(at, r, 1);
    saved.qkv = take(at, r, q + 2 * kv);
    saved.attn = take(at, r, q);
    saved.lse = take(at, r, c->heads);
    saved.x_mid = take(at, r, c->hidden);
    saved.rstd2 = take(at, r, 1);
    saved.gate = take(at, r, c->intermediate);
    saved.up = take(at, r, c->intermediate);
    saved.xa = take(at, r, plan->rank_sum);
    return saved;
}

static jpo_work take_work(cursor *at, const jpo_model *model, const jpo_plan *plan,
                          const jpo_forward_options *options) {
    const jpo_config *c = &model->config;
    int64_t r = plan->rows, q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim, wide = jpo_max64(c->hidden, q);
    bool dropout = false;
    for (int64_t i = 0; i < c->layers; i++)
        for (int m = 0; m < JPO_MODULES; m++) dropout |= model->layer[i].module[m].lora.dropout > 0;
    jpo_work work = {0};
    work.h = take(at, r, wide);
    work.act = take(at, r, c->intermediate);
    if (options->train && dropout) work.dropped = take(at, r, jpo_max64(wide, c->intermediate));
    if (!options->keep) return work;
    work.dx = take(at, r, c->hidden);
    work.dh = take(at, r, wide);
    work.dqkv = take(at, r, q + 2 * kv);
    work.dxa = take(at, r, plan->rank_sum);
    return work;
}

static void take_head(cursor *at, jpo_model *model, const jpo_plan *plan, const jpo_forward_options *options) {
    int64_t n = plan->loss_rows, hidden = model->config.hidden;
    float *h = take(at, n, hidden), *rstd = take(at, n, 1);
    jpo_head_row *state = take(at, n, sizeof *state / 4);
    float *pw = options->keep && !model->full ? take(at, n, hidden) : NULL;
    float *tile = options->keep && model->full ? take(at, n, JPO_HEAD_TILE) : NULL;
    if (!at->base) return;
    model->head_h = h, model->final_rstd = rstd, model->head_state = state, model->head_pw = pw,
    model->head_tile = tile;
}

static void take_index(cursor *at, jpo_model *model, const jpo_plan *plan, jpo_attention_segment **segments,
                       jpo_key_range **ranges) {
    int32_t *tokens = take(at, plan->rows, 1), *position = take(at, plan->rows, 1);
    int32_t *entry_row = take(at, plan->entries, 1), *entry_target = take(at, plan->entries, 1);
    int32_t *head_entry_row = take(at, plan->entries, 1), *loss_row = take(at, plan->loss_rows, 1);
    *segments = take(at, plan->segments, sizeof **segments / 4);
    *ranges = take(at, plan->ranges, sizeof **ranges / 4);
    if (!at->base) return;
    model->tokens = tokens, model->position = position;
    model->entry_row = entry_row, model->entry_target = entry_target;
    model->head_entry_row = head_entry_row, model->loss_row = loss_row;
}

static int64_t rank_sum(const jpo_model *model) {
    int64_t most = 0;
    for (int64_t i = 0; i < model->config.layers; i++) {
        int64_t sum = 0;
        for (int m = 0; m < JPO_MODULES; m++) sum += model->layer[i].module[m].lora.r;
        most = jpo_max64(most, sum);
    }
    return most;
}

/* Bytes of all layers' slabs. */
static bool layers_bytes(size_t *bytes, const jpo_plan *plan, int64_t layers, bool keep) {
    if (!keep) layers = 1;
    if (!keep || !plan->recompute) return jpo_size_mul(plan->layer_bytes, (size_t)layers, bytes);
    return jpo_size_mul(plan->x_bytes, (size_t)layers, bytes) && jpo_size_add(*bytes, plan->layer_bytes, bytes);
}

jpo_status jpo_plan_make(jpo_plan *plan, const jpo_model *model, const jpo_forest *forest,
                         const jpo_forward_options *options, jpo_error *err) {
    *plan = (jpo_plan){.rows = forest->rows,
                       .entries = forest->entries,
                       .segments = forest->segments,
                       .recompute = options->keep && model->recompute};
    plan->rank_sum = options->adapter ? rank_sum(model) : 0;
    for (int64_t e = 0; e < forest->entries; e++)
        plan->loss_rows += e == 0 || forest->entry_row[e] != forest->entry_row[e - 1];
    for (int64_t s = 0; s < forest->segments; s++) {
        plan->trees += forest->segment[s].parent < 0;
        for (int64_t p = s; p >= 0; p = forest->segment[p].parent) plan->ranges++;
        if (plan->ranges > INT32_MAX) return jpo_fail(err, JPO_ERR_MEMORY, "the forest's paths are too long");
    }
    jpo_attention_segment *segments;
    jpo_key_range *ranges;
    cursor x = {0}, layer = {0}, work = {0}, head = {0}, index = {0};
    take(&x, plan->rows, model->config.hidden);
    take_layer(&layer, &model->config, plan);
    plan->x_bytes = x.used, plan->layer_bytes = layer.used;
    cursor saved = {0};
    take(&saved, plan->rows, model->config.hidden); /* final_x */
    size_t layers;
    saved.overflow |= !layers_bytes(&layers, plan, model->config.layers, options->keep) ||
                      !jpo_size_add(saved.used, layers, &saved.used);
    take_work(&work, model, plan, options);
    take_head(&head, (jpo_model *)model, plan, options);
    take_index(&index, (jpo_model *)model, plan, &segments, &ranges);
    if (layer.overflow || saved.overflow || work.overflow || head.overflow || index.overflow)
        return jpo_fail(err, JPO_ERR_MEMORY, "a pass over %lld rows does not fit the address space",
                        (long long)plan->rows);
    plan->saved_bytes = saved.used, plan->work_bytes = work.used;
    plan->head_bytes = head.used, plan->index_bytes = index.used;
    return JPO_OK;
}

static void fill_paths(jpo_attention_segment *out, jpo_key_range *ranges, const jpo_forest *forest) {
    int32_t tree = -1, next = 0;
    for (int64_t s = 0; s < forest->segments; s++) {
        const jpo_segment *segment = forest->segment + s;
        int32_t depth = 0;
        for (int64_t p = s; p >= 0; p = forest->segment[p].parent) depth++;
        tree += segment->parent < 0;
        int32_t at = next + depth;
        for (int64_t p = s; p >= 0; p = forest->segment[p].parent)
            ranges[--at] = (jpo_key_range){forest->segment[p].first_row, forest->segment[p].length};
        out[s] =
            (jpo_attention_segment){segment->first_row, segment->length, segment->first_position, next, depth, 0, tree};
        next += depth;
    }
}

static void fill_index(jpo_model *model, const jpo_forest *forest) {
    const jpo_plan *plan = &model->plan;
    const jpo_config *c = &model->config;
    jpo_attention_segment *segments;
    jpo_key_range *ranges;
    cursor at = {.base = model->index.data};
    take_index(&at, model, plan, &segments, &ranges);
    memcpy(model->tokens, forest->tokens, (size_t)plan->rows * sizeof(int32_t));
    for (int64_t s = 0; s < forest->segments; s++)
        for (int32_t i = 0; i < forest->segment[s].length; i++)
            model->position[forest->segment[s].first_row + i] = forest->segment[s].first_position + i;
    int32_t n = -1;
    for (int64_t e = 0; e < plan->entries; e++) {
        if (e == 0 || forest->entry_row[e] != forest->entry_row[e - 1]) model->loss_row[++n] = forest->entry_row[e];
        model->entry_row[e] = forest->entry_row[e];
        model->head_entry_row[e] = n;
        model->entry_target[e] = forest->entry_target[e];
    }
    fill_paths(segments, ranges, forest);
    model->attention = (jpo_attention){plan->segments, plan->trees, plan->rows,  segments, ranges,
                                       c->heads,       c->kv_heads, c->head_dim, c->window};
}

jpo_saved_layer jpo_saved_get(const jpo_model *model, int64_t layer) {
    const jpo_plan *plan = &model->plan;
    char *data = model->saved.data;
    if (!plan->recompute) {
        cursor at = {.base = data + (model->options.keep ? (size_t)layer * plan->layer_bytes : 0)};
        return take_layer(&at, &model->config, plan);
    }
    cursor at = {.base = data + (size_t)model->config.layers * plan->x_bytes};
    jpo_saved_layer saved = take_layer(&at, &model->config, plan);
    saved.x = (float *)(data + (size_t)layer * plan->x_bytes);
    return saved;
}

/* Angles as the reference implementation rounds them: float32 products, then the cosine. */
jpo_status jpo_rope_tables(jpo_model *model, int64_t positions, jpo_error *err) {
    int64_t half = model->config.head_dim / 2;
    if (positions <= model->positions) return JPO_OK;
    positions = jpo_min64(jpo_max64(positions, 2 * model->positions), model->config.max_positions);
    size_t bytes;
    if (!jpo_size_mul3((size_t)positions, (size_t)half, sizeof(float), &bytes))
        return jpo_fail(err, JPO_ERR_MEMORY, "rotary tables of %lld positions do not fit", (long long)positions);
    float *cosine = malloc(bytes), *sine = malloc(bytes);
    if (!cosine || !sine) {
        free(cosine), free(sine);
        return jpo_fail(err, JPO_ERR_MEMORY, "could not allocate rotary tables of %lld positions",
                        (long long)positions);
    }
    for (int64_t p = 0; p < positions; p++)
        for (int64_t j = 0; j < half; j++) {
            float angle = (float)p * (float)model->config.inv_freq[j];
            cosine[p * half + j] = (float)(cos((double)angle) * model->config.rope_factor);
            sine[p * half + j] = (float)(sin((double)angle) * model->config.rope_factor);
        }
    free(model->cosine), free(model->sine);
    model->cosine = cosine, model->sine = sine, model->positions = positions;
    return JPO_OK;
}

jpo_status jpo_plan_apply(jpo_model *model, const jpo_forest *forest, const jpo_forward_options *options,
                          jpo_error *err) {
    jpo_plan *plan = &model->plan;
    model->kept = false;
    model->final_x = NULL; /* until the pass is done */
    JPO_TRY(jpo_plan_make(plan, model, forest, options, err));
    model->options = *options;
    JPO_TRY(jpo_block_reserve(&model->saved, plan->saved_bytes, err));
    JPO_TRY(jpo_block_reserve(&model->work_block, plan->work_bytes, err));
    JPO_TRY(jpo_block_reserve(&model->head_block, plan->head_bytes, err));
    JPO_TRY(jpo_block_reserve(&model->index, plan->index_bytes, err));
    fill_index(model, forest);
    int64_t last = 0;
    for (int64_t row = 0; row < plan->rows; row++) last = jpo_max64(last, model->position[row]);
    JPO_TRY(jpo_rope_tables(model, last + 1, err));
    size_t layers = 0;
    layers_bytes(&layers, plan, model->config.layers, options->keep); /* did not overflow in jpo_plan_make */
    float *final_x = (float *)((char *)model->saved.data + layers);
    cursor work = {.base = model->work_block.data}, head = {.base = model->head_block.data};
    model->work = take_work(&work, model, plan, options);
    take_head(&head, model, plan, options);
    model->final_x = final_x;
    return JPO_OK;
}

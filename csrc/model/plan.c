/* Every size of a pass, before anything is allocated, and the pointers into the blocks afterwards. One function runs
 * over each block twice: to count and to hand out, so that the two cannot disagree. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "model/pass.h"

/* Hands out parts of a block in whole cache lines; with base NULL it only counts. */
typedef struct {
    char *base;
    size_t used;
    bool overflow;
} cursor;

static void *allot(cursor *at, int64_t a, int64_t b) { /* a * b words of 4 bytes */
    void *memory = at->base ? at->base + at->used : NULL;
    size_t bytes;
    if (!jpo_size_mul3((size_t)a, (size_t)b, 4, &bytes) || !jpo_size_add(bytes, 63, &bytes) ||
        !jpo_size_add(at->used, bytes / 64 * 64, &at->used))
        at->overflow = true;
    return memory;
}

/* Memory of something that only some models have. */
static void *allot_if(bool wanted, cursor *at, int64_t a, int64_t b) { return wanted ? allot(at, a, b) : NULL; }

/* A branch is not added as it is: it is normed or scaled first. */
static bool has_branch(const jpo_config *c) { return c->norm_place != JPO_BEFORE || c->residual_multiplier != 1; }

static jpo_saved_layer allot_layer(cursor *at, const jpo_config *c, const jpo_plan *plan) {
    int64_t r = plan->rows, q = jpo_query_width(c), kv = jpo_key_width(c);
    const bool before = c->norm_place != JPO_AFTER, after = c->norm_place != JPO_BEFORE, qk = c->qk_norm != JPO_QK_NONE;
    const bool heads = c->qk_norm == JPO_QK_HEAD;
    jpo_saved_layer saved = {0};
    saved.x = allot(at, r, c->hidden);
    saved.norm1 = allot_if(before, at, r, JPO_NORM_STATISTICS);
    saved.qk_raw = allot_if(qk, at, r, q + kv);
    saved.q_stat = allot_if(qk, at, r, (heads ? c->heads : 1) * JPO_NORM_STATISTICS);
    saved.k_stat = allot_if(qk, at, r, (heads ? c->kv_heads : 1) * JPO_NORM_STATISTICS);
    saved.qkv = allot(at, r, q + 2 * kv);
    saved.attn = allot(at, r, q);
    saved.lse = allot(at, r, c->heads);
    saved.attn_out = allot_if(after, at, r, c->hidden);
    saved.attn_out_stat = allot_if(after, at, r, JPO_NORM_STATISTICS);
    saved.x_mid = allot_if(!c->parallel, at, r, c->hidden);
    saved.norm2 = allot_if(before && !c->parallel, at, r, JPO_NORM_STATISTICS);
    saved.gate = allot_if(c->gated, at, r, c->intermediate);
    saved.up = allot(at, r, c->intermediate);
    saved.mlp_out = allot_if(after, at, r, c->hidden);
    saved.mlp_out_stat = allot_if(after, at, r, JPO_NORM_STATISTICS);
    saved.xa = allot(at, r, plan->rank_sum);
    saved.product = allot_if(plan->magnitudes > 0, at, r, plan->magnitudes);
    return saved;
}

static bool has_dropout(const jpo_model *model) {
    for (int64_t i = 0; i < model->config.layers; i++)
        for (int m = 0; m < JPO_MODULES; m++)
            if (model->live.layer[i].module[m].lora.dropout > 0) return true;
    return false;
}

static jpo_work allot_work(cursor *at, const jpo_model *model, const jpo_plan *plan,
                           const jpo_forward_options *options) {
    const jpo_config *c = &model->config;
    int64_t r = plan->rows, q = jpo_query_width(c), kv = jpo_key_width(c), wide = jpo_max64(c->hidden, q);
    jpo_work work = {0};
    work.h = allot(at, r, wide);
    work.act = allot(at, r, c->intermediate);
    work.branch = allot_if(has_branch(c), at, r, c->hidden);
    work.dropped = allot_if(plan->dropout, at, r, jpo_max64(wide, c->intermediate));
    if (!options->keep) return work;
    work.dx = allot(at, r, c->hidden);
    work.dh = allot(at, r, wide);
    work.dattn = c->parallel ? allot(at, r, q) : work.dh;
    work.dqkv = allot(at, r, q + 2 * kv);
    work.dqk_raw = allot_if(c->qk_norm != JPO_QK_NONE, at, r, q + kv);
    work.dxa = allot(at, r, plan->rank_sum);
    work.dproduct = allot_if(plan->magnitudes > 0, at, r, plan->magnitudes);
    return work;
}

static jpo_head_memory allot_head(cursor *at, const jpo_model *model, const jpo_plan *plan,
                                  const jpo_forward_options *options) {
    const jpo_weights *weights = jpo_model_weights(model, options->adapter);
    const int64_t r = weights->head_lora.r;
    const bool trained = weights->dhead || r;
    int64_t n = plan->loss_rows, hidden = model->config.hidden;
    jpo_head_memory head = {0};
    head.h = allot(at, n, hidden);
    head.stat = allot(at, n, JPO_NORM_STATISTICS);
    head.state = allot(at, n, sizeof *head.state / 4);
    head.pw = allot_if(options->keep && !trained, at, n, hidden);
    head.tile = allot_if(options->keep && trained, at, n, JPO_HEAD_TILE);
    head.xa = allot_if(r > 0, at, n, r);
    head.dxa = allot_if(options->keep && r, at, n, r);
    head.slope = allot_if(model->config.logits_softcap > 0, at, plan->entries, 1);
    return head;
}

static jpo_index allot_index(cursor *at, const jpo_plan *plan) {
    jpo_index index = {0};
    index.tokens = allot(at, plan->rows, 1);
    index.position = allot(at, plan->rows, 1);
    index.entry_row = allot(at, plan->entries, 1);
    index.entry_target = allot(at, plan->entries, 1);
    index.head_entry_row = allot(at, plan->entries, 1);
    index.loss_row = allot(at, plan->loss_rows, 1);
    index.segments = allot(at, plan->segments, sizeof *index.segments / 4);
    index.ranges = allot(at, plan->ranges, sizeof *index.ranges / 4);
    index.mask_key = allot_if(plan->dropout, at, plan->rows, sizeof *index.mask_key / 4);
    return index;
}

/* What the adapters of a layer need, of the layer that needs most. */
static void count_adapters(jpo_plan *plan, const jpo_model *model) {
    for (int64_t i = 0; i < model->config.layers; i++) {
        int64_t ranks = 0, magnitudes = 0;
        for (int m = 0; m < JPO_MODULES; m++) {
            const jpo_linear *linear = &model->live.layer[i].module[m];
            ranks += linear->lora.r;
            magnitudes += linear->lora.magnitude ? linear->weight.n : 0;
        }
        plan->rank_sum = jpo_max64(plan->rank_sum, ranks);
        plan->magnitudes = jpo_max64(plan->magnitudes, magnitudes);
    }
}

/* Bytes of all layers' slabs. */
static bool layers_bytes(size_t *bytes, const jpo_plan *plan, int64_t layers, bool keep) {
    if (!keep) layers = 1;
    if (!keep || !plan->recompute) return jpo_size_mul(plan->layer_bytes, (size_t)layers, bytes);
    return jpo_size_mul(plan->x_bytes, (size_t)layers, bytes) && jpo_size_add(*bytes, plan->layer_bytes, bytes);
}

/* Loss rows, trees and key ranges of the forest. */
static jpo_status count_forest(jpo_plan *plan, const jpo_forest *forest, jpo_error *err) {
    for (int64_t e = 0; e < forest->entries; e++)
        plan->loss_rows += e == 0 || forest->entry_row[e] != forest->entry_row[e - 1];
    for (int64_t s = 0; s < forest->segments; s++) {
        plan->trees += forest->segment[s].parent < 0;
        for (int64_t p = s; p >= 0; p = forest->segment[p].parent) plan->ranges++;
        if (plan->ranges > INT32_MAX) return jpo_fail(err, JPO_ERR_MEMORY, "the forest's paths are too long");
    }
    return JPO_OK;
}

jpo_status jpo_plan_make(jpo_plan *plan, const jpo_pass *pass, const jpo_forest *forest,
                         const jpo_forward_options *options, jpo_error *err) {
    const jpo_model *model = pass->model;
    *plan = (jpo_plan){.rows = forest->rows,
                       .entries = forest->entries,
                       .segments = forest->segments,
                       .dropout = options->adapter && options->train && has_dropout(model),
                       .recompute = options->keep && pass->recompute};
    if (options->adapter) count_adapters(plan, model);
    JPO_TRY(count_forest(plan, forest, err));
    cursor x = {0}, layer = {0}, work = {0}, head = {0}, index = {0}, saved = {0};
    allot(&x, plan->rows, model->config.hidden);
    allot_layer(&layer, &model->config, plan);
    plan->x_bytes = x.used, plan->layer_bytes = layer.used;
    allot(&saved, plan->rows, model->config.hidden); /* final_x */
    size_t layers;
    saved.overflow |= !layers_bytes(&layers, plan, model->config.layers, options->keep) ||
                      !jpo_size_add(saved.used, layers, &saved.used);
    allot_work(&work, model, plan, options);
    allot_head(&head, model, plan, options);
    allot_index(&index, plan);
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

static void fill_index(jpo_pass *pass, const jpo_forest *forest) {
    const jpo_plan *plan = &pass->plan;
    const jpo_config *c = &pass->model->config;
    cursor at = {.base = pass->index_block.data};
    const jpo_index to = pass->index = allot_index(&at, plan);
    memcpy(to.tokens, forest->tokens, (size_t)plan->rows * sizeof(int32_t));
    for (int64_t s = 0; s < forest->segments; s++)
        for (int32_t i = 0; i < forest->segment[s].length; i++)
            to.position[forest->segment[s].first_row + i] = forest->segment[s].first_position + i;
    int32_t n = -1;
    for (int64_t e = 0; e < plan->entries; e++) {
        if (e == 0 || forest->entry_row[e] != forest->entry_row[e - 1]) to.loss_row[++n] = forest->entry_row[e];
        to.entry_row[e] = forest->entry_row[e];
        to.head_entry_row[e] = n;
        to.entry_target[e] = forest->entry_target[e];
    }
    fill_paths(to.segments, to.ranges, forest);
    if (to.mask_key) jpo_forest_mask_keys(to.mask_key, forest);
    pass->attention = (jpo_attention){.segments = plan->segments,
                                      .trees = plan->trees,
                                      .rows = plan->rows,
                                      .segment = to.segments,
                                      .ranges = to.ranges,
                                      .heads = c->heads,
                                      .kv_heads = c->kv_heads,
                                      .head_dim = c->head_dim,
                                      .scale = c->attention_scale,
                                      .softcap = c->attention_softcap};
}

jpo_saved_layer jpo_saved_get(const jpo_pass *pass, int64_t layer) {
    const jpo_plan *plan = &pass->plan;
    const jpo_config *c = &pass->model->config;
    char *data = pass->saved.data;
    if (!plan->recompute) {
        cursor at = {.base = data + (pass->options.keep ? (size_t)layer * plan->layer_bytes : 0)};
        return allot_layer(&at, c, plan);
    }
    cursor at = {.base = data + (size_t)c->layers * plan->x_bytes};
    jpo_saved_layer saved = allot_layer(&at, c, plan);
    saved.x = (float *)(data + (size_t)layer * plan->x_bytes);
    return saved;
}

/* Angles as the reference implementation rounds them: float32 products, then the cosine. */
static void fill_angles(float *cosine, const jpo_rotary *rotary, int64_t positions, int64_t reach) {
    const double *frequency = rotary->long_freq && reach > rotary->original ? rotary->long_freq : rotary->inv_freq;
    float *sine = cosine + positions * rotary->half;
    for (int64_t p = 0; p < positions; p++)
        for (int64_t j = 0; j < rotary->half; j++) {
            float angle = (float)p * (float)frequency[j];
            cosine[p * rotary->half + j] = (float)(cos((double)angle) * rotary->factor);
            sine[p * rotary->half + j] = (float)(sin((double)angle) * rotary->factor);
        }
}

/* Whether two lengths of texts call for different frequencies. */
static bool other_frequencies(const jpo_config *c, int64_t before, int64_t now) {
    for (int64_t i = 0; i < c->rotaries; i++)
        if (c->rotary[i].long_freq && (before > c->rotary[i].original) != (now > c->rotary[i].original)) return true;
    return false;
}

jpo_status jpo_angles_reserve(jpo_pass *pass, int64_t positions, int64_t reach, jpo_error *err) {
    const jpo_config *c = &pass->model->config;
    if (positions <= pass->positions && !other_frequencies(c, pass->reach, reach)) return JPO_OK;
    positions = jpo_min64(jpo_max64(positions, 2 * pass->positions), c->max_positions);
    pass->positions = 0; /* until all tables are there */
    for (int64_t i = 0; i < c->rotaries; i++) {
        size_t bytes;
        free(pass->angles[i]);
        pass->angles[i] = NULL;
        if (jpo_size_mul3((size_t)positions, (size_t)c->rotary[i].half, 2 * sizeof(float), &bytes))
            pass->angles[i] = malloc(bytes);
        if (!pass->angles[i])
            return jpo_fail(err, JPO_ERR_MEMORY, "could not allocate rotary tables of %lld positions",
                            (long long)positions);
        fill_angles(pass->angles[i], &c->rotary[i], positions, reach);
    }
    pass->positions = positions, pass->reach = reach;
    return JPO_OK;
}

jpo_status jpo_plan_apply(jpo_pass *pass, const jpo_forest *forest, const jpo_forward_options *options,
                          jpo_error *err) {
    jpo_plan *plan = &pass->plan;
    const jpo_model *model = pass->model;
    pass->kept = false;
    pass->final_x = NULL;
    JPO_TRY(jpo_plan_make(plan, pass, forest, options, err));
    pass->options = *options;
    JPO_TRY(jpo_block_reserve(&pass->saved, plan->saved_bytes, err));
    JPO_TRY(jpo_block_reserve(&pass->work_block, plan->work_bytes, err));
    JPO_TRY(jpo_block_reserve(&pass->head_block, plan->head_bytes, err));
    JPO_TRY(jpo_block_reserve(&pass->index_block, plan->index_bytes, err));
    fill_index(pass, forest);
    size_t layers = 0;
    layers_bytes(&layers, plan, model->config.layers, options->keep); /* did not overflow in jpo_plan_make */
    pass->final_x = (float *)((char *)pass->saved.data + layers);
    cursor work = {.base = pass->work_block.data}, head = {.base = pass->head_block.data};
    pass->work = allot_work(&work, model, plan, options);
    pass->head = allot_head(&head, model, plan, options);
    return JPO_OK;
}

jpo_status jpo_pass_init(jpo_pass *pass, const jpo_model *model, jpo_error *err) {
    *pass = (jpo_pass){.model = model};
    pass->angles = calloc((size_t)model->config.rotaries + 1, sizeof *pass->angles);
    pass->norms = calloc((size_t)model->config.layers, JPO_MODULES * sizeof *pass->norms);
    return pass->angles && pass->norms ? JPO_OK : jpo_fail(err, JPO_ERR_MEMORY, "could not allocate a pass");
}

/* The norms of every module with magnitudes, counted or (at->base) handed out. */
static void allot_norms(cursor *at, jpo_pass *pass) {
    const int64_t modules = pass->model->config.layers * JPO_MODULES;
    for (int64_t i = 0; i < modules; i++) {
        const jpo_linear *linear = &pass->model->live.layer[i / JPO_MODULES].module[i % JPO_MODULES];
        const int64_t n = linear->weight.n, k = linear->weight.k;
        pass->norms[i] = (jpo_row_norms){0};
        if (!linear->lora.magnitude) continue;
        pass->norms[i].norm = allot(at, n, 1);
        pass->norms[i].factor = allot(at, n, 1);
        pass->norms[i].seen = allot(at, n + k, linear->lora.r);
    }
}

jpo_status jpo_pass_adapt(jpo_pass *pass, jpo_error *err) {
    cursor count = {0};
    pass->kept = false;
    allot_norms(&count, pass);
    if (count.overflow) return jpo_fail(err, JPO_ERR_MEMORY, "an adapter does not fit the address space");
    JPO_TRY(jpo_block_reserve(&pass->norm_block, count.used, err));
    cursor at = {.base = pass->norm_block.data};
    if (count.used) allot_norms(&at, pass);
    return JPO_OK;
}

void jpo_pass_trim(jpo_pass *pass) {
    pass->kept = false;
    pass->final_x = NULL;
    jpo_block_free(&pass->saved);
    jpo_block_free(&pass->work_block);
    jpo_block_free(&pass->index_block);
    jpo_block_free(&pass->head_block);
    jpo_block_free(&pass->decode_block);
    jpo_scratch_free(&pass->scratch);
    jpo_weight_scratch_free(&pass->weight_scratch);
}

void jpo_pass_free(jpo_pass *pass) {
    jpo_pass_trim(pass);
    jpo_block_free(&pass->norm_block);
    free(pass->norms);
    for (int64_t i = 0; pass->angles && i < pass->model->config.rotaries; i++) free(pass->angles[i]);
    free(pass->angles);
    *pass = (jpo_pass){0};
}

/* One pass over new rows whose keys join a cache (model/decode.h): the plan of attention, the blocks, the logits. */
#include "model/decode.h"

#include <string.h>

#include "base/size.h"
#include "base/threads.h"
#include "ops/embedding.h"
#include "ops/rmsnorm.h"

/* The attention plan over the cache, in `index` behind what the pass itself keeps there. */
static jpo_status plan_attention(jpo_model *model, jpo_attention *attention, const jpo_decode *d, jpo_block *block,
                                 jpo_error *err) {
    const jpo_config *c = &model->config;
    jpo_attention_segment *segment;
    size_t bytes;
    if (!jpo_size_mul((size_t)d->segment_count, sizeof *segment, &bytes))
        return jpo_fail(err, JPO_ERR_MEMORY, "too many streams: %lld", (long long)d->segment_count);
    JPO_TRY(jpo_block_reserve(block, bytes, err));
    segment = block->data;
    for (int64_t s = 0; s < d->segment_count; s++) {
        const int32_t *from = d->segments + 4 * s;
        segment[s] = (jpo_attention_segment){from[0], from[1], d->positions[from[0]], from[2], from[3], 0, (int32_t)s};
    }
    *attention = (jpo_attention){d->segment_count, d->segment_count, d->rows,     segment,  d->ranges,
                                 c->heads,         c->kv_heads,      c->head_dim, c->window};
    return JPO_OK;
}

static jpo_status decode(jpo_model *model, float *logits, const jpo_decode *d, jpo_error *err) {
    const jpo_config *c = &model->config;
    jpo_attention attention;
    jpo_forward_options options = {.adapter = d->adapter};
    model->kept = false;
    JPO_TRY(plan_attention(model, &attention, d, &model->decode_block, err));
    jpo_segment whole = {0, (int32_t)d->rows, -1, 0}; /* only sizes are planned from it */
    jpo_forest forest = {.rows = d->rows, .segments = 1, .tokens = d->tokens, .segment = &whole};
    JPO_TRY(jpo_plan_apply(model, &forest, &options, err));
    int64_t last = 0;
    for (int64_t i = 0; i < d->rows; i++) last = jpo_max64(last, d->positions[i]);
    JPO_TRY(jpo_rope_tables(model, last + 1, err));
    jpo_kv_target target = {d->k, d->v, d->capacity, d->kv_row};
    jpo_saved_layer saved = jpo_saved_get(model, 0);
    jpo_embedding_forward(saved.x, d->tokens, &model->embedding, d->rows);
    for (int64_t layer = 0; layer < c->layers; layer++) {
        if (jpo_compute_interrupted() || (model->poll && model->poll(model->poll_context)))
            return jpo_fail(err, JPO_ERR_INTERRUPTED, "interrupted");
        float *x_next = layer + 1 < c->layers ? saved.x : model->final_x;
        JPO_TRY(jpo_block_forward(model, layer, &saved, x_next, d->rows, d->positions, &attention, &target, err));
    }
    float *h = model->work.h; /* (n, H) fits: n <= R */
    for (int64_t i = 0; i < d->out_rows; i++)
        jpo_rmsnorm_forward(h + i * c->hidden, NULL, model->final_x + d->out_row[i] * c->hidden, model->norm, 1,
                            c->hidden, c->eps);
    if (d->out_rows == 0) return JPO_OK;
    double start = jpo_profile_start(&model->profile);
    JPO_TRY(jpo_linear_forward(logits, c->vocab, h, c->hidden, &model->head, d->out_rows, false, NULL, &model->scratch,
                               err));
    jpo_profile_add(&model->profile, JPO_OP_HEAD, start, 2.0 * (double)(d->out_rows * c->hidden) * (double)c->vocab);
    return JPO_OK;
}

jpo_status jpo_model_decode(jpo_model *model, float *logits, const jpo_decode *d, jpo_error *err) {
    jpo_status status = decode(model, logits, d, err);
    if (jpo_compute_interrupted()) status = jpo_fail(err, JPO_ERR_INTERRUPTED, "interrupted");
    if (status != JPO_OK) model->final_x = NULL; /* a pass that ended early leaves no rows */
    return status;
}

/* One pass over new rows whose keys join a cache (model/decode.h): the plan of attention, the blocks, the logits. */
#include "model/decode.h"

#include "base/size.h"
#include "base/threads.h"
#include "model/layer.h"
#include "ops/quantize.h"

bool jpo_cache_serves(jpo_dtype dtype, const jpo_config *config) {
    return jpo_quantizes(dtype) && config->head_dim % jpo_dtype_block(dtype) == 0;
}

/* The attention plan over the cache, in a block of its own: the pass' index keeps what the pass itself plans. */
static jpo_status plan_attention(jpo_pass *pass, jpo_attention *attention, const jpo_decode *d, jpo_error *err) {
    const jpo_config *c = &pass->model->config;
    jpo_attention_segment *segment;
    size_t bytes;
    if (!jpo_size_mul((size_t)d->segment_count, sizeof *segment, &bytes))
        return jpo_fail(err, JPO_ERR_MEMORY, "too many streams: %lld", (long long)d->segment_count);
    JPO_TRY(jpo_block_reserve(&pass->decode_block, bytes, err));
    segment = pass->decode_block.data;
    for (int64_t s = 0; s < d->segment_count; s++) {
        const int32_t *from = d->segments + 4 * s;
        segment[s] = (jpo_attention_segment){from[0], from[1], d->positions[from[0]], from[2], from[3], 0, (int32_t)s};
    }
    *attention = (jpo_attention){.segments = d->segment_count,
                                 .trees = d->segment_count,
                                 .rows = d->rows,
                                 .segment = segment,
                                 .ranges = d->ranges,
                                 .heads = c->heads,
                                 .kv_heads = c->kv_heads,
                                 .head_dim = c->head_dim,
                                 .scale = c->attention_scale,
                                 .softcap = c->attention_softcap};
    return JPO_OK;
}

static jpo_status decode(jpo_pass *pass, float *logits, const jpo_decode *d, jpo_error *err) {
    const jpo_config *c = &pass->model->config;
    jpo_attention attention;
    bool begins = false;
    for (int64_t i = 0; i < d->rows; i++) begins |= d->positions[i] == 0;
    jpo_forward_options options = {.adapter = d->adapter, .decode = !begins};
    pass->kept = false;
    JPO_TRY(plan_attention(pass, &attention, d, err));
    jpo_segment whole = {0, (int32_t)d->rows, -1, 0}; /* only sizes are planned from it */
    jpo_forest forest = {.rows = d->rows, .segments = 1, .tokens = d->tokens, .segment = &whole};
    JPO_TRY(jpo_plan_apply(pass, &forest, &options, err));
    int64_t last = 0;
    for (int64_t i = 0; i < d->rows; i++) last = jpo_max64(last, d->positions[i]);
    JPO_TRY(jpo_angles_reserve(pass, last + 1, jpo_max64(d->reach, last + 1), err));
    jpo_kv_target target = {d->k, d->v, d->dtype, d->capacity, d->kv_row};
    jpo_saved_layer saved = jpo_saved_get(pass, 0);
    jpo_pass_embed(pass, saved.x, d->tokens, d->positions, d->rows);
    for (int64_t layer = 0; layer < c->layers; layer++) {
        JPO_TRY(jpo_pass_poll(pass, err));
        float *x_next = layer + 1 < c->layers ? saved.x : pass->final_x;
        JPO_TRY(jpo_block_forward(pass, layer, &saved, x_next, d->rows, d->positions, &attention, &target, err));
    }
    float *h = pass->work.h; /* (n, H) fits: n <= T */
    for (int64_t i = 0; i < d->out_rows; i++) jpo_pass_hidden(pass, h + i * c->hidden, d->out_row[i]);
    return d->out_rows ? jpo_pass_logits(pass, logits, h, d->out_rows, err) : JPO_OK;
}

jpo_status jpo_pass_decode(jpo_pass *pass, float *logits, const jpo_decode *d, jpo_error *err) {
    jpo_status status = decode(pass, logits, d, err);
    if (jpo_compute_interrupted()) status = jpo_fail(err, JPO_ERR_INTERRUPTED, "interrupted");
    if (status != JPO_OK) pass->final_x = NULL; /* a pass that ended early leaves no rows */
    return status;
}

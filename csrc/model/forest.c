/* The checks of a forest: segments tile the rows in order, positions continue the parent's, entries ascend. And the
 * names of its rows for dropout. */
#include "base/mix.h"
#include "model/pass.h"

static jpo_status check_segments(const jpo_forest *forest, const jpo_config *config, jpo_error *err) {
    int64_t next_row = 0;
    for (int64_t s = 0; s < forest->segments; s++) {
        const jpo_segment *segment = forest->segment + s;
        if (segment->first_row != next_row || segment->length < 1 || segment->length > forest->rows - next_row)
            return jpo_fail(err, JPO_ERR_VALUE,
                            "segments[%lld]: rows %d + %d do not follow the rows before it (next %lld, of %lld)",
                            (long long)s, segment->first_row, segment->length, (long long)next_row,
                            (long long)forest->rows);
        next_row += segment->length;
        if (segment->parent >= s || segment->parent < -1)
            return jpo_fail(err, JPO_ERR_VALUE, "segments[%lld]: parent %d must be -1 or a segment before it",
                            (long long)s, segment->parent);
        const jpo_segment *parent = segment->parent < 0 ? NULL : forest->segment + segment->parent;
        int64_t position = parent ? (int64_t)parent->first_position + parent->length : 0;
        if (segment->first_position != position)
            return jpo_fail(err, JPO_ERR_VALUE,
                            "segments[%lld]: first_position must be %lld, where its parent ends, got %d", (long long)s,
                            (long long)position, segment->first_position);
        if (position + segment->length > config->max_positions)
            return jpo_fail(err, JPO_ERR_VALUE,
                            "segments[%lld] reaches position %lld, but the model knows %lld: shorten the text "
                            "(max_length)",
                            (long long)s, (long long)position + segment->length, (long long)config->max_positions);
    }
    if (next_row != forest->rows)
        return jpo_fail(err, JPO_ERR_VALUE, "segments cover %lld of %lld rows", (long long)next_row,
                        (long long)forest->rows);
    return JPO_OK;
}

static jpo_status check_entries(const jpo_forest *forest, const jpo_config *config, jpo_error *err) {
    for (int64_t e = 0; e < forest->entries; e++) {
        if (forest->entry_row[e] < (e ? forest->entry_row[e - 1] : 0) || forest->entry_row[e] >= forest->rows)
            return jpo_fail(err, JPO_ERR_VALUE, "entry_row[%lld] = %d must ascend within 0..%lld", (long long)e,
                            forest->entry_row[e], (long long)forest->rows - 1);
        if (forest->entry_target[e] < 0 || forest->entry_target[e] >= config->vocab)
            return jpo_fail(err, JPO_ERR_VALUE, "entry_target[%lld] = %d lies outside the vocabulary 0..%lld",
                            (long long)e, forest->entry_target[e], (long long)config->vocab - 1);
    }
    return JPO_OK;
}

jpo_status jpo_forest_check(const jpo_forest *forest, const jpo_config *config, jpo_error *err) {
    if (forest->rows < 1 || forest->segments < 1)
        return jpo_fail(err, JPO_ERR_VALUE, "the forest is empty: it has %lld rows in %lld segments",
                        (long long)forest->rows, (long long)forest->segments);
    if (forest->rows > INT32_MAX / 2)
        return jpo_fail(err, JPO_ERR_VALUE, "a forest holds at most 2^30 rows, got %lld", (long long)forest->rows);
    for (int64_t row = 0; row < forest->rows; row++)
        if (forest->tokens[row] < 0 || forest->tokens[row] >= config->vocab)
            return jpo_fail(err, JPO_ERR_VALUE, "tokens[%lld] = %d lies outside the vocabulary 0..%lld", (long long)row,
                            forest->tokens[row], (long long)config->vocab - 1);
    JPO_TRY(check_segments(forest, config, err));
    return check_entries(forest, config, err);
}

/* A segment's name digests its tokens after the name of its parent's last row, so that equal prompts, and equal
 * responses to one prompt, have equal masks in whatever small batch they stand, shared or not; a row's name adds its
 * position. */
void jpo_forest_mask_keys(uint64_t *key, const jpo_forest *forest) {
    for (int64_t s = 0; s < forest->segments; s++) {
        const jpo_segment *segment = forest->segment + s,
                          *parent = segment->parent < 0 ? NULL : forest->segment + segment->parent;
        uint64_t name = parent ? key[parent->first_row + parent->length - 1] : 0;
        for (int32_t i = 0; i < segment->length; i++)
            name = jpo_mix64(name + JPO_GOLDEN64 * ((uint64_t)forest->tokens[segment->first_row + i] + 1));
        for (int32_t i = 0; i < segment->length; i++)
            key[segment->first_row + i] =
                jpo_mix64(name + JPO_GOLDEN64 * ((uint64_t)(segment->first_position + i) + 1));
    }
}

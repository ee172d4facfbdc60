/* NaN and infinity in stored weights: all have an exponent of ones, so that integers find them. */
#include "ops/finite.h"

#include <string.h>

#include "base/size.h"
#include "base/threads.h"

enum { TASK_BYTES = 1 << 20, STEP = 1024 };

typedef struct {
    const uint8_t *data;
    jpo_dtype dtype;
    int64_t blocks, each; /* in all, in one task */
    int64_t *first;       /* (tasks): the first bad block of each, or -1 */
} scan;

/* Whether one of `count` words at `data` has all bits of `mask`; no early end, so that it becomes vectors. */
static bool any_word(const uint8_t *data, int64_t count) {
    uint32_t found = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, data + 4 * i, sizeof bits);
        found |= (uint32_t)((bits & 0x7f800000) == 0x7f800000);
    }
    return found != 0;
}

static bool any_half(const uint8_t *data, int64_t count, uint16_t mask) {
    uint16_t found = 0;
    for (int64_t i = 0; i < count; i++) {
        uint16_t bits;
        memcpy(&bits, data + 2 * i, sizeof bits);
        found |= (uint16_t)((bits & mask) == mask);
    }
    return found != 0;
}

static bool any_scalar(const uint8_t *data, jpo_dtype dtype, int64_t count) {
    return dtype == JPO_F32 ? any_word(data, count) : any_half(data, count, dtype == JPO_BF16 ? 0x7f80 : 0x7c00);
}

static int64_t first_scalar(const scan *s, int64_t from, int64_t end) {
    const size_t bytes = jpo_dtype_block_bytes(s->dtype);
    for (int64_t i = from; i < end; i += STEP) {
        if (!any_scalar(s->data + (size_t)i * bytes, s->dtype, jpo_min64(STEP, end - i))) continue;
        while (!any_scalar(s->data + (size_t)i * bytes, s->dtype, 1)) i++;
        return i;
    }
    return -1;
}

static int64_t first_block(const scan *s, int64_t from, int64_t end) {
    const size_t bytes = jpo_dtype_block_bytes(s->dtype);
    int offset[2];
    const int halves = jpo_dtype_halves(s->dtype, offset);
    for (int64_t i = from; i < end; i++)
        for (int h = 0; h < halves; h++)
            if (any_half(s->data + (size_t)i * bytes + offset[h], 1, 0x7c00)) return i;
    return -1;
}

static void scan_task(void *context, int64_t task, int thread) {
    const scan *s = context;
    (void)thread;
    const int64_t from = task * s->each, end = jpo_min64(from + s->each, s->blocks);
    s->first[task] = jpo_dtype_block(s->dtype) == 1 ? first_scalar(s, from, end) : first_block(s, from, end);
}

int64_t jpo_first_nonfinite(const void *data, jpo_dtype dtype, int64_t count) {
    enum { MOST_TASKS = 256 };
    int64_t first[MOST_TASKS], blocks = count / jpo_dtype_block(dtype);
    const int64_t least = jpo_max64(TASK_BYTES / (int64_t)jpo_dtype_block_bytes(dtype), 1);
    scan s = {data, dtype, blocks, jpo_max64(least, jpo_ceil_div(blocks, MOST_TASKS)), first};
    const int64_t tasks = jpo_ceil_div(blocks, s.each);
    jpo_parallel(tasks, scan_task, &s);
    for (int64_t task = 0; task < tasks; task++)
        if (first[task] >= 0) return first[task] * jpo_dtype_block(dtype);
    return -1;
}

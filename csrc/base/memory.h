/* Aligned blocks for plans and scratch. Large blocks come from the kernel directly and ask for huge pages. */
#ifndef JPO_BASE_MEMORY_H
#define JPO_BASE_MEMORY_H

#include <stddef.h>

#include "base/status.h"

typedef struct {
    void *data; /* 64-byte aligned; NULL when empty */
    size_t bytes, mapped;
} jpo_block;

/* Grows to at least `bytes` (contents are lost when it grows); never shrinks. */
jpo_status jpo_block_reserve(jpo_block *block, size_t bytes, jpo_error *err);
void jpo_block_free(jpo_block *block);

#endif

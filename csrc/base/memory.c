/* Aligned blocks: the C library's below 2 MiB, mapped and in huge pages above (base/memory.h). */
#include "base/memory.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "base/size.h"

enum { HUGE_PAGE = 2 << 20 };

void jpo_block_free(jpo_block *block) {
    if (block->mapped)
        munmap(block->data, block->mapped);
    else
        free(block->data);
    *block = (jpo_block){0};
}

jpo_status jpo_block_reserve(jpo_block *block, size_t bytes, jpo_error *err) {
    if (bytes <= block->bytes) return JPO_OK;
    size_t padded;
    if (!jpo_size_add(bytes, HUGE_PAGE, &padded))
        return jpo_fail(err, JPO_ERR_MEMORY, "a buffer of %zu bytes does not fit the address space", bytes);
    jpo_block_free(block);
    if (bytes < HUGE_PAGE) {
        padded = (bytes + 63) / 64 * 64;
        block->data = aligned_alloc(64, padded);
    } else {
        padded -= padded % HUGE_PAGE;
        block->data = mmap(NULL, padded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (block->data == MAP_FAILED) block->data = NULL;
        if (block->data) {
            block->mapped = padded;
#ifdef MADV_HUGEPAGE
            madvise(block->data, padded, MADV_HUGEPAGE); /* advice: failure costs speed only */
#endif
        }
    }
    if (!block->data) return jpo_fail(err, JPO_ERR_MEMORY, "could not allocate %zu bytes", bytes);
    block->bytes = bytes;
    return JPO_OK;
}

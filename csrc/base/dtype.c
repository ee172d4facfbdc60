#include "base/dtype.h"

#include <string.h>

static const struct {
    const char *name;
    int64_t values;
    size_t bytes;
} dtypes[] = {
#define JPO_DTYPE_ROW(code, name, values, bytes) {name, values, bytes},
    JPO_DTYPE_LIST(JPO_DTYPE_ROW)
#undef JPO_DTYPE_ROW
};

const char *jpo_dtype_name(jpo_dtype dtype) { return dtypes[dtype].name; }

int jpo_dtype_from_name(const char *name) {
    for (int i = 0; i < JPO_DTYPE_COUNT; i++)
        if (!strcmp(name, dtypes[i].name)) return i;
    return -1;
}

int64_t jpo_dtype_block(jpo_dtype dtype) { return dtypes[dtype].values; }

size_t jpo_dtype_row_bytes(jpo_dtype dtype, int64_t k) {
    return (size_t)(k / dtypes[dtype].values) * dtypes[dtype].bytes;
}

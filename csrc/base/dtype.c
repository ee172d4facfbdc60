/* Names of storage types and of number types of products. */
#include "base/dtype.h"

#include <string.h>

static const char *const names[] = {
#define JPO_DTYPE_NAME(with, code, name, values, bytes, d, m) name,
    JPO_DTYPE_LIST(JPO_DTYPE_NAME, )
#undef JPO_DTYPE_NAME
};

const char *jpo_dtype_name(jpo_dtype dtype) { return names[dtype]; }

int jpo_dtype_from_name(const char *name) {
    for (int i = 0; i < JPO_DTYPE_COUNT; i++)
        if (!strcmp(name, names[i])) return i;
    return -1;
}

static const char *const compute_names[] = {
#define JPO_COMPUTE_NAME(code, name, meaning) name,
    JPO_COMPUTE_LIST(JPO_COMPUTE_NAME)
#undef JPO_COMPUTE_NAME
};
static const char *const compute_meanings[] = {
#define JPO_COMPUTE_MEANING(code, name, meaning) meaning,
    JPO_COMPUTE_LIST(JPO_COMPUTE_MEANING)
#undef JPO_COMPUTE_MEANING
};

const char *jpo_compute_name(jpo_compute compute) { return compute_names[compute]; }
const char *jpo_compute_meaning(jpo_compute compute) { return compute_meanings[compute]; }

int jpo_compute_from_name(const char *name) {
    for (int i = 0; i < JPO_COMPUTE_COUNT; i++)
        if (!strcmp(name, compute_names[i])) return i;
    return -1;
}

/* The names of the stored number types (base/dtype.h). */
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

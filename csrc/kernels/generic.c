/* The kernels for generic. System headers come before the target pragma, so that no inline of theirs changes with it.
 */
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "kernels/kernels.h"

#define LANES 4
#define FMA(a, b, c) ((a) * (b) + (c))
#define SQRT(v) root_lanes(v)
#define TABLE jpo_kernels_generic

typedef float root_vector __attribute__((vector_size(4 * LANES)));

static inline root_vector root_lanes(root_vector v) {
    for (int i = 0; i < LANES; i++) v[i] = sqrtf(v[i]);
    return v;
}

#include "kernels/kernels.inc"

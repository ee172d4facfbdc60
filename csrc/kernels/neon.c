/* The kernels for neon. System headers come before the target pragma, so that no inline of theirs changes with it. */
#if defined(__aarch64__)
#include <arm_neon.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "kernels/kernels.h"

#define LANES 4
#define FMA(a, b, c) ((vf)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#define SQRT(v) ((vf)vsqrtq_f32((float32x4_t)(v)))
#define TABLE jpo_kernels_neon
#include "kernels/kernels.inc"
#endif

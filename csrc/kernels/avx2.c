/* The kernels for avx2. System headers come before the target pragma, so that no inline of theirs changes with it. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "kernels/kernels.h"

#pragma GCC target("avx2,fma,f16c")

#include "kernels/lanes_x86.inc"

#define LANES 8
#define FMA(a, b, c) ((vf)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define SQRT(v) ((vf)_mm256_sqrt_ps((__m256)(v)))
#define LARGER(a, b) ((vf)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define SMALLER(a, b) ((vf)_mm256_min_ps((__m256)(a), (__m256)(b)))
#define LOAD_PART(p, n, fill) ((vf)load_part_256(p, n, (__m256)(fill)))
#define STORE_PART(p, v, n) _mm256_maskstore_ps(p, first_lanes_256(n), (__m256)(v))
#define SUM_LANES(v) sum_across_double_256((__m256)(v))
#define MAX_LANES(v) max_across_256((__m256)(v))
#define SUM_FOUR(out, v) \
    _mm_storeu_ps(out, sum_four_256((__m256)(v)[0], (__m256)(v)[1], (__m256)(v)[2], (__m256)(v)[3]))
#define TABLE jpo_kernels_avx2
#include "kernels/kernels.inc"
#endif

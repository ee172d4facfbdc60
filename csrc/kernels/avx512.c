/* The kernels for avx512. System headers come before the target pragma, so that no inline of theirs changes with it. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "kernels/kernels.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")

#include "kernels/lanes_x86.inc"

#define LANES 16
#define FMA(a, b, c) ((vf)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define SQRT(v) ((vf)_mm512_sqrt_ps((__m512)(v)))
#define LARGER(a, b) ((vf)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define SMALLER(a, b) ((vf)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define FIRST_LANES(n) ((__mmask16)((1u << (n)) - 1))
#define LOAD_PART(p, n, fill) ((vf)_mm512_mask_loadu_ps((__m512)(fill), FIRST_LANES(n), p))
#define STORE_PART(p, v, n) _mm512_mask_storeu_ps(p, FIRST_LANES(n), (__m512)(v))
#define SUM_LANES(v) sum_across_double_512((__m512)(v))
#define MAX_LANES(v) _mm512_reduce_max_ps((__m512)(v))
#define SUM_FOUR(out, v) \
    _mm_storeu_ps(out, sum_four_512((__m512)(v)[0], (__m512)(v)[1], (__m512)(v)[2], (__m512)(v)[3]))
#define TABLE jpo_kernels_avx512
#include "kernels/kernels.inc"
#endif

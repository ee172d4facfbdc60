/* AVX2: dot products for few rows. Larger products are OpenBLAS's, which runs at this level's peak. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>

#include "kernels/gemm.h"
#include "kernels/panels.inc"

#define VEC __m256
#define LANES 8
#define VEC_ZERO() _mm256_setzero_ps()
#define VEC_LOAD(p) _mm256_loadu_ps(p)
#define VEC_STORE(p, v) _mm256_storeu_ps(p, v)
#define VEC_FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#include "kernels/gemm_dot.inc"

const jpo_gemm_table jpo_gemm_avx2 = {.widen = widen_row, .dot_rows = 12, .dot = dot};
#endif

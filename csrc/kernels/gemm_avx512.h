/* What gemm_avx512.c packs and converts for the tiles of gemm_avx512_vnni.c and gemm_avx512_bf16.c. */
#ifndef JPO_KERNELS_GEMM_AVX512_H
#define JPO_KERNELS_GEMM_AVX512_H

#include "kernels/gemm.h"

void jpo_int16_convert_avx512(const jpo_gemm_rows *rows, int64_t row0, int64_t count);
void jpo_int16_forward_avx512(void *panel, const jpo_gemm_source *source);
void jpo_int16_backward_avx512(void *panel, const jpo_gemm_source *source);
void jpo_bfloat16_convert_avx512(const jpo_gemm_rows *rows, int64_t row0, int64_t count);
void jpo_bfloat16_forward_avx512(void *panel, const jpo_gemm_source *source);
void jpo_bfloat16_backward_avx512(void *panel, const jpo_gemm_source *source);

#endif

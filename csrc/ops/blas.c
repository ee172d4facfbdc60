/* OpenBLAS, ours or the system's. */
#include "ops/blas.h"

#ifdef JPO_SYSTEM_BLAS
#include <cblas.h>
#define BLAS(name) name
void openblas_set_num_threads(int);
char *openblas_get_config(void);
char *openblas_get_corename(void);
#else /* scipy-openblas32 prefixes its symbols */
#define BLAS(name) scipy_##name
#include "cblas.h"
#endif

void jpo_blas_init(void) { BLAS(openblas_set_num_threads)(1); }
const char *jpo_blas_config(void) { return BLAS(openblas_get_config)(); }
const char *jpo_blas_kernel(void) { return BLAS(openblas_get_corename)(); }

void jpo_blas_sgemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                    const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    if (m == 0 || n == 0) return;
    BLAS(cblas_sgemm)
    (CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k, alpha, a,
     (int)lda, b, (int)ldb, beta, c, (int)ldc);
}

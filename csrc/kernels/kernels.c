/* Chooses the table of kernels that the processor and JPO_CPU allow (kernels/kernels.h). */
#include "kernels/kernels.h"

#include "base/cpu.h"

const jpo_kernels *jpo_kernels_get(void) {
    switch (jpo_cpu_get()->chosen) {
#if defined(__x86_64__)
    case JPO_ISA_AVX512:
        return &jpo_kernels_avx512;
    case JPO_ISA_AVX2:
        return &jpo_kernels_avx2;
#elif defined(__aarch64__)
    case JPO_ISA_NEON:
        return &jpo_kernels_neon;
#endif
    default:
        return &jpo_kernels_generic;
    }
}

/* The list of product kernels and the choice among them. */
#include "kernels/gemm.h"

#include <stddef.h>

#include "base/cpu.h"

static const jpo_gemm_kernel *const kernels[] = {
#define JPO_GEMM_ROW(symbol) &jpo_gemm_##symbol,
    JPO_GEMM_LIST(JPO_GEMM_ROW)
#undef JPO_GEMM_ROW
};
enum { KERNELS = sizeof kernels / sizeof kernels[0] };

static bool portable_allowed;
static const jpo_gemm_kernel *forced;

void jpo_gemm_allow_portable(bool allow) { portable_allowed = allow; }

bool jpo_gemm_force(const jpo_gemm_kernel *kernel) {
    if (kernel && !jpo_cpu_can(kernel->needs)) return false;
    forced = kernel;
    return true;
}

const jpo_gemm_kernel *jpo_gemm_at(int place) { return place < KERNELS ? kernels[place] : NULL; }

const jpo_gemm_kernel *jpo_gemm_find(jpo_compute compute) {
    if (forced && forced->compute == compute) return forced;
    for (int i = 0; i < KERNELS; i++) {
        const jpo_gemm_kernel *kernel = kernels[i];
        if (kernel->compute == compute &&
            (kernel->needs ? jpo_cpu_has(kernel->needs | kernel->wants) : portable_allowed))
            return kernel;
    }
    return NULL;
}

const char *jpo_gemm_lacking(jpo_compute compute) {
    switch (compute) {
    case JPO_COMPUTE_INT16:
        return "needs the processor's avx2 or avx512_vnni instructions";
    case JPO_COMPUTE_BFLOAT16:
        return jpo_cpu_has(JPO_CPU_AVX512 | JPO_CPU_BF16)
                   ? "needs the processor's matrix tiles (amx): its avx512_bf16 instructions run at half float32's "
                     "speed"
                   : "needs the processor's matrix tiles (amx) or fast avx512_bf16 instructions";
    default:
        return "needs the processor's matrix tiles (amx)";
    }
}

/* Measured: tiles 2 to 3.5 times float32's rate in a product, VNNI 1.6, AVX2's integers 1.4. */
jpo_compute jpo_gemm_auto(void) {
    const jpo_compute order[] = {JPO_COMPUTE_BFLOAT16X2, JPO_COMPUTE_INT16};
    for (int i = 0; i < 2; i++)
        if (jpo_gemm_find(order[i])) return order[i];
    return JPO_COMPUTE_FLOAT32;
}

const jpo_gemv_kernel *jpo_gemv_find(void) {
#if defined(__x86_64__)
    if (jpo_cpu_has(jpo_gemv_avx512.needs)) return &jpo_gemv_avx512;
    if (jpo_cpu_has(jpo_gemv_avx2.needs)) return &jpo_gemv_avx2;
#endif
    return &jpo_gemv_generic;
}

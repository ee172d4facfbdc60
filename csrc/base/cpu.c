/* Detects the processor's instruction sets once and holds the one that kernels use (base/cpu.h). */
#include "base/cpu.h"

#include <stdlib.h>
#include <string.h>

static jpo_cpu cpu;
static bool cpu_ready;

static const char *const isa_names[JPO_ISA_COUNT] = {"generic", "avx2", "avx512", "neon"};

const char *jpo_isa_name(jpo_isa isa) { return isa_names[isa]; }

static void detect(void) {
#if defined(__x86_64__)
    __builtin_cpu_init(); /* reads CPUID and XGETBV: a feature counts only if its registers are saved */
    cpu.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    cpu.avx512 = cpu.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    cpu.avx512_vnni = cpu.avx512 && __builtin_cpu_supports("avx512vnni");
    cpu.avx512_bf16 = cpu.avx512 && __builtin_cpu_supports("avx512bf16");
#elif defined(__aarch64__)
    cpu.neon = true; /* part of the base architecture */
#endif
    cpu.best = cpu.avx512 ? JPO_ISA_AVX512 : cpu.avx2 ? JPO_ISA_AVX2 : cpu.neon ? JPO_ISA_NEON : JPO_ISA_GENERIC;
    cpu.chosen = cpu.best;
    const char *wanted = getenv("JPO_CPU");
    for (int isa = 0; wanted && isa < JPO_ISA_COUNT; isa++)
        if (!strcmp(wanted, isa_names[isa]) && jpo_cpu_has((jpo_isa)isa)) cpu.chosen = (jpo_isa)isa;
}

bool jpo_cpu_has(jpo_isa isa) {
    switch (isa) {
    case JPO_ISA_GENERIC:
        return true;
    case JPO_ISA_AVX2:
        return cpu.avx2;
    case JPO_ISA_AVX512:
        return cpu.avx512;
    case JPO_ISA_NEON:
        return cpu.neon;
    default:
        return false;
    }
}

const jpo_cpu *jpo_cpu_get(void) {
    if (!cpu_ready) {
        detect();
        cpu_ready = true;
    }
    return &cpu;
}

bool jpo_cpu_choose(jpo_isa isa) {
    jpo_cpu_get();
    if (!jpo_cpu_has(isa)) return false;
    cpu.chosen = isa;
    return true;
}

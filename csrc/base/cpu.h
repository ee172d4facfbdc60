/* What the processor and the operating system together allow, as a set of bits.
 *
 * JPO_CPU narrows it: a level (generic, avx2, avx512, neon), features to leave out, or both, separated by commas:
 * "avx2", "-amx", "avx512,-vnni,-amx". What the machine lacks or nobody knows is ignored here and reported by
 * `jpo doctor`. */
#ifndef JPO_BASE_CPU_H
#define JPO_BASE_CPU_H

#include <stdbool.h>
#include <stdint.h>

/* X(code, name in JPO_CPU, what it stands for): one line adds a feature, cpu.c says how it is found. */
#define JPO_CPU_LIST(X)                                                                                         \
    X(JPO_CPU_AVX2, "avx2", "AVX2, FMA and F16C, ymm registers saved by the operating system")                  \
    X(JPO_CPU_AVX512, "avx512", "AVX-512 F, BW, DQ and VL on top of avx2, zmm registers saved")                 \
    X(JPO_CPU_VNNI, "vnni", "AVX512_VNNI: vpdpwssd")                                                            \
    X(JPO_CPU_BF16, "bf16", "AVX512_BF16: vdpbf16ps")                                                           \
    X(JPO_CPU_BF16_FAST, "bf16_fast", "vdpbf16ps at twice vfmadd's rate or the same: AMD; half of it on Intel") \
    X(JPO_CPU_AMX, "amx", "AMX_TILE and AMX_BF16, the use of tiles permitted by the operating system")          \
    X(JPO_CPU_NEON, "neon", "Advanced SIMD of 64-bit ARM")

enum {
#define JPO_CPU_PLACE(code, name, meaning) code##_PLACE,
    JPO_CPU_LIST(JPO_CPU_PLACE)
#undef JPO_CPU_PLACE
        JPO_CPU_FEATURES
};
typedef enum {
#define JPO_CPU_BIT(code, name, meaning) code = 1 << code##_PLACE,
    JPO_CPU_LIST(JPO_CPU_BIT)
#undef JPO_CPU_BIT
} jpo_cpu_feature;

/* Levels: which table of kernels (kernels/kernels.h) is in use. */
typedef enum { JPO_ISA_GENERIC, JPO_ISA_AVX2, JPO_ISA_AVX512, JPO_ISA_NEON, JPO_ISA_COUNT } jpo_isa;

typedef struct {
    uint32_t machine;    /* features that the machine has */
    uint32_t features;   /* those in use: of the machine, not masked, not above the chosen level */
    uint32_t masked;     /* features that JPO_CPU leaves out */
    jpo_isa best;        /* the highest level that the machine has */
    jpo_isa chosen;      /* best, or what JPO_CPU lowered it to */
    const char *ignored; /* the first word of JPO_CPU that could not be followed; NULL: none */
} jpo_cpu;

const jpo_cpu *jpo_cpu_get(void);            /* detected once, at first use */
const char *jpo_isa_name(jpo_isa isa);       /* "generic", "avx2", "avx512", "neon" */
const char *jpo_cpu_feature_name(int place); /* 0 <= place < JPO_CPU_FEATURES */
bool jpo_cpu_has(uint32_t features);         /* all of them are in use */
bool jpo_cpu_can(uint32_t features);         /* all of them are on this machine and not masked, whatever the level */
bool jpo_cpu_choose(jpo_isa isa);            /* for the tests: force a level; false where the machine lacks it */

#endif

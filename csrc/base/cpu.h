/* What the processor and the operating system together allow. JPO_CPU (generic, avx2, avx512, neon)
 * lowers the level; naming one that the machine lacks is ignored here and reported by `jpo doctor`. */
#ifndef JPO_BASE_CPU_H
#define JPO_BASE_CPU_H

#include <stdbool.h>

typedef enum { JPO_ISA_GENERIC, JPO_ISA_AVX2, JPO_ISA_AVX512, JPO_ISA_NEON, JPO_ISA_COUNT } jpo_isa;

typedef struct {
    bool avx2;        /* AVX2, FMA and F16C, with the operating system saving ymm state */
    bool avx512;      /* F, BW, DQ, VL, with zmm state saved */
    bool avx512_vnni; /* vpdpwssd, on top of avx512 */
    bool avx512_bf16; /* vdpbf16ps, on top of avx512 */
    bool neon;
    jpo_isa best;   /* the highest level that the machine has */
    jpo_isa chosen; /* best, or what JPO_CPU lowered it to */
} jpo_cpu;

const jpo_cpu *jpo_cpu_get(void);      /* detected once, at first use */
const char *jpo_isa_name(jpo_isa isa); /* "generic", "avx2", "avx512", "neon" */
bool jpo_cpu_has(jpo_isa isa);         /* the machine can run this level */
bool jpo_cpu_choose(jpo_isa isa);      /* for the tests: force a level; false where the machine lacks it */

#endif

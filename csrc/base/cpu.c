/* Detection of the processor's features, and what JPO_CPU makes of them. */
#include "base/cpu.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

static jpo_cpu cpu;
static bool cpu_ready;
static char ignored_word[32];

static const char *const isa_names[JPO_ISA_COUNT] = {"generic", "avx2", "avx512", "neon"};
static const char *const feature_names[] = {
#define JPO_CPU_NAME(code, name, meaning) name,
    JPO_CPU_LIST(JPO_CPU_NAME)
#undef JPO_CPU_NAME
};

const char *jpo_isa_name(jpo_isa isa) { return isa_names[isa]; }
const char *jpo_cpu_feature_name(int place) { return feature_names[place]; }

/* Features that a level needs, and those that it may use. */
static uint32_t level_needs(jpo_isa isa) {
    return isa == JPO_ISA_AVX2     ? JPO_CPU_AVX2
           : isa == JPO_ISA_AVX512 ? JPO_CPU_AVX2 | JPO_CPU_AVX512
           : isa == JPO_ISA_NEON   ? JPO_CPU_NEON
                                   : 0;
}
static uint32_t level_uses(jpo_isa isa) { return isa == JPO_ISA_AVX512 ? ~(uint32_t)JPO_CPU_NEON : level_needs(isa); }

#if defined(__x86_64__)
/* Which register states the operating system saves (XCR0). */
static uint64_t saved_states(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* Tiles are off until a process asks for them, once for all its threads, those to come included. */
static bool tiles_permitted(uint64_t states) {
#if defined(__linux__)
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return states >> 17 & 1 && states >> TILE_DATA & 1 && !syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA);
#else
    (void)states;
    return false;
#endif
}

static bool made_by_amd(void) {
    uint32_t top, b, c, d;
    return __get_cpuid(0, &top, &b, &c, &d) && b == signature_AMD_ebx;
}

static uint32_t detect_features(void) {
    uint32_t a, b1, c1, d1, b7 = 0, c7 = 0, d7 = 0, a71 = 0, rest;
    if (!__get_cpuid(1, &a, &b1, &c1, &d1) || !(c1 & bit_OSXSAVE)) return 0;
    if (__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) __get_cpuid_count(7, 1, &a71, &rest, &rest, &rest);
    const uint64_t states = saved_states();
    uint32_t found = 0;
    if ((states & 0x06) == 0x06 && b7 & 1u << 5 && c1 & bit_FMA && c1 & bit_F16C) found |= JPO_CPU_AVX2;
    const uint32_t f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    if (!(found & JPO_CPU_AVX2) || (states & 0xe6) != 0xe6 || (b7 & f_dq_bw_vl) != f_dq_bw_vl) return found;
    found |= JPO_CPU_AVX512;
    if (c7 & 1u << 11) found |= JPO_CPU_VNNI;
    if (a71 & 1u << 5) found |= made_by_amd() ? JPO_CPU_BF16 | JPO_CPU_BF16_FAST : JPO_CPU_BF16;
    if (found & JPO_CPU_BF16 && d7 & 1u << 24 && d7 & 1u << 22 && tiles_permitted(states)) found |= JPO_CPU_AMX;
    return found;
}
#elif defined(__aarch64__)
static uint32_t detect_features(void) { return JPO_CPU_NEON; } /* part of the base architecture */
#else
static uint32_t detect_features(void) { return 0; }
#endif

static jpo_isa highest_level(uint32_t features) {
    const jpo_isa order[] = {JPO_ISA_NEON, JPO_ISA_AVX512, JPO_ISA_AVX2};
    for (int i = 0; i < 3; i++)
        if (!(level_needs(order[i]) & ~features)) return order[i];
    return JPO_ISA_GENERIC;
}

static void use_level(jpo_isa isa) {
    cpu.chosen = isa;
    cpu.features = cpu.machine & ~cpu.masked & level_uses(isa);
}

/* One word of JPO_CPU: "-feature" or a level. */
static bool follow(const char *word, size_t length, jpo_isa *level) {
    if (word[0] == '-') {
        for (int i = 0; i < JPO_CPU_FEATURES; i++)
            if (strlen(feature_names[i]) == length - 1 && !strncmp(word + 1, feature_names[i], length - 1))
                return cpu.masked |= 1u << i, true;
        return false;
    }
    for (int isa = 0; isa < JPO_ISA_COUNT; isa++)
        if (strlen(isa_names[isa]) == length && !strncmp(word, isa_names[isa], length) &&
            !(level_needs((jpo_isa)isa) & ~cpu.machine))
            return *level = (jpo_isa)isa, true;
    return false;
}

static void detect(void) {
    cpu.machine = detect_features();
    cpu.best = highest_level(cpu.machine);
    jpo_isa level = cpu.best;
    const char *word = getenv("JPO_CPU");
    while (word && *word) {
        size_t length = strcspn(word, ",");
        if (length && !follow(word, length, &level) && !cpu.ignored) {
            size_t kept = length < sizeof ignored_word ? length : sizeof ignored_word - 1;
            memcpy(ignored_word, word, kept);
            cpu.ignored = ignored_word;
        }
        word += length + (word[length] == ',');
    }
    use_level(level_needs(level) & cpu.masked ? highest_level(cpu.machine & ~cpu.masked) : level);
}

const jpo_cpu *jpo_cpu_get(void) {
    if (!cpu_ready) {
        detect();
        cpu_ready = true;
    }
    return &cpu;
}

bool jpo_cpu_has(uint32_t features) { return !(features & ~jpo_cpu_get()->features); }
bool jpo_cpu_can(uint32_t features) {
    const jpo_cpu *known = jpo_cpu_get();
    return !(features & ~(known->machine & ~known->masked));
}

bool jpo_cpu_choose(jpo_isa isa) {
    if (!jpo_cpu_can(level_needs(isa))) return false;
    use_level(isa);
    return true;
}

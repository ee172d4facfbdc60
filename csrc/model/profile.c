/* Names of the operators and their clock (model/profile.h). */
#include "model/profile.h"

#include <time.h>

#include "base/size.h"

static const char *const names[] = {
#define JPO_OPERATOR_NAME(code, name) name,
    JPO_OPERATOR_LIST(JPO_OPERATOR_NAME)
#undef JPO_OPERATOR_NAME
};

const char *jpo_operator_name(jpo_operator op) { return names[op]; }

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

double jpo_profile_start(const jpo_profile *profile) { return profile->on ? now() : 0; }

double jpo_profile_total(const jpo_profile *profile) {
    double total = 0;
    for (int op = 0; op < JPO_OPERATORS; op++) total += profile->seconds[op];
    return total;
}

void jpo_profile_add(jpo_profile *profile, jpo_operator op, double start, double flop) {
    if (!profile->on) return;
    profile->calls[op]++;
    profile->seconds[op] += now() - start;
    profile->flop[op] += flop;
}

double jpo_attention_pairs(const jpo_attention *attention) {
    double pairs = 0;
    for (int64_t s = 0; s < attention->segments; s++) {
        const jpo_attention_segment *segment = attention->segment + s;
        int64_t before = segment->first_position - segment->root_position, n = segment->length;
        if (attention->window)
            pairs += (double)n * (double)jpo_min64(before + n / 2 + 1, attention->window);
        else
            pairs += (double)n * ((double)before + (double)(n + 1) / 2);
    }
    return pairs;
}

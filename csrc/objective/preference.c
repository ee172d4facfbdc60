/* s = h(log p - log p_ref) for the divergences h, one loss over it, and the chain rule back to log p. */
#include <math.h>
#include <stdlib.h>

#include "objective/losses.h"
#include "objective/stable.h"

static const double MAX_EXPONENT = 80; /* exponents beyond are held there, where the slope is zero */

static double clamped_exp(double exponent, double *slope) {
    double held = exponent > MAX_EXPONENT ? MAX_EXPONENT : exponent;
    *slope = exponent > MAX_EXPONENT ? 0 : exp(held);
    return exp(held);
}

/* h(s) and h'(s). */
static double transform(const jpo_preference *p, double s, double *slope) {
    double value;
    switch (p->divergence) {
    case JPO_FORWARD_KL:
        return 1 - clamped_exp(-s, slope);
    case JPO_JS_DIVERGENCE:
        *slope = sigmoid(-s);
        return log(2) + log_sigmoid(s);
    case JPO_ALPHA_DIVERGENCE:
        if (p->alpha == 1) break;
        value = clamped_exp((p->alpha - 1) * s, slope); /* d/ds: the exponent's own factor cancels the division */
        return (value - 1) / (p->alpha - 1);
    default:
        break;
    }
    *slope = 1;
    return s;
}

jpo_status jpo_preference_run(const jpo_preference *preference, const jpo_loss_entry *entry, double *loss, double *d_w,
                              double *d_l, jpo_error *err) {
    jpo_preference p = *preference;
    double *work = calloc((size_t)p.pairs + 1, 8 * sizeof(double));
    if (!work) return jpo_fail(err, JPO_ERR_MEMORY, "could not allocate a batch of %lld pairs", (long long)p.pairs);
    double *slope_w = work + 2 * p.pairs, *slope_l = work + 3 * p.pairs;
    p.s_w = work, p.s_l = work + p.pairs, p.ranks = work + 4 * p.pairs;
    bool reference = entry->reads & JPO_READS_REFERENCE;
    for (int64_t i = 0; i < p.pairs; i++) {
        p.s_w[i] = transform(&p, p.lp_w[i] - (reference ? p.ref_w[i] : 0), slope_w + i);
        p.s_l[i] = transform(&p, p.lp_l[i] - (reference ? p.ref_l[i] : 0), slope_l + i);
    }
    entry->run(&p, loss, d_w, d_l);
    if (p.divergence != JPO_REVERSE_KL)
        for (int64_t i = 0; i < p.pairs; i++) d_w[i] = weigh(slope_w[i], d_w[i]), d_l[i] = weigh(slope_l[i], d_l[i]);
    free(work);
    return JPO_OK;
}

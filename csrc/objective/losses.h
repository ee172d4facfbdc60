/* Objectives over sequence log-likelihoods: a batch of B pairs -> a loss and two derivatives for each pair, before the
 * mean over pairs. Everything float64. Adding one: a function in losses.c and a line in the list.
 *
 * Notation: s = h(log p - log p_ref), D = s_w - s_l, x = beta D, lp = log p, n = scored tokens, e = label_smoothing. */
#ifndef JPO_OBJECTIVE_LOSSES_H
#define JPO_OBJECTIVE_LOSSES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* What a loss reads; the public function refuses arguments that no loss of the call reads. */
enum {
    JPO_READS_REFERENCE = 1,
    JPO_READS_CHOSEN_LENGTHS = 2,
    JPO_READS_REJECTED_LENGTHS = 4,
    JPO_READS_SMOOTHING = 8,
    JPO_READS_DIVERGENCE = 16, /* h may be other than the identity */
    JPO_READS_GAMMA = 32,
    JPO_READS_LAMBDA = 64,
    JPO_READS_TAU = 128,
    JPO_READS_KL = 256,
    JPO_READS_RPO_WEIGHTS = 512,
    JPO_READS_GROUPS = 1024,
    JPO_OF_D_ALONE = 2048,    /* a function of D: what both sides share cancels (Lemma D.1) */
    JPO_COUPLES_BATCH = 4096, /* a pair's loss depends on other pairs */
    JPO_READS_LENGTH_NORMALIZE = 8192,
    JPO_READS_TIES = 16384, /* a pair may be a tie, which has a likelihood of its own */
};
enum {
    JPO_LENGTHS = JPO_READS_CHOSEN_LENGTHS | JPO_READS_REJECTED_LENGTHS,
    JPO_PLAIN = JPO_READS_REFERENCE | JPO_OF_D_ALONE | JPO_READS_DIVERGENCE
};

/* X(name, what it reads) */
#define JPO_LOSS_LIST(X)                                                                          \
    X(sigmoid, JPO_PLAIN | JPO_READS_SMOOTHING)                                                   \
    X(robust, JPO_PLAIN | JPO_READS_SMOOTHING)                                                    \
    X(hinge, JPO_PLAIN)                                                                           \
    X(ipo, JPO_READS_REFERENCE | JPO_READS_DIVERGENCE | JPO_LENGTHS | JPO_READS_LENGTH_NORMALIZE) \
    X(sigmoid_norm, JPO_READS_REFERENCE | JPO_READS_DIVERGENCE | JPO_LENGTHS)                     \
    X(exo_pair, JPO_PLAIN | JPO_READS_SMOOTHING)                                                  \
    X(nca_pair, JPO_READS_REFERENCE)                                                              \
    X(bco_pair, JPO_READS_REFERENCE)                                                              \
    X(sppo_hard, JPO_READS_REFERENCE)                                                             \
    X(apo_zero, JPO_READS_REFERENCE)                                                              \
    X(apo_down, JPO_READS_REFERENCE)                                                              \
    X(discopop, JPO_PLAIN | JPO_READS_TAU)                                                        \
    X(aot, JPO_READS_REFERENCE | JPO_READS_SMOOTHING | JPO_OF_D_ALONE | JPO_COUPLES_BATCH)        \
    X(aot_unpaired, JPO_READS_REFERENCE | JPO_READS_SMOOTHING | JPO_COUPLES_BATCH)                \
    X(kto, JPO_READS_REFERENCE | JPO_READS_KL | JPO_COUPLES_BATCH)                                \
    X(simpo, JPO_LENGTHS | JPO_READS_GAMMA | JPO_READS_SMOOTHING)                                 \
    X(orpo, JPO_LENGTHS | JPO_READS_LAMBDA)                                                       \
    X(sft, JPO_READS_CHOSEN_LENGTHS | JPO_COUPLES_BATCH)                                          \
    X(rpo, JPO_READS_REFERENCE | JPO_READS_RPO_WEIGHTS | JPO_COUPLES_BATCH)                       \
    X(iopo, JPO_READS_REFERENCE | JPO_READS_GROUPS | JPO_OF_D_ALONE | JPO_COUPLES_BATCH)          \
    X(dpo_rk, JPO_READS_REFERENCE | JPO_OF_D_ALONE | JPO_READS_TIES)                              \
    X(dpo_davidson, JPO_READS_REFERENCE | JPO_OF_D_ALONE | JPO_READS_TIES)

typedef enum { JPO_REVERSE_KL, JPO_FORWARD_KL, JPO_JS_DIVERGENCE, JPO_ALPHA_DIVERGENCE } jpo_divergence;

/* All vectors (B); what a loss does not read may be NULL. */
typedef struct {
    int64_t pairs;
    const double *lp_w, *lp_l, *ref_w, *ref_l, *n_w, *n_l;
    const double *rpo_weights; /* (B, B) */
    const int64_t *groups;     /* equal values belong together */
    const int64_t *ties;       /* nonzero: neither side is preferred; NULL: no pair is a tie */
    double beta, smoothing, gamma, lambda, tau, kl, desirable, undesirable, alpha, nu;
    jpo_divergence divergence;
    bool length_normalize;
    double *s_w, *s_l; /* scratch: h(s) */
    double *ranks;     /* scratch (4 B): two lists of the pairs in an order of values */
} jpo_preference;

typedef void (*jpo_loss)(const jpo_preference *p, double *loss, /* (B) */ double *d_w, /* (B) */ double *d_l /* (B) */);

typedef struct {
    const char *name;
    jpo_loss run;
    unsigned reads;
} jpo_loss_entry;

extern const jpo_loss_entry jpo_losses[];
extern const int jpo_loss_count;

/* loss, d_w, d_l (B): before the mean over pairs. JPO_ERR_MEMORY only. */
jpo_status jpo_preference_run(const jpo_preference *p, const jpo_loss_entry *entry, double *loss, /* (B) */
                              double *d_w, /* (B) */ double *d_l, /* (B) */ jpo_error *err);

#endif

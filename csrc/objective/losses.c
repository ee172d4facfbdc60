/* The losses, one small function each: the formulas stand in losses.h's list order, their sources in jpo/objectives.py.
 */
#include "objective/losses.h"

#include <math.h>
#include <stdlib.h>

#include "objective/stable.h"

#define EACH_PAIR for (int64_t i = 0; i < p->pairs; i++)

/* A loss of D alone writes its derivative by D to both sides. */
static void by_difference(double *d_w, double *d_l, int64_t i, double derivative) {
    d_w[i] = derivative;
    d_l[i] = -derivative;
}

static double difference(const jpo_preference *p, int64_t i) { return p->s_w[i] - p->s_l[i]; }

static double smoothed(double x, double e) { return -weigh(1 - e, log_sigmoid(x)) - weigh(e, log_sigmoid(-x)); }

static void loss_sigmoid(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    EACH_PAIR {
        double x = p->beta * difference(p, i);
        loss[i] = smoothed(x, p->smoothing);
        by_difference(d_w, d_l, i, p->beta * (p->smoothing - sigmoid(-x)));
    }
}

static void loss_robust(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    double e = p->smoothing;
    EACH_PAIR {
        double x = p->beta * difference(p, i);
        loss[i] = (-weigh(1 - e, log_sigmoid(x)) + weigh(e, log_sigmoid(-x))) / (1 - 2 * e);
        by_difference(d_w, d_l, i, -p->beta * ((1 - e) * sigmoid(-x) + e * sigmoid(x)) / (1 - 2 * e));
    }
}

static void loss_hinge(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    EACH_PAIR {
        double room = 1 - p->beta * difference(p, i);
        loss[i] = room > 0 || isnan(room) ? room : 0;
        by_difference(d_w, d_l, i, isnan(room) ? room : room > 0 ? -p->beta : 0);
    }
}

static void loss_ipo(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    EACH_PAIR {
        double n_w = p->length_normalize ? p->n_w[i] : 1, n_l = p->length_normalize ? p->n_l[i] : 1;
        double rest = p->s_w[i] / n_w - p->s_l[i] / n_l - 1 / (2 * p->beta);
        loss[i] = rest * rest;
        d_w[i] = 2 * rest / n_w;
        d_l[i] = -2 * rest / n_l;
    }
}

static void loss_sigmoid_norm(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    EACH_PAIR {
        double x = p->beta * (p->s_w[i] / p->n_w[i] - p->s_l[i] / p->n_l[i]), v = -p->beta * sigmoid(-x);
        loss[i] = -log_sigmoid(x);
        d_w[i] = v / p->n_w[i];
        d_l[i] = -v / p->n_l[i];
    }
}

static void loss_exo_pair(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    double log_e = log(p->smoothing), log_rest = log1p(-p->smoothing);
    EACH_PAIR {
        double x = p->beta * difference(p, i);
        loss[i] = weigh(sigmoid(x), log_sigmoid(x) - log_rest) + weigh(sigmoid(-x), log_sigmoid(-x) - log_e);
        by_difference(d_w, d_l, i, p->beta * weigh(sigmoid_slope(x), x - log_rest + log_e));
    }
}

static void loss_nca_pair(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    double b = p->beta;
    EACH_PAIR {
        double w = b * p->s_w[i], l = b * p->s_l[i];
        loss[i] = -log_sigmoid(w) - 0.5 * log_sigmoid(-w) - 0.5 * log_sigmoid(-l);
        d_w[i] = b * (1.5 * sigmoid(w) - 1);
        d_l[i] = 0.5 * b * sigmoid(l);
    }
}

static void loss_bco_pair(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    double b = p->beta;
    EACH_PAIR {
        loss[i] = -log_sigmoid(b * p->s_w[i]) - log_sigmoid(-b * p->s_l[i]);
        d_w[i] = -b * sigmoid(-b * p->s_w[i]);
        d_l[i] = b * sigmoid(b * p->s_l[i]);
    }
}

static void loss_sppo_hard(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    double goal = 1 / (2 * p->beta);
    EACH_PAIR {
        double w = p->s_w[i] - goal, l = p->s_l[i] + goal;
        loss[i] = w * w + l * l;
        d_w[i] = 2 * w;
        d_l[i] = 2 * l;
    }
}

static void loss_apo_zero(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    double b = p->beta;
    EACH_PAIR {
        loss[i] = sigmoid(-b * p->s_w[i]) + sigmoid(b * p->s_l[i]);
        d_w[i] = -b * sigmoid_slope(b * p->s_w[i]);
        d_l[i] = b * sigmoid_slope(b * p->s_l[i]);
    }
}

static void loss_apo_down(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    double b = p->beta;
    EACH_PAIR {
        double x = b * difference(p, i);
        loss[i] = sigmoid(b * p->s_w[i]) + sigmoid(-x);
        d_w[i] = b * (sigmoid_slope(b * p->s_w[i]) - sigmoid_slope(x));
        d_l[i] = b * sigmoid_slope(x);
    }
}

static void loss_discopop(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    double t = p->tau;
    EACH_PAIR {
        double x = p->beta * difference(p, i), rest = sigmoid(-x / t);
        /* log sg(x / t) - x, of which the infinities of both cancel where x is -inf */
        double exponential = exp(isinf(x) && x < 0 ? weigh(1 / t - 1, x) : log_sigmoid(x / t) - x);
        loss[i] = -weigh(rest, log_sigmoid(x)) + exponential;
        double slope = weigh(sigmoid_slope(x / t) / t, log_sigmoid(x)) - rest * sigmoid(-x) +
                       weigh(exponential, sigmoid(-x / t) / t - 1);
        by_difference(d_w, d_l, i, p->beta * slope);
    }
}

/* A value and the pair that it belongs to. */
typedef struct {
    double value;
    int64_t pair;
} ranked;
_Static_assert(sizeof(ranked) == 2 * sizeof(double), "two lists of B pairs fit into the 4 B doubles of ranks");

static int by_value(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->value != y->value) return x->value < y->value ? -1 : 1;
    return (x->pair > y->pair) - (x->pair < y->pair); /* ties keep their order; NaN was dealt with before */
}

/* The list of plus - minus (or of plus alone) in ascending order; false where NaN leaves none. */
static bool rank(ranked *list, int64_t n, const double *plus, const double *minus) {
    bool ordered = true;
    for (int64_t i = 0; i < n; i++) {
        list[i] = (ranked){minus ? plus[i] - minus[i] : plus[i], i};
        ordered &= !isnan(list[i].value);
    }
    if (ordered) qsort(list, (size_t)n, sizeof *list, by_value);
    return ordered;
}

static void all_nan(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    EACH_PAIR loss[i] = d_w[i] = d_l[i] = NAN; /* one unordered value makes every rank unknown */
}

static void transport(const jpo_preference *p, double *loss, double *d_w, double *d_l, bool paired) {
    ranked *a = (ranked *)p->ranks, *b = a + p->pairs;
    bool ordered = paired ? rank(a, p->pairs, p->lp_w, p->lp_l) && rank(b, p->pairs, p->ref_w, p->ref_l)
                          : rank(a, p->pairs, p->s_w, NULL) && rank(b, p->pairs, p->s_l, NULL);
    if (!ordered) all_nan(p, loss, d_w, d_l);
    for (int64_t i = 0; ordered && i < p->pairs; i++) {
        double x = p->beta * (a[i].value - b[i].value), slope = p->beta * (p->smoothing - sigmoid(-x));
        loss[a[i].pair] = smoothed(x, p->smoothing);
        d_w[a[i].pair] = slope;
        d_l[paired ? a[i].pair : b[i].pair] = -slope;
    }
}

static void loss_aot(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    transport(p, loss, d_w, d_l, true);
}

static void loss_aot_unpaired(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    transport(p, loss, d_w, d_l, false);
}

/* The mean runs over examples, of which a pair holds two: hence the halves. */
static void loss_kto(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    double b = p->beta;
    EACH_PAIR {
        double w = b * (p->s_w[i] - p->kl), l = b * (p->kl - p->s_l[i]);
        loss[i] = 0.5 * (p->desirable * sigmoid(-w) + p->undesirable * sigmoid(-l));
        d_w[i] = -0.5 * p->desirable * b * sigmoid_slope(w);
        d_l[i] = 0.5 * p->undesirable * b * sigmoid_slope(l);
    }
}

static void loss_simpo(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    EACH_PAIR {
        double u = p->beta * (p->lp_w[i] / p->n_w[i] - p->lp_l[i] / p->n_l[i]) - p->gamma;
        double v = p->beta * (p->smoothing - sigmoid(-u));
        loss[i] = smoothed(u, p->smoothing);
        d_w[i] = v / p->n_w[i];
        d_l[i] = -v / p->n_l[i];
    }
}

static void loss_orpo(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    EACH_PAIR {
        double a_w = p->lp_w[i] / p->n_w[i], a_l = p->lp_l[i] / p->n_l[i];
        double rest_w = -expm1(a_w), rest_l = -expm1(a_l); /* 1 - e^a */
        double odds = (a_w - log(rest_w)) - (a_l - log(rest_l)), v = p->lambda * sigmoid(-odds);
        loss[i] = -a_w - weigh(p->lambda, log_sigmoid(odds));
        d_w[i] = -(1 + weigh(v, 1 / rest_w)) / p->n_w[i];
        d_l[i] = weigh(v, 1 / rest_l) / p->n_l[i];
    }
}

static void loss_sft(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    double tokens = 0;
    EACH_PAIR tokens += p->n_w[i];
    EACH_PAIR {
        d_w[i] = -(double)p->pairs / tokens;
        loss[i] = d_w[i] * p->lp_w[i];
        d_l[i] = 0;
    }
}

static void loss_rpo(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    EACH_PAIR loss[i] = d_w[i] = d_l[i] = 0;
    EACH_PAIR for (int64_t j = 0; j < p->pairs; j++) {
        double scale = p->beta * p->rpo_weights[i * p->pairs + j], x = scale * (p->s_w[i] - p->s_l[j]);
        double c = scale * sigmoid(-x) / (double)p->pairs;
        loss[i] -= log_sigmoid(x) / (double)p->pairs;
        d_w[i] -= c;
        d_l[j] += c;
    }
}

/* A group's loss is shared equally by its pairs, so that the sum over pairs counts it once. */
static void loss_iopo(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    EACH_PAIR {
        double sum = 0, members = 0;
        for (int64_t j = 0; j < p->pairs; j++)
            if (p->groups[j] == p->groups[i]) sum += difference(p, j), members++;
        loss[i] = -log_sigmoid(p->beta * sum) / members;
        by_difference(d_w, d_l, i, -p->beta * sigmoid(-p->beta * sum));
    }
}

static bool tied(const jpo_preference *p, int64_t i) { return p->ties && p->ties[i]; }

/* Rao and Kupper: P(w > l) = sg(x - a), P(tie) = (nu^2 - 1) sg(-x - a) sg(x - a), a = log nu, nu > 1. */
static void loss_dpo_rk(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    double a = log(p->nu), log_range = log(p->nu * p->nu - 1);
    EACH_PAIR {
        double x = p->beta * difference(p, i);
        loss[i] = -log_sigmoid(x - a);
        double slope = -sigmoid(a - x);
        if (tied(p, i)) loss[i] -= log_range + log_sigmoid(-x - a), slope += sigmoid(x + a);
        by_difference(d_w, d_l, i, p->beta * slope);
    }
}

/* Davidson: P(w > l) = 1 / Z, P(tie) = 2 nu e^(-x/2) / Z, Z = 1 + e^-x + 2 nu e^(-x/2). With t = e^(-|x|/2), Z is
 * 1 + t^2 + 2 nu t, times e^-x for x < 0, so that nothing overflows. */
static void loss_dpo_davidson(const jpo_preference *p, double *loss, double *d_w, double *d_l) {
    double nu = p->nu;
    EACH_PAIR {
        double x = p->beta * difference(p, i), t = exp(-fabs(x) / 2), rest = t * t + 2 * nu * t;
        double slope;
        if (tied(p, i)) {
            loss[i] = fabs(x) / 2 + log1p(rest) - log(2 * nu);
            slope = copysign((1 - t * t) / (2 * (1 + rest)), x);
        } else {
            loss[i] = (x < 0 ? -x : 0) + log1p(rest);
            slope = -(x < 0 ? 1 + nu * t : t * t + nu * t) / (1 + rest);
        }
        by_difference(d_w, d_l, i, p->beta * slope);
    }
}

const jpo_loss_entry jpo_losses[] = {
#define JPO_LOSS_ROW(name, reads) {#name, loss_##name, reads},
    JPO_LOSS_LIST(JPO_LOSS_ROW)
#undef JPO_LOSS_ROW
};
const int jpo_loss_count = sizeof jpo_losses / sizeof *jpo_losses;

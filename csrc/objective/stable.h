/* Sigmoid and its relatives without overflow, in float64: right at the infinities, NaN stays NaN. */
#ifndef JPO_OBJECTIVE_STABLE_H
#define JPO_OBJECTIVE_STABLE_H

#include <math.h>

static inline double sigmoid(double x) { return x < 0 ? exp(x) / (1 + exp(x)) : 1 / (1 + exp(-x)); }
static inline double log_sigmoid(double x) { return x < 0 ? x - log1p(exp(x)) : -log1p(exp(-x)); }
static inline double sigmoid_slope(double x) { return sigmoid(x) * sigmoid(-x); } /* sg'(x) */

/* weight * value, where a zero weight silences an infinite value (but not NaN). */
static inline double weigh(double weight, double value) { return weight == 0 && isinf(value) ? 0 : weight * value; }

#endif

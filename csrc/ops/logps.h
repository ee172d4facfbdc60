/* Sequence log-likelihoods from given logits, one row at a time: one read of memory, exp from the cache. Every row is
 * one task's work in one order, so results do not depend on the number of threads. */
#ifndef JPO_OPS_LOGPS_H
#define JPO_OPS_LOGPS_H

#include <stdint.h>

#include "base/status.h"
#include "ops/linear.h"

typedef enum { JPO_LOGITS_F32, JPO_LOGITS_BF16, JPO_LOGITS_F16, JPO_LOGITS_F64 } jpo_logits_type;

/* N scored rows of (rows, V) logits: the row's index and its target, 0 <= target < V. */
typedef struct {
    int64_t count, vocab;
    const void *logits; /* (rows, V) */
    jpo_logits_type type;
    const int64_t *row;    /* (N) */
    const int64_t *target; /* (N) */
} jpo_logits_batch;

/* out (N) = z_target - logsumexp(z). -inf is probability 0; NaN or +inf in the row gives NaN. */
jpo_status jpo_logits_logps(double *out, const jpo_logits_batch *batch, jpo_scratch *scratch, jpo_error *err);
/* grad (rows, V) rows named by the batch = c (onehot - softmax(z)); float64 for JPO_LOGITS_F64, else float32. The same
 * memory as logits is allowed where the types agree. Other rows are left alone. */
jpo_status jpo_logits_grad(void *grad, const double *coefficients, /* (N) */ const jpo_logits_batch *batch,
                           jpo_scratch *scratch, jpo_error *err);

#endif

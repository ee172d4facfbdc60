/* One token of each row of logits: temperature, then top-k, then top-p (the order of transformers), then the inverse of
 * the cumulative sum. Every row is one task's work in one order: a result depends on its row, its uniform and the
 * options, never on the other rows or the number of threads. Probabilities are float32, their sums float64; time is
 * linear in V whatever the logits are. */
#ifndef JPO_OPS_SAMPLE_H
#define JPO_OPS_SAMPLE_H

#include <stdint.h>

#include "base/status.h"
#include "ops/linear.h"

typedef struct {
    double temperature; /* finite, >= 0; 0 chooses the first largest logit and reads no other option */
    int64_t top_k;      /* the k largest logits stay, and all that equal the k-th; 0, or V and more, cuts nothing */
    double top_p; /* in (0, 1]: of what top_k left the fewest largest (of equals the first) that sum to at least this
                   * share of it stay, one at the least; 1 cuts nothing */
} jpo_sampling;

/* tokens (N): the first index whose cumulative sum exceeds uniform * total, over what is kept and in the order of
 * indices; never one of probability 0, so that a logit of -inf is never drawn. logps (N): the token's log-likelihood
 * under the model, z_token - logsumexp(z): without temperature and cuts. A row whose maximum is NaN or infinite is
 * JPO_ERR_VALUE; its token is -1 then. */
jpo_status jpo_sample(int64_t *tokens, double *logps, const float *logits, /* (N, V) */
                      const double *uniforms,                              /* (N) in [0, 1) */
                      const jpo_sampling *options, int64_t n, int64_t vocab, jpo_scratch *scratch, jpo_error *err);

#endif

/* Rows of the embedding for tokens, and below it the gradient that sums over equal tokens (ops/embedding.h). */
#include "ops/embedding.h"

#include "base/size.h"
#include "base/threads.h"

enum { ROW_BLOCK = 16, COLUMN_BLOCK = 64 };

typedef struct {
    float *out;
    const float *dx;
    const int32_t *tokens;
    const jpo_weight *table;
    int64_t rows, hidden;
} embedding_job;

static void forward_task(void *context, int64_t task, int thread) {
    (void)thread;
    embedding_job *job = context;
    int64_t end = jpo_min64(job->rows, (task + 1) * ROW_BLOCK);
    for (int64_t row = task * ROW_BLOCK; row < end; row++)
        jpo_weight_rows(job->out + row * job->hidden, job->table, job->tokens[row], 1);
}

void jpo_embedding_forward(float *x, const int32_t *tokens, const jpo_weight *table, int64_t rows) {
    embedding_job job = {.out = x, .tokens = tokens, .table = table, .rows = rows, .hidden = table->k};
    jpo_parallel(jpo_ceil_div(rows, ROW_BLOCK), forward_task, &job);
}

static void backward_task(void *context, int64_t task, int thread) {
    (void)thread;
    embedding_job *job = context;
    int64_t first = task * COLUMN_BLOCK, end = jpo_min64(job->hidden, first + COLUMN_BLOCK);
    for (int64_t row = 0; row < job->rows; row++) {
        float *out = job->out + job->tokens[row] * job->hidden;
        for (int64_t j = first; j < end; j++) out[j] += job->dx[row * job->hidden + j];
    }
}

void jpo_embedding_backward(float *dtable, const float *dx, const int32_t *tokens, int64_t rows, int64_t hidden) {
    embedding_job job = {.out = dtable, .dx = dx, .tokens = tokens, .rows = rows, .hidden = hidden};
    jpo_parallel(jpo_ceil_div(hidden, COLUMN_BLOCK), backward_task, &job);
}

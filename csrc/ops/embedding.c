/* Rows of the embedding for tokens, and below it the gradient that sums over equal tokens (ops/embedding.h). */
#include "ops/embedding.h"

#include "base/size.h"
#include "base/threads.h"
#include "ops/packed.h"

enum { ROW_BLOCK = 16, COLUMN_BLOCK = 64, PLACE_PART = 256 };

typedef struct {
    float *out;
    const float *dx;
    const int32_t *row_of, *positions;
    const jpo_embedding *embedding;
    const jpo_lora *lora;
    float factor;
    int64_t rows, hidden;
} embedding_job;

/* A position's row is widened in parts of a whole number of blocks of every stored type. */
static void forward_row(float *out, const embedding_job *job, int64_t row) {
    const jpo_embedding *e = job->embedding;
    jpo_weight_rows(out, e->table, job->row_of[row], 1);
    if (e->factor != 1)
        for (int64_t j = 0; j < job->hidden; j++) out[j] *= e->factor;
    if (!e->place) return;
    for (int64_t first = 0; first < job->hidden; first += PLACE_PART) {
        float part[PLACE_PART];
        int64_t count = jpo_min64(PLACE_PART, job->hidden - first);
        jpo_packed_widen(part, e->place, job->positions[row], first, count);
        for (int64_t j = 0; j < count; j++) out[first + j] += part[j];
    }
}

static void forward_task(void *context, int64_t task, int thread) {
    (void)thread;
    embedding_job *job = context;
    int64_t end = jpo_min64(job->rows, (task + 1) * ROW_BLOCK);
    for (int64_t row = task * ROW_BLOCK; row < end; row++) forward_row(job->out + row * job->hidden, job, row);
}

void jpo_embedding_forward(float *x, const int32_t *tokens, const int32_t *positions, const jpo_embedding *embedding,
                           int64_t rows) {
    embedding_job job = {.out = x,
                         .row_of = tokens,
                         .positions = positions,
                         .embedding = embedding,
                         .rows = rows,
                         .hidden = embedding->table->k};
    jpo_parallel(jpo_ceil_div(rows, ROW_BLOCK), forward_task, &job);
}

static void backward_task(void *context, int64_t task, int thread) {
    (void)thread;
    embedding_job *job = context;
    int64_t first = task * COLUMN_BLOCK, end = jpo_min64(job->hidden, first + COLUMN_BLOCK);
    for (int64_t row = 0; row < job->rows; row++) {
        float *out = job->out + job->row_of[row] * job->hidden;
        for (int64_t j = first; j < end; j++) out[j] += job->factor * job->dx[row * job->hidden + j];
    }
}

void jpo_embedding_backward(float *dtable, const float *dx, const int32_t *row_of, float factor, int64_t rows,
                            int64_t hidden) {
    embedding_job job = {.out = dtable, .dx = dx, .row_of = row_of, .factor = factor, .rows = rows, .hidden = hidden};
    jpo_parallel(jpo_ceil_div(hidden, COLUMN_BLOCK), backward_task, &job);
}

/* ---- the low-rank path ---- */

static void lora_forward_task(void *context, int64_t task, int thread) {
    (void)thread;
    embedding_job *job = context;
    const jpo_lora *lora = job->lora;
    const int64_t vocab = job->embedding->table->n, end = jpo_min64(job->rows, (task + 1) * ROW_BLOCK);
    for (int64_t row = task * ROW_BLOCK; row < end; row++) {
        const float *a = lora->a + job->row_of[row];
        float *out = job->out + row * job->hidden;
        for (int64_t j = 0; j < job->hidden; j++) {
            const float *b = lora->b + j * lora->r;
            float sum = 0;
            for (int64_t d = 0; d < lora->r; d++) sum += a[d * vocab] * b[d];
            out[j] += job->factor * sum;
        }
    }
}

static embedding_job lora_job(const int32_t *tokens, const jpo_lora *lora, const jpo_embedding *embedding,
                              int64_t rows) {
    return (embedding_job){.row_of = tokens,
                           .embedding = embedding,
                           .lora = lora,
                           .factor = embedding->factor * lora->scale,
                           .rows = rows,
                           .hidden = embedding->table->k};
}

void jpo_embedding_lora_forward(float *x, const int32_t *tokens, const jpo_lora *lora, const jpo_embedding *embedding,
                                int64_t rows) {
    embedding_job job = lora_job(tokens, lora, embedding, rows);
    job.out = x;
    jpo_parallel(jpo_ceil_div(rows, ROW_BLOCK), lora_forward_task, &job);
}

/* Task d: da's row d += factor B^T dx at the tokens' columns; db's column d += factor dx a. */
static void lora_backward_task(void *context, int64_t task, int thread) {
    (void)thread;
    embedding_job *job = context;
    const jpo_lora *lora = job->lora;
    const int64_t vocab = job->embedding->table->n, r = lora->r;
    for (int64_t row = 0; row < job->rows; row++) {
        const float *dx = job->dx + row * job->hidden;
        const int64_t place = task * vocab + job->row_of[row];
        const float a = job->factor * lora->a[place];
        float sum = 0;
        for (int64_t j = 0; j < job->hidden; j++) {
            sum += dx[j] * lora->b[j * r + task];
            lora->db[j * r + task] += a * dx[j];
        }
        lora->da[place] += job->factor * sum;
    }
}

void jpo_embedding_lora_backward(const float *dx, const int32_t *tokens, const jpo_lora *lora,
                                 const jpo_embedding *embedding, int64_t rows) {
    embedding_job job = lora_job(tokens, lora, embedding, rows);
    job.dx = dx;
    jpo_parallel(lora->r, lora_backward_task, &job);
}

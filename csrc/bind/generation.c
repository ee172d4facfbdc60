/* One pass over cached keys and values: the prompts' first pass and every decoding step of jpo/generation.py. */
#include "bind/model.h"

#include "model/decode.h"

typedef struct {
    PyArrayObject *tokens, *positions, *kv_rows, *segments, *ranges, *rows;
} decode_arrays;

static void release(decode_arrays *a) {
    PyArrayObject *all[] = {a->tokens, a->positions, a->kv_rows, a->segments, a->ranges, a->rows};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) Py_XDECREF(all[i]);
}

/* Every index is checked here, so that the pass need not. */
static jpo_status check(const jpo_decode *d, const jpo_config *c, jpo_error *err) {
    for (int64_t i = 0; i < d->rows; i++)
        if (d->tokens[i] < 0 || d->tokens[i] >= c->vocab || d->positions[i] < 0 || d->positions[i] >= c->max_positions ||
            d->kv_row[i] < 0 || d->kv_row[i] >= d->capacity)
            return jpo_fail(err, JPO_ERR_VALUE, "row %lld: token %d, position %d or cache row %d is out of range (positions: %lld)",
                            (long long)i, d->tokens[i], d->positions[i], d->kv_row[i], (long long)c->max_positions);
    for (int64_t i = 0; i < d->range_count; i++)
        if (d->ranges[i].first_row < 0 || d->ranges[i].length < 0 || d->ranges[i].first_row > d->capacity - d->ranges[i].length)
            return jpo_fail(err, JPO_ERR_VALUE, "ranges[%lld] lies outside the cache", (long long)i);
    int64_t next = 0;
    for (int64_t s = 0; s < d->segment_count; s++) {
        const int32_t *segment = d->segments + 4 * s;
        if (segment[0] != next || segment[1] < 1 || segment[1] > d->rows - next || segment[2] < 0 || segment[3] < 1 ||
            segment[2] > d->range_count - segment[3])
            return jpo_fail(err, JPO_ERR_VALUE, "segments[%lld] is out of range", (long long)s);
        next += segment[1];
    }
    for (int64_t i = 0; i < d->out_rows; i++)
        if (d->out_row[i] < 0 || d->out_row[i] >= d->rows) return jpo_fail(err, JPO_ERR_VALUE, "rows[%lld] is out of range", (long long)i);
    return next == d->rows ? JPO_OK : jpo_fail(err, JPO_ERR_VALUE, "segments must cover all rows");
}

PyObject *model_decode(model_object *self, PyObject *args) {
    PyObject *k, *v, *tokens, *positions, *kv_rows, *segments, *ranges, *rows;
    int adapter;
    if (!PyArg_ParseTuple(args, "O!O!OOOOOOp:decode", &PyArray_Type, &k, &PyArray_Type, &v, &tokens, &positions, &kv_rows, &segments,
                          &ranges, &rows, &adapter))
        return NULL;
    const jpo_config *c = &self->model.config;
    PyArrayObject *ka = (PyArrayObject *)k, *va = (PyArrayObject *)v;
    if (PyArray_TYPE(ka) != NPY_FLOAT32 || PyArray_NDIM(ka) != 3 || !PyArray_ISCARRAY(ka) || !PyArray_ISCARRAY(va) ||
        PyArray_TYPE(va) != NPY_FLOAT32 || !PyArray_SAMESHAPE(ka, va) || PyArray_DIM(ka, 0) != c->layers ||
        PyArray_DIM(ka, 2) != c->kv_heads * c->head_dim)
        return PyErr_Format(PyExc_ValueError, "k and v must be writable float32 arrays (layers, capacity, kv_heads * head_dim)");
    decode_arrays a = {0};
    PyObject *out = NULL;
    if (!(a.tokens = model_int32(tokens, "tokens", 1)) || !(a.positions = model_int32(positions, "positions", 1)) ||
        !(a.kv_rows = model_int32(kv_rows, "kv_rows", 1)) || !(a.segments = model_int32(segments, "segments", 2)) ||
        !(a.ranges = model_int32(ranges, "ranges", 2)) || !(a.rows = model_int32(rows, "rows", 1)))
        goto done;
    npy_intp n = PyArray_SIZE(a.tokens), shape[2] = {PyArray_SIZE(a.rows), c->vocab};
    if (PyArray_SIZE(a.positions) != n || PyArray_SIZE(a.kv_rows) != n || PyArray_DIM(a.segments, 1) != 4 || PyArray_DIM(a.ranges, 1) != 2) {
        PyErr_SetString(PyExc_ValueError, "positions and kv_rows must be as long as tokens; segments (S, 4), ranges (n, 2)");
        goto done;
    }
    if (!(out = PyArray_SimpleNew(2, shape, NPY_FLOAT32)) || !model_enter(self)) {
        Py_CLEAR(out);
        goto done;
    }
    jpo_decode decode = {.rows = n, .segment_count = PyArray_DIM(a.segments, 0), .range_count = PyArray_DIM(a.ranges, 0),
                         .out_rows = shape[0], .capacity = PyArray_DIM(ka, 1), .tokens = PyArray_DATA(a.tokens),
                         .positions = PyArray_DATA(a.positions), .kv_row = PyArray_DATA(a.kv_rows),
                         .segments = PyArray_DATA(a.segments), .ranges = PyArray_DATA(a.ranges), .out_row = PyArray_DATA(a.rows),
                         .k = PyArray_DATA(ka), .v = PyArray_DATA(va), .adapter = adapter};
    jpo_error err;
    jpo_status status;
    Py_BEGIN_ALLOW_THREADS
    status = check(&decode, c, &err);
    if (status == JPO_OK) status = jpo_model_decode(&self->model, PyArray_DATA((PyArrayObject *)out), &decode, &err);
    Py_END_ALLOW_THREADS
    self->busy = false;
    if (status != JPO_OK) {
        jpo_raise(&err);
        Py_CLEAR(out);
    }
done:
    release(&a);
    return out;
}

/* What jpo/generation.py needs of the engine: one pass over cached keys and values (the prompts' first pass and every
 * decoding step), and the draw of a token from each row of logits. */
#include <math.h>

#include "bind/model.h"

#include "model/decode.h"
#include "ops/sample.h"

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
        if (d->tokens[i] < 0 || d->tokens[i] >= c->vocab || d->positions[i] < 0 ||
            d->positions[i] >= c->max_positions || d->kv_row[i] < 0 || d->kv_row[i] >= d->capacity)
            return jpo_fail(err, JPO_ERR_VALUE,
                            "row %lld: token %d, position %d or cache row %d is out of range (positions: %lld)",
                            (long long)i, d->tokens[i], d->positions[i], d->kv_row[i], (long long)c->max_positions);
    for (int64_t i = 0; i < d->range_count; i++)
        if (d->ranges[i].first_row < 0 || d->ranges[i].length < 0 ||
            d->ranges[i].first_row > d->capacity - d->ranges[i].length)
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
        if (d->out_row[i] < 0 || d->out_row[i] >= d->rows)
            return jpo_fail(err, JPO_ERR_VALUE, "rows[%lld] is out of range", (long long)i);
    return next == d->rows ? JPO_OK : jpo_fail(err, JPO_ERR_VALUE, "segments must cover all rows");
}

PyObject *model_decode(model_object *self, PyObject *args) {
    PyObject *k, *v, *tokens, *positions, *kv_rows, *segments, *ranges, *rows;
    int adapter;
    if (!PyArg_ParseTuple(args, "O!O!OOOOOOp:decode", &PyArray_Type, &k, &PyArray_Type, &v, &tokens, &positions,
                          &kv_rows, &segments, &ranges, &rows, &adapter))
        return NULL;
    const jpo_config *c = &self->model.config;
    PyArrayObject *ka = (PyArrayObject *)k, *va = (PyArrayObject *)v;
    if (PyArray_TYPE(ka) != NPY_FLOAT32 || PyArray_NDIM(ka) != 3 || !PyArray_ISCARRAY(ka) || !PyArray_ISCARRAY(va) ||
        PyArray_TYPE(va) != NPY_FLOAT32 || !PyArray_SAMESHAPE(ka, va) || PyArray_DIM(ka, 0) != c->layers ||
        PyArray_DIM(ka, 2) != c->kv_heads * c->head_dim)
        return PyErr_Format(PyExc_ValueError,
                            "k and v must be writable float32 arrays (layers, capacity, kv_heads * head_dim)");
    decode_arrays a = {0};
    PyObject *out = NULL;
    if (!(a.tokens = model_int32(tokens, "tokens", 1)) || !(a.positions = model_int32(positions, "positions", 1)) ||
        !(a.kv_rows = model_int32(kv_rows, "kv_rows", 1)) || !(a.segments = model_int32(segments, "segments", 2)) ||
        !(a.ranges = model_int32(ranges, "ranges", 2)) || !(a.rows = model_int32(rows, "rows", 1)))
        goto done;
    npy_intp n = PyArray_SIZE(a.tokens), shape[2] = {PyArray_SIZE(a.rows), c->vocab};
    if (PyArray_SIZE(a.positions) != n || PyArray_SIZE(a.kv_rows) != n || PyArray_DIM(a.segments, 1) != 4 ||
        PyArray_DIM(a.ranges, 1) != 2) {
        PyErr_SetString(PyExc_ValueError,
                        "positions and kv_rows must be as long as tokens; segments (S, 4), ranges (n, 2)");
        goto done;
    }
    if (!(out = PyArray_SimpleNew(2, shape, NPY_FLOAT32)) || !model_enter(self)) {
        Py_CLEAR(out);
        goto done;
    }
    jpo_decode decode = {.rows = n,
                         .segment_count = PyArray_DIM(a.segments, 0),
                         .range_count = PyArray_DIM(a.ranges, 0),
                         .out_rows = shape[0],
                         .capacity = PyArray_DIM(ka, 1),
                         .tokens = PyArray_DATA(a.tokens),
                         .positions = PyArray_DATA(a.positions),
                         .kv_row = PyArray_DATA(a.kv_rows),
                         .segments = PyArray_DATA(a.segments),
                         .ranges = PyArray_DATA(a.ranges),
                         .out_row = PyArray_DATA(a.rows),
                         .k = PyArray_DATA(ka),
                         .v = PyArray_DATA(va),
                         .adapter = adapter};
    jpo_error err;
    jpo_status status;
    Py_BEGIN_ALLOW_THREADS status = check(&decode, c, &err);
    if (status == JPO_OK) status = jpo_model_decode(&self->model, PyArray_DATA((PyArrayObject *)out), &decode, &err);
    Py_END_ALLOW_THREADS self->busy = false;
    if (status != JPO_OK) {
        jpo_raise(&err);
        Py_CLEAR(out);
    }
done:
    release(&a);
    return out;
}

/* ---- the draw ---- */

/* Kept from draw to draw, so that a step does not fault its pages in again; lent under the GIL to one draw at a time.
 */
static jpo_scratch kept_scratch;
static bool scratch_lent;

/* A contiguous array of the given type and rank; false with an error that names it. */
static bool is_array(PyObject *object, int type, int dimensions, const char *expected) {
    PyArrayObject *array = (PyArrayObject *)object;
    if (PyArray_Check(object) && PyArray_TYPE(array) == type && PyArray_NDIM(array) == dimensions &&
        PyArray_ISCARRAY_RO(array))
        return true;
    return PyErr_SetString(PyExc_ValueError, expected), false;
}

static bool check_draw(PyObject *logits, PyObject *uniforms, const jpo_sampling *o) {
    if (!is_array(logits, NPY_FLOAT32, 2, "logits must be a contiguous float32 array (n, V)") ||
        !is_array(uniforms, NPY_FLOAT64, 1, "uniforms must be a contiguous float64 array (n,)"))
        return false;
    npy_intp n = PyArray_DIM((PyArrayObject *)logits, 0), vocab = PyArray_DIM((PyArrayObject *)logits, 1);
    if (vocab < 1 || PyArray_SIZE((PyArrayObject *)uniforms) != n)
        return PyErr_Format(PyExc_ValueError,
                            "%zd uniforms do not fit logits (%zd, %zd): one a row of at least one logit",
                            (Py_ssize_t)PyArray_SIZE((PyArrayObject *)uniforms), (Py_ssize_t)n, (Py_ssize_t)vocab),
               false;
    const double *u = PyArray_DATA((PyArrayObject *)uniforms);
    for (npy_intp i = 0; i < n; i++)
        if (!(u[i] >= 0 && u[i] < 1))
            return PyErr_Format(PyExc_ValueError, "uniforms[%zd] lies outside [0, 1)", (Py_ssize_t)i), false;
    if (!(isfinite(o->temperature) && o->temperature >= 0))
        return PyErr_SetString(PyExc_ValueError, "temperature must be finite and at least 0"), false;
    if (o->top_k < 0)
        return PyErr_Format(PyExc_ValueError, "top_k must be at least 0, got %lld", (long long)o->top_k), false;
    if (!(o->top_p > 0 && o->top_p <= 1))
        return PyErr_SetString(PyExc_ValueError, "top_p must lie above 0 and not above 1"), false;
    return true;
}

static PyObject *draw(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *logits, *uniforms;
    long long top_k;
    jpo_sampling options;
    if (!PyArg_ParseTuple(args, "OOdLd:draw", &logits, &uniforms, &options.temperature, &top_k, &options.top_p))
        return NULL;
    options.top_k = top_k;
    if (!check_draw(logits, uniforms, &options)) return NULL;
    npy_intp n = PyArray_DIM((PyArrayObject *)logits, 0), vocab = PyArray_DIM((PyArrayObject *)logits, 1);
    PyObject *result =
        Py_BuildValue("(NN)", PyArray_SimpleNew(1, &n, NPY_INT64), PyArray_SimpleNew(1, &n, NPY_FLOAT64));
    if (!result) return NULL;
    int64_t *tokens = PyArray_DATA((PyArrayObject *)PyTuple_GET_ITEM(result, 0));
    double *logps = PyArray_DATA((PyArrayObject *)PyTuple_GET_ITEM(result, 1));
    bool own = scratch_lent; /* another thread draws: this call takes scratch of its own */
    jpo_scratch other = {0}, *scratch = own ? &other : &kept_scratch;
    scratch_lent = true;
    jpo_error err;
    jpo_status status;
    Py_BEGIN_ALLOW_THREADS status =
        jpo_sample(tokens, logps, PyArray_DATA((PyArrayObject *)logits), PyArray_DATA((PyArrayObject *)uniforms),
                   &options, n, vocab, scratch, &err);
    if (own) jpo_scratch_free(&other);
    Py_END_ALLOW_THREADS if (!own) scratch_lent = false;
    if (status == JPO_OK) return result;
    Py_DECREF(result);
    return jpo_raise(&err);
}

static PyMethodDef methods[] = {
    {"draw", draw, METH_VARARGS, "Private: jpo.generation. One token and its log-likelihood for each row of logits."},
    {NULL, NULL, 0, NULL}};

int jpo_bind_generation(PyObject *module) { return PyModule_AddFunctions(module, methods); }

/* What jpo/generation.py needs of the engine: one pass over cached keys and values (the prompts' first pass and every
 * decoding step), and the draw of a token from each row of logits. */
#include <math.h>

#include "bind/arguments.h"
#include "bind/model.h"

#include "kernels/gemm.h"
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
    if (d->rows < 1 || d->rows > INT32_MAX / 2 || d->out_rows > d->rows)
        return jpo_fail(err, JPO_ERR_VALUE, "decode needs 1..2^30 tokens, and at most as many rows; got %lld and %lld",
                        (long long)d->rows, (long long)d->out_rows);
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
        int64_t keys = 0;
        for (int32_t i = segment[2]; i < segment[2] + segment[3]; i++) keys += d->ranges[i].length;
        if (keys < (int64_t)d->positions[next] + segment[1])
            return jpo_fail(err, JPO_ERR_VALUE, "segments[%lld]: its ranges hold %lld keys, it reaches position %lld",
                            (long long)s, (long long)keys, (long long)d->positions[next] + segment[1] - 1);
        next += segment[1];
    }
    for (int64_t i = 0; i < d->out_rows; i++)
        if (d->out_row[i] < 0 || d->out_row[i] >= d->rows)
            return jpo_fail(err, JPO_ERR_VALUE, "rows[%lld] is out of range", (long long)i);
    return next == d->rows ? JPO_OK : jpo_fail(err, JPO_ERR_VALUE, "segments must cover all rows");
}

typedef struct {
    PyObject *k, *v, *tokens, *positions, *kv_rows, *segments, *ranges, *rows;
    int adapter;
    long long reach;
    const char *dtype;
} decode_arguments;

/* Float32 values, or the bytes of another type's rows. */
static bool read_cache(jpo_decode *d, const decode_arguments *from, const jpo_config *c) {
    const int dtype = jpo_dtype_from_name(from->dtype);
    if (dtype < 0 || !jpo_cache_serves((jpo_dtype)dtype, c))
        return PyErr_Format(PyExc_ValueError, "keys and values of heads of %lld are not stored as %s",
                            (long long)c->head_dim, from->dtype),
               false;
    const int type = dtype == JPO_F32 ? NPY_FLOAT32 : NPY_UINT8;
    const int64_t values = c->kv_heads * c->head_dim;
    const int64_t width = dtype == JPO_F32 ? values : (int64_t)jpo_dtype_row_bytes((jpo_dtype)dtype, values);
    if (!arg_array(from->k, "k", type, 3, true) || !arg_array(from->v, "v", type, 3, true)) return false;
    PyArrayObject *k = (PyArrayObject *)from->k, *v = (PyArrayObject *)from->v;
    if (!PyArray_CompareLists(PyArray_DIMS(k), PyArray_DIMS(v), 3) || PyArray_DIM(k, 0) != c->layers ||
        PyArray_DIM(k, 2) != width)
        return PyErr_Format(PyExc_ValueError, "k and v must be (layers, capacity, %lld) of %s", (long long)width,
                            dtype == JPO_F32 ? "float32" : "uint8"),
               false;
    d->dtype = (jpo_dtype)dtype;
    d->capacity = PyArray_DIM(k, 1), d->k = PyArray_DATA(k), d->v = PyArray_DATA(v);
    return true;
}

static bool read_decode(jpo_decode *d, decode_arrays *a, const decode_arguments *from, const jpo_config *c) {
    if (!read_cache(d, from, c) || !(a->tokens = arg_copy(from->tokens, "tokens", NPY_INT32, 1)) ||
        !(a->positions = arg_copy(from->positions, "positions", NPY_INT32, 1)) ||
        !(a->kv_rows = arg_copy(from->kv_rows, "kv_rows", NPY_INT32, 1)) ||
        !(a->segments = arg_copy(from->segments, "segments", NPY_INT32, 2)) ||
        !(a->ranges = arg_copy(from->ranges, "ranges", NPY_INT32, 2)) ||
        !(a->rows = arg_copy(from->rows, "rows", NPY_INT32, 1)))
        return false;
    d->rows = PyArray_SIZE(a->tokens);
    if (PyArray_SIZE(a->positions) != d->rows || PyArray_SIZE(a->kv_rows) != d->rows ||
        PyArray_DIM(a->segments, 1) != 4 || PyArray_DIM(a->ranges, 1) != 2)
        return PyErr_SetString(PyExc_ValueError,
                               "positions and kv_rows must be as long as tokens; segments (S, 4), ranges (n, 2)"),
               false;
    d->segment_count = PyArray_DIM(a->segments, 0), d->range_count = PyArray_DIM(a->ranges, 0);
    d->out_rows = PyArray_SIZE(a->rows), d->adapter = from->adapter, d->reach = from->reach;
    d->tokens = PyArray_DATA(a->tokens), d->positions = PyArray_DATA(a->positions);
    d->kv_row = PyArray_DATA(a->kv_rows), d->segments = PyArray_DATA(a->segments);
    d->ranges = PyArray_DATA(a->ranges), d->out_row = PyArray_DATA(a->rows);
    jpo_error err;
    if (check(d, c, &err) == JPO_OK) return true;
    jpo_raise(&err);
    return false;
}

PyObject *model_decode(model_object *self, PyObject *args) {
    decode_arguments from = {.dtype = "F32"};
    if (!PyArg_ParseTuple(args, "OOOOOOOOp|Ls:decode", &from.k, &from.v, &from.tokens, &from.positions, &from.kv_rows,
                          &from.segments, &from.ranges, &from.rows, &from.adapter, &from.reach, &from.dtype) ||
        !model_enter(self))
        return NULL;
    decode_arrays a = {0};
    jpo_decode decode = {0};
    PyObject *out = NULL;
    if (read_decode(&decode, &a, &from, &self->model.config)) {
        npy_intp shape[2] = {decode.out_rows, self->model.config.vocab};
        out = PyArray_SimpleNew(2, shape, NPY_FLOAT32);
    }
    if (out) {
        jpo_error err;
        jpo_status status;
        JPO_COMPUTE_BEGIN_POLLED
        status = jpo_pass_decode(&self->pass, PyArray_DATA((PyArrayObject *)out), &decode, &err);
        JPO_COMPUTE_END_POLLED(status, &err)
        if (status != JPO_OK) {
            jpo_raise(&err);
            Py_CLEAR(out);
        }
    }
    model_leave(self);
    release(&a);
    return out;
}

/* ---- the draw ---- */

/* Kept from draw to draw, so that a step does not fault its pages in again; lent under the GIL to one draw at a time.
 */
static jpo_scratch kept_scratch;
static bool scratch_lent;

static bool check_draw(PyObject *logits, PyObject *uniforms, const jpo_sampling *o) {
    if (!arg_array(logits, "logits", NPY_FLOAT32, 2, false) || !arg_array(uniforms, "uniforms", NPY_FLOAT64, 1, false))
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
    bool own = scratch_lent; /* another thread draws: this call allocates scratch of its own */
    jpo_scratch other = {0}, *scratch = own ? &other : &kept_scratch;
    scratch_lent = true;
    jpo_error err;
    jpo_status status;
    JPO_COMPUTE_BEGIN_POLLED
    status = jpo_sample(tokens, logps, PyArray_DATA((PyArrayObject *)logits), PyArray_DATA((PyArrayObject *)uniforms),
                        &options, n, vocab, scratch, &err);
    if (own) jpo_scratch_free(&other);
    JPO_COMPUTE_END_POLLED(status, &err)
    if (!own) scratch_lent = false;
    if (status == JPO_OK) return result;
    Py_DECREF(result);
    return jpo_raise(&err);
}

static PyObject *small_batch_rows(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return PyLong_FromLongLong(jpo_gemv_find()->rows);
}

static PyMethodDef methods[] = {
    {"small_batch_rows", small_batch_rows, METH_NOARGS,
     "Private: jpo.cache. The most rows of a float32 product that are summed as one row is; larger ones are alike."},
    {"draw", draw, METH_VARARGS, "Private: jpo.generation. One token and its log-likelihood for each row of logits."},
    {NULL, NULL, 0, NULL}};

int jpo_bind_generation(PyObject *module) { return PyModule_AddFunctions(module, methods); }

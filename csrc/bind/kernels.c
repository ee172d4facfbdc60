/* Log-likelihood kernels over NumPy buffers. jpo/logps.py checks what users pass and names it; here every size and type
 * is checked once more, so that no call can read or write outside its arrays. */
#include "bind/arguments.h"

#include "base/cpu.h"
#include "base/size.h"
#include "ops/head.h"
#include "ops/logps.h"

/* A call over given logits: its arguments, checked; rows and targets are copies. */
typedef struct {
    jpo_logits_batch batch;
    PyArrayObject *rows, *targets;
    jpo_scratch scratch;
} logits_call;

static void logits_end(logits_call *call) {
    Py_XDECREF(call->rows);
    Py_XDECREF(call->targets);
    jpo_scratch_free(&call->scratch);
}

/* rows and targets (N) int64, in range. */
static bool read_rows(logits_call *call, PyObject *rows, PyObject *targets, int64_t limit) {
    jpo_logits_batch *b = &call->batch;
    if (!(call->rows = arg_copy(rows, "rows", NPY_INT64, 1)) ||
        !(call->targets = arg_copy(targets, "targets", NPY_INT64, 1)))
        return false;
    b->count = PyArray_SIZE(call->rows), b->row = PyArray_DATA(call->rows), b->target = PyArray_DATA(call->targets);
    if (PyArray_SIZE(call->targets) != b->count)
        return PyErr_SetString(PyExc_ValueError, "rows and targets differ in length"), false;
    for (int64_t i = 0; i < b->count; i++)
        if (b->row[i] < 0 || b->row[i] >= limit || b->target[i] < 0 || b->target[i] >= b->vocab)
            return PyErr_Format(PyExc_ValueError, "row %lld or target %lld is out of range", (long long)b->row[i],
                                (long long)b->target[i]),
                   false;
    return true;
}

static bool logits_begin(logits_call *call, PyObject *logits, int type, PyObject *rows, PyObject *targets) {
    const int types[] = {NPY_FLOAT32, NPY_UINT16, NPY_UINT16, NPY_FLOAT64};
    *call = (logits_call){0};
    if (!arg_range("type", type, 0, 3) || !arg_array(logits, "logits", types[type], 2, false)) return false;
    PyArrayObject *array = (PyArrayObject *)logits;
    call->batch = (jpo_logits_batch){
        .vocab = PyArray_DIM(array, 1), .logits = PyArray_DATA(array), .type = (jpo_logits_type)type};
    if (read_rows(call, rows, targets, PyArray_DIM(array, 0))) return true;
    logits_end(call);
    return false;
}

static PyObject *logits_logps(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *logits, *rows, *targets;
    int type;
    logits_call call;
    if (!PyArg_ParseTuple(args, "OiOO", &logits, &type, &rows, &targets) ||
        !logits_begin(&call, logits, type, rows, targets))
        return NULL;
    npy_intp n = call.batch.count;
    PyObject *out = PyArray_SimpleNew(1, &n, NPY_FLOAT64);
    jpo_error err;
    jpo_status status = JPO_OK;
    if (out) {
        JPO_COMPUTE_BEGIN_POLLED
        status = jpo_logits_logps(PyArray_DATA((PyArrayObject *)out), &call.batch, &call.scratch, &err);
        JPO_COMPUTE_END_POLLED(status, &err)
    }
    logits_end(&call);
    if (status == JPO_OK) return out;
    Py_DECREF(out);
    return jpo_raise(&err);
}

static PyObject *logits_grad(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *grad, *logits, *coefficients, *rows, *targets;
    int type;
    logits_call call;
    if (!PyArg_ParseTuple(args, "OOiOOO", &grad, &logits, &type, &rows, &targets, &coefficients) ||
        !arg_array(coefficients, "coefficients", NPY_FLOAT64, 1, false) ||
        !arg_array(grad, "out", type == JPO_LOGITS_F64 ? NPY_FLOAT64 : NPY_FLOAT32, 2, true) ||
        !logits_begin(&call, logits, type, rows, targets))
        return NULL;
    jpo_error err;
    jpo_status status;
    if (!PyArray_CompareLists(PyArray_DIMS((PyArrayObject *)grad), PyArray_DIMS((PyArrayObject *)logits), 2) ||
        PyArray_SIZE((PyArrayObject *)coefficients) != call.batch.count) {
        status = jpo_fail(&err, JPO_ERR_VALUE, "out must have the shape of logits, coefficients the length of rows");
    } else {
        JPO_COMPUTE_BEGIN_POLLED
        status = jpo_logits_grad(PyArray_DATA((PyArrayObject *)grad), PyArray_DATA((PyArrayObject *)coefficients),
                                 &call.batch, &call.scratch, &err);
        JPO_COMPUTE_END_POLLED(status, &err)
    }
    logits_end(&call);
    if (status != JPO_OK) return jpo_raise(&err);
    Py_RETURN_NONE;
}

/* The head over gathered rows: its inputs, checked; targets and index are copies. */
typedef struct {
    jpo_head_batch batch;
    jpo_weight weight;
    PyArrayObject *targets, *index;
    jpo_head_row *state;
    jpo_scratch scratch;
} head_call;

static void head_end(head_call *call) {
    Py_XDECREF(call->targets);
    Py_XDECREF(call->index);
    PyMem_Free(call->state);
    jpo_scratch_free(&call->scratch);
}

static bool head_read(head_call *call, PyObject *hidden, PyObject *weight, int dtype, PyObject *targets,
                      PyObject *index) {
    const int types[] = {NPY_FLOAT32, NPY_UINT16, NPY_UINT16};
    const jpo_dtype stored[] = {JPO_F32, JPO_BF16, JPO_F16};
    if (!arg_range("type", dtype, 0, 2) || !arg_array(hidden, "hidden", NPY_FLOAT32, 2, false) ||
        !arg_array(weight, "weight", types[dtype], 2, false) ||
        !(call->targets = arg_copy(targets, "targets", NPY_INT32, 1)) ||
        !(call->index = arg_copy(index, "index", NPY_INT32, 1)))
        return false;
    PyArrayObject *h = (PyArrayObject *)hidden, *w = (PyArrayObject *)weight;
    int64_t n = PyArray_DIM(h, 0), vocab = PyArray_DIM(w, 0), width = PyArray_DIM(w, 1);
    if (PyArray_DIM(h, 1) != width || PyArray_SIZE(call->targets) != n || PyArray_SIZE(call->index) != n)
        return PyErr_SetString(PyExc_ValueError, "hidden, weight and targets do not fit together"), false;
    if (!arg_range("rows of hidden", n, 1, INT32_MAX) || !arg_range("rows of weight", vocab, 1, INT32_MAX) ||
        !arg_range("columns of weight", width, 1, INT32_MAX))
        return false;
    const int32_t *target = PyArray_DATA(call->targets), *row = PyArray_DATA(call->index);
    for (int64_t i = 0; i < n; i++)
        if (target[i] < 0 || target[i] >= vocab || row[i] != i)
            return PyErr_SetString(PyExc_ValueError, "a target is out of range"), false;
    call->batch = (jpo_head_batch){.rows = n, .entries = n, .h = PyArray_DATA(h), .row = row, .target = target};
    call->weight = (jpo_weight){.n = vocab, .k = width, .data = PyArray_DATA(w), .dtype = stored[dtype]};
    call->state = PyMem_Calloc((size_t)n, sizeof *call->state);
    if (!call->state) PyErr_NoMemory();
    return call->state != NULL;
}

static bool head_begin(head_call *call, PyObject *hidden, PyObject *weight, int dtype, PyObject *targets,
                       PyObject *index) {
    *call = (head_call){0};
    if (head_read(call, hidden, weight, dtype, targets, index)) return true;
    head_end(call);
    return false;
}

static PyObject *head_logps(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *hidden, *weight, *targets, *index;
    int dtype;
    head_call call;
    if (!PyArg_ParseTuple(args, "OOiOO", &hidden, &weight, &dtype, &targets, &index)) return NULL;
    if (!head_begin(&call, hidden, weight, dtype, targets, index)) return NULL;
    npy_intp n = call.batch.rows;
    PyObject *out = PyArray_SimpleNew(1, &n, NPY_FLOAT64);
    jpo_error err;
    jpo_status status = JPO_OK;
    if (out) {
        JPO_COMPUTE_BEGIN_POLLED
        status = jpo_head_forward(PyArray_DATA((PyArrayObject *)out), call.state, NULL, &call.batch, &call.weight,
                                  false, &call.scratch, &err);
        JPO_COMPUTE_END_POLLED(status, &err)
    }
    head_end(&call);
    if (status == JPO_OK) return out;
    Py_DECREF(out);
    return jpo_raise(&err);
}

/* (d_hidden (N, H), d_weight (V, H)) */
static PyObject *head_grad(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *hidden, *weight, *targets, *index, *coefficients;
    int dtype;
    head_call call;
    if (!PyArg_ParseTuple(args, "OOiOOO", &hidden, &weight, &dtype, &targets, &index, &coefficients)) return NULL;
    if (!arg_array(coefficients, "coefficients", NPY_FLOAT64, 1, false) ||
        !head_begin(&call, hidden, weight, dtype, targets, index))
        return NULL;
    npy_intp n = call.batch.rows, shape_h[2] = {n, call.weight.k}, shape_w[2] = {call.weight.n, call.weight.k};
    PyObject *dh = PyArray_ZEROS(2, shape_h, NPY_FLOAT32, 0), *dw = PyArray_ZEROS(2, shape_w, NPY_FLOAT32, 0);
    double *logps = PyMem_Calloc((size_t)n + 1, sizeof *logps);
    jpo_block tile = {0};
    jpo_weight_scratch weights = {0};
    jpo_error err = {.code = JPO_ERR_MEMORY, .text = "out of memory"};
    jpo_status status = JPO_ERR_MEMORY;
    const size_t bytes = jpo_size_product((size_t)n + 1, JPO_HEAD_TILE * sizeof(float)); /* a row more than it holds */
    if (PyArray_SIZE((PyArrayObject *)coefficients) != n)
        status = jpo_fail(&err, JPO_ERR_VALUE, "coefficients have another length");
    else if (dh && dw && logps && jpo_block_reserve(&tile, bytes, &err) == JPO_OK) {
        const jpo_head_gradient gradient = {.dw = PyArray_DATA((PyArrayObject *)dw)};
        JPO_COMPUTE_BEGIN_POLLED
        status = jpo_head_forward(logps, call.state, NULL, &call.batch, &call.weight, false, &call.scratch, &err);
        if (status == JPO_OK)
            status = jpo_head_backward_full(PyArray_DATA((PyArrayObject *)dh), &gradient, tile.data,
                                            PyArray_DATA((PyArrayObject *)coefficients), call.state, &call.batch,
                                            &call.weight, &call.scratch, &weights, &err);
        JPO_COMPUTE_END_POLLED(status, &err)
    }
    jpo_weight_scratch_free(&weights);
    jpo_block_free(&tile);
    PyMem_Free(logps);
    head_end(&call);
    if (status == JPO_OK) return Py_BuildValue("(NN)", dh, dw);
    Py_XDECREF(dh);
    Py_XDECREF(dw);
    return jpo_raise(&err);
}

static PyObject *set_isa(PyObject *self, PyObject *name) {
    (void)self;
    return arg_choose_isa(name);
}

static PyMethodDef methods[] = {
    {"logits_logps", logits_logps, METH_VARARGS, "Private: jpo.sequence_logps."},
    {"logits_grad", logits_grad, METH_VARARGS, "Private: jpo.sequence_logps_grad."},
    {"head_logps", head_logps, METH_VARARGS, "Private: jpo.linear_logps."},
    {"head_grad", head_grad, METH_VARARGS, "Private: jpo.linear_logps_grad."},
    {"set_isa", set_isa, METH_O,
     "Private, for the tests: choose an instruction set; False where the machine lacks it."},
    {NULL, NULL, 0, NULL}};

int jpo_bind_kernels(PyObject *module) { return PyModule_AddFunctions(module, methods); }

/* Log-likelihood kernels over NumPy buffers. jpo/logps.py checks what users pass and names it; here every size and type
 * is checked once more, so that no call can read or write outside its arrays. */
#include "bind/bind.h"
#include "bind/numpy.h"

#include "base/cpu.h"
#include "base/size.h"
#include "ops/head.h"
#include "ops/logps.h"

static bool is_array(PyObject *object, const char *name, int type, int dimensions, bool writable) {
    PyArrayObject *array = (PyArrayObject *)object;
    if (PyArray_Check(object) && PyArray_TYPE(array) == type && PyArray_NDIM(array) == dimensions &&
        PyArray_ISCARRAY_RO(array) && (!writable || PyArray_ISWRITEABLE(array)))
        return true;
    return PyErr_Format(PyExc_TypeError, "%s: not the expected array", name), false;
}

/* rows and targets (N) int64, in range. */
static bool read_rows(PyObject *rows, PyObject *targets, int64_t limit, int64_t vocab, int64_t *count) {
    if (!is_array(rows, "rows", NPY_INT64, 1, false) || !is_array(targets, "targets", NPY_INT64, 1, false))
        return false;
    *count = PyArray_SIZE((PyArrayObject *)rows);
    if (PyArray_SIZE((PyArrayObject *)targets) != *count)
        return PyErr_SetString(PyExc_ValueError, "rows and targets differ in length"), false;
    const int64_t *row = PyArray_DATA((PyArrayObject *)rows), *target = PyArray_DATA((PyArrayObject *)targets);
    for (int64_t i = 0; i < *count; i++)
        if (row[i] < 0 || row[i] >= limit || target[i] < 0 || target[i] >= vocab)
            return PyErr_Format(PyExc_ValueError, "row %lld or target %lld is out of range", (long long)row[i],
                                (long long)target[i]),
                   false;
    return true;
}

static bool read_logits(jpo_logits_batch *b, PyObject *logits, int type, PyObject *rows, PyObject *targets) {
    const int types[] = {NPY_FLOAT32, NPY_UINT16, NPY_UINT16, NPY_FLOAT64};
    if (type < 0 || type > 3) return PyErr_SetString(PyExc_ValueError, "type is out of range"), false;
    if (!is_array(logits, "logits", types[type], 2, false)) return false;
    PyArrayObject *array = (PyArrayObject *)logits;
    *b = (jpo_logits_batch){
        .vocab = PyArray_DIM(array, 1), .logits = PyArray_DATA(array), .type = (jpo_logits_type)type};
    if (!read_rows(rows, targets, PyArray_DIM(array, 0), b->vocab, &b->count)) return false;
    b->row = PyArray_DATA((PyArrayObject *)rows), b->target = PyArray_DATA((PyArrayObject *)targets);
    return true;
}

static PyObject *logits_logps(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *logits, *rows, *targets;
    int type;
    jpo_logits_batch batch;
    if (!PyArg_ParseTuple(args, "OiOO", &logits, &type, &rows, &targets) ||
        !read_logits(&batch, logits, type, rows, targets))
        return NULL;
    npy_intp n = batch.count;
    PyObject *out = PyArray_SimpleNew(1, &n, NPY_FLOAT64);
    if (!out) return NULL;
    jpo_scratch scratch = {0};
    jpo_error err;
    jpo_status status;
    Py_BEGIN_ALLOW_THREADS status = jpo_logits_logps(PyArray_DATA((PyArrayObject *)out), &batch, &scratch, &err);
    jpo_scratch_free(&scratch);
    Py_END_ALLOW_THREADS if (status == JPO_OK) return out;
    Py_DECREF(out);
    return jpo_raise(&err);
}

static PyObject *logits_grad(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *grad, *logits, *coefficients, *rows, *targets;
    int type;
    jpo_logits_batch batch;
    if (!PyArg_ParseTuple(args, "OOiOOO", &grad, &logits, &type, &rows, &targets, &coefficients) ||
        !read_logits(&batch, logits, type, rows, targets) ||
        !is_array(coefficients, "coefficients", NPY_FLOAT64, 1, false) ||
        !is_array(grad, "out", type == JPO_LOGITS_F64 ? NPY_FLOAT64 : NPY_FLOAT32, 2, true))
        return NULL;
    if (!PyArray_SAMESHAPE((PyArrayObject *)grad, (PyArrayObject *)logits) ||
        PyArray_SIZE((PyArrayObject *)coefficients) != batch.count)
        return PyErr_Format(PyExc_ValueError, "out or coefficients have another shape");
    jpo_scratch scratch = {0};
    jpo_error err;
    jpo_status status;
    Py_BEGIN_ALLOW_THREADS status = jpo_logits_grad(
        PyArray_DATA((PyArrayObject *)grad), PyArray_DATA((PyArrayObject *)coefficients), &batch, &scratch, &err);
    jpo_scratch_free(&scratch);
    Py_END_ALLOW_THREADS if (status != JPO_OK) return jpo_raise(&err);
    Py_RETURN_NONE;
}

/* The head over gathered rows: its inputs, checked. */
typedef struct {
    jpo_head_batch batch;
    jpo_weight weight;
    jpo_head_row *state;
    jpo_scratch scratch;
} head_call;

static void head_end(head_call *call) {
    PyMem_Free(call->state);
    jpo_scratch_free(&call->scratch);
}

static bool head_begin(head_call *call, PyObject *hidden, PyObject *weight, int dtype, PyObject *targets,
                       PyObject *index) {
    *call = (head_call){0};
    const int types[] = {NPY_FLOAT32, NPY_UINT16, NPY_UINT16};
    const jpo_dtype stored[] = {JPO_F32, JPO_BF16, JPO_F16};
    if (dtype < 0 || dtype > 2) return PyErr_SetString(PyExc_ValueError, "type is out of range"), false;
    if (!is_array(hidden, "hidden", NPY_FLOAT32, 2, false) || !is_array(weight, "weight", types[dtype], 2, false) ||
        !is_array(targets, "targets", NPY_INT32, 1, false) || !is_array(index, "index", NPY_INT32, 1, false))
        return false;
    PyArrayObject *h = (PyArrayObject *)hidden, *w = (PyArrayObject *)weight;
    int64_t n = PyArray_DIM(h, 0), vocab = PyArray_DIM(w, 0);
    if (PyArray_DIM(h, 1) != PyArray_DIM(w, 1) || PyArray_SIZE((PyArrayObject *)targets) != n ||
        PyArray_SIZE((PyArrayObject *)index) != n)
        return PyErr_SetString(PyExc_ValueError, "hidden, weight and targets do not fit together"), false;
    const int32_t *target = PyArray_DATA((PyArrayObject *)targets), *row = PyArray_DATA((PyArrayObject *)index);
    for (int64_t i = 0; i < n; i++)
        if (target[i] < 0 || target[i] >= vocab || row[i] != i)
            return PyErr_SetString(PyExc_ValueError, "a target is out of range"), false;
    call->batch = (jpo_head_batch){n, n, PyArray_DATA(h), row, target};
    call->weight = (jpo_weight){.n = vocab, .k = PyArray_DIM(w, 1), .data = PyArray_DATA(w), .dtype = stored[dtype]};
    call->state = PyMem_Calloc((size_t)n + 1, sizeof *call->state);
    if (!call->state) PyErr_NoMemory();
    return call->state != NULL;
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
    jpo_error err = {.code = JPO_ERR_MEMORY};
    jpo_status status = JPO_ERR_MEMORY;
    if (out) {
        Py_BEGIN_ALLOW_THREADS status = jpo_head_forward(PyArray_DATA((PyArrayObject *)out), call.state, NULL,
                                                         &call.batch, &call.weight, false, &call.scratch, &err);
        Py_END_ALLOW_THREADS
    }
    head_end(&call);
    if (status == JPO_OK) return out;
    Py_XDECREF(out);
    return jpo_raise(&err);
}

/* (d_hidden (N, H), d_weight (V, H)) */
static PyObject *head_grad(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *hidden, *weight, *targets, *index, *coefficients;
    int dtype;
    head_call call;
    if (!PyArg_ParseTuple(args, "OOiOOO", &hidden, &weight, &dtype, &targets, &index, &coefficients)) return NULL;
    if (!is_array(coefficients, "coefficients", NPY_FLOAT64, 1, false) ||
        !head_begin(&call, hidden, weight, dtype, targets, index))
        return NULL;
    npy_intp n = call.batch.rows, shape_h[2] = {n, call.weight.k}, shape_w[2] = {call.weight.n, call.weight.k};
    PyObject *dh = PyArray_ZEROS(2, shape_h, NPY_FLOAT32, 0), *dw = PyArray_ZEROS(2, shape_w, NPY_FLOAT32, 0);
    double *logps = PyMem_Calloc((size_t)n + 1, sizeof *logps);
    jpo_block tile = {0};
    jpo_error err = {.code = JPO_ERR_MEMORY, .text = "out of memory"};
    jpo_status status = JPO_ERR_MEMORY;
    size_t bytes;
    if (PyArray_SIZE((PyArrayObject *)coefficients) != n)
        status = jpo_fail(&err, JPO_ERR_VALUE, "coefficients have another length");
    else if (dh && dw && logps && jpo_size_mul3((size_t)n, JPO_HEAD_TILE, sizeof(float), &bytes) &&
             jpo_block_reserve(&tile, bytes + 64, &err) == JPO_OK) {
        Py_BEGIN_ALLOW_THREADS status =
            jpo_head_forward(logps, call.state, NULL, &call.batch, &call.weight, false, &call.scratch, &err);
        if (status == JPO_OK)
            status = jpo_head_backward_full(PyArray_DATA((PyArrayObject *)dh), PyArray_DATA((PyArrayObject *)dw),
                                            tile.data, PyArray_DATA((PyArrayObject *)coefficients), call.state,
                                            &call.batch, &call.weight, &call.scratch, &err);
        Py_END_ALLOW_THREADS
    }
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
    for (int isa = 0; isa < JPO_ISA_COUNT; isa++)
        if (PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, jpo_isa_name((jpo_isa)isa)) == 0)
            return PyBool_FromLong(jpo_cpu_choose((jpo_isa)isa));
    return PyErr_Format(PyExc_ValueError, "no instruction set is called %R", name);
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

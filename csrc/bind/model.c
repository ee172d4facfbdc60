/* jpo._core.Model: a decoder over borrowed weight buffers; passes over forests. jpo/model.py is its user. */
#include "bind/arguments.h"
#include "bind/model.h"

#include "base/size.h"

bool model_enter(model_object *self) {
    if (!self->ready)
        return PyErr_SetString(PyExc_RuntimeError, "the model was never made whole: Model() has failed"), false;
    if (self->busy)
        return PyErr_SetString(PyExc_RuntimeError,
                               "the model is at work in another thread; a model serves one call at a time"),
               false;
    return self->busy = true;
}

void model_leave(model_object *self) { self->busy = false; }

static int check_signals(void *unused) {
    (void)unused;
    return arg_poll_signals();
}

void model_tensor_name(char *name, const jpo_tensor_info *info, int64_t layer, bool bias) {
    const char *part = bias ? "bias" : "weight";
    if (info->scope == JPO_PER_LAYER)
        snprintf(name, TENSOR_NAME, "model.layers.%lld.%s.%s", (long long)layer, info->name, part);
    else
        snprintf(name, TENSOR_NAME, "%s.%s", info->name, part);
}

bool model_each_tensor(model_object *self, tensor_visitor visit, void *context) {
    const jpo_config *c = &self->model.config;
    for (int t = 0; t < JPO_TENSORS; t++) {
        const jpo_tensor tensor = (jpo_tensor)t;
        const jpo_tensor_info info = jpo_tensor_describe(c, tensor);
        if (!info.present) continue;
        for (int64_t layer = 0; layer < (info.scope == JPO_PER_LAYER ? c->layers : 1); layer++)
            if (!visit(self, context, tensor, &info, layer, false) ||
                (info.bias && !visit(self, context, tensor, &info, layer, true)))
                return false;
    }
    return true;
}

/* The bytes of one stored tensor (dtype name, array), checked for its size (n, k); NULL with an error. */
static PyArrayObject *stored_bytes(PyObject *tensors, const char *name, int64_t n, int64_t k, jpo_dtype *type) {
    PyObject *item = arg_item(tensors, name);
    const char *dtype_name;
    PyObject *bytes;
    if (!item && PyErr_Occurred()) return NULL;
    if (!item) return PyErr_Format(PyExc_ValueError, "the model lacks the tensor %s", name), NULL;
    if (!PyTuple_Check(item))
        return PyErr_Format(PyExc_TypeError, "tensor %s must be a tuple (dtype, array), got %R", name, Py_TYPE(item)),
               NULL;
    if (!PyArg_ParseTuple(item, "sO!:tensor", &dtype_name, &PyArray_Type, &bytes)) return NULL;
    int dtype = jpo_dtype_from_name(dtype_name);
    if (dtype < 0)
        return PyErr_Format(PyExc_ValueError, "tensor %s has the type %s, which is not implemented", name, dtype_name),
               NULL;
    *type = (jpo_dtype)dtype;
    if (k % jpo_dtype_block(*type))
        return PyErr_Format(PyExc_ValueError, "tensor %s: rows of %lld values are no whole blocks of %s", name,
                            (long long)k, dtype_name),
               NULL;
    PyArrayObject *array = (PyArrayObject *)bytes;
    const size_t want = jpo_size_product(jpo_dtype_row_bytes(*type, k), (size_t)n);
    if (!PyArray_ISCARRAY_RO(array) || (size_t)PyArray_NBYTES(array) != want)
        return PyErr_Format(PyExc_ValueError,
                            "tensor %s: expected %zu contiguous bytes for (%lld, %lld) of %s, got %zd", name, want,
                            (long long)n, (long long)k, dtype_name, (Py_ssize_t)PyArray_NBYTES(array)),
               NULL;
    return array;
}

typedef struct {
    PyObject *tensors;
    jpo_compute compute;
} stored_tensors;

/* Hands one stored tensor to the model. Vectors and biases are single rows of float32. */
static bool set_tensor(model_object *self, void *context, jpo_tensor tensor, const jpo_tensor_info *info, int64_t layer,
                       bool bias) {
    const stored_tensors *from = context;
    const bool vector = bias || info->kind == JPO_VECTOR;
    char name[TENSOR_NAME];
    jpo_dtype dtype;
    model_tensor_name(name, info, layer, bias);
    PyArrayObject *array = vector ? stored_bytes(from->tensors, name, 1, info->n, &dtype)
                                  : stored_bytes(from->tensors, name, info->n, info->k, &dtype);
    if (!array) return false;
    if (vector && dtype != JPO_F32)
        return PyErr_Format(PyExc_ValueError, "tensor %s must be widened to F32", name), false;
    if (PyList_Append(self->owners, (PyObject *)array) < 0) return false;
    if (bias)
        jpo_model_set_bias(&self->model, tensor, layer, PyArray_DATA(array));
    else
        jpo_model_set(&self->model, tensor, layer, PyArray_DATA(array), dtype, from->compute);
    return true;
}

/* The model of a configuration that was read, with its tensors and a pass over it. */
static bool make_model(model_object *self, const jpo_config *c, stored_tensors *tensors) {
    jpo_error err;
    jpo_status status = jpo_model_init(&self->model, c, &err);
    if (status == JPO_OK) status = jpo_pass_init(&self->pass, &self->model, &err);
    if (status != JPO_OK) {
        jpo_raise(&err);
        return false;
    }
    self->pass.poll = check_signals;
    if (!model_each_tensor(self, set_tensor, tensors)) return false;
    JPO_COMPUTE_BEGIN
    status = jpo_model_prepare(&self->model, &err);
    JPO_COMPUTE_END
    if (status != JPO_OK) jpo_raise(&err);
    return status == JPO_OK;
}

static int model_init(model_object *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"config", "tensors", "compute", NULL};
    PyObject *config, *tensors;
    int compute = JPO_COMPUTE_FLOAT32;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!|i:Model", names, &PyDict_Type, &config, &PyDict_Type, &tensors,
                                     &compute))
        return -1;
    if (self->owners) return PyErr_SetString(PyExc_RuntimeError, "a Model is made once"), -1;
    if (!arg_range("compute", compute, 0, JPO_COMPUTE_COUNT - 1) || !(self->owners = PyList_New(0))) return -1;
    jpo_config c;
    config_arrays arrays;
    stored_tensors stored = {tensors, (jpo_compute)compute};
    self->ready = config_read(config, &c, &arrays) && make_model(self, &c, &stored);
    config_release(&arrays);
    return self->ready ? 0 : -1;
}

static void model_dealloc(model_object *self) {
    if (self->pass.model) jpo_pass_free(&self->pass);
    jpo_model_free(&self->model);
    Py_XDECREF(self->owners);
    Py_XDECREF(self->params);
    Py_XDECREF(self->grads);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* (entropy, mean_logit, log_p2) float64 (L) and hit bool (L): each entry's row. */
static PyObject *statistics(const jpo_pass *pass) {
    npy_intp n = pass->plan.entries;
    PyObject *entropy = PyArray_SimpleNew(1, &n, NPY_FLOAT64), *mean = PyArray_SimpleNew(1, &n, NPY_FLOAT64);
    PyObject *p2 = PyArray_SimpleNew(1, &n, NPY_FLOAT64), *hit = PyArray_SimpleNew(1, &n, NPY_BOOL);
    if (entropy && mean && p2 && hit)
        jpo_pass_statistics(pass, PyArray_DATA((PyArrayObject *)entropy), PyArray_DATA((PyArrayObject *)mean),
                            PyArray_DATA((PyArrayObject *)p2), PyArray_DATA((PyArrayObject *)hit));
    return Py_BuildValue("(NNNN)", entropy, mean, p2, hit);
}

typedef struct {
    PyArrayObject *tokens, *segments, *entry_row, *entry_target;
} forest_arrays;

static void forest_release(forest_arrays *a) {
    Py_XDECREF(a->tokens);
    Py_XDECREF(a->segments);
    Py_XDECREF(a->entry_row);
    Py_XDECREF(a->entry_target);
}

/* forest_release(a) is due afterwards, also where it failed. */
static bool forest_read(jpo_forest *forest, forest_arrays *a, PyObject *tokens, PyObject *segments, PyObject *row,
                        PyObject *target) {
    *a = (forest_arrays){0};
    if (!(a->tokens = arg_copy(tokens, "tokens", NPY_INT32, 1)) ||
        !(a->segments = arg_copy(segments, "segments", NPY_INT32, 2)) ||
        !(a->entry_row = arg_copy(row, "entry_row", NPY_INT32, 1)) ||
        !(a->entry_target = arg_copy(target, "entry_target", NPY_INT32, 1)))
        return false;
    if (PyArray_DIM(a->segments, 1) != 4 || PyArray_SIZE(a->entry_row) != PyArray_SIZE(a->entry_target)) {
        PyErr_SetString(PyExc_ValueError, "segments must be (S, 4), entry_row and entry_target of one length");
        return false;
    }
    *forest = (jpo_forest){PyArray_SIZE(a->tokens),      PyArray_DIM(a->segments, 0), PyArray_SIZE(a->entry_row),
                           PyArray_DATA(a->tokens),      PyArray_DATA(a->segments),   PyArray_DATA(a->entry_row),
                           PyArray_DATA(a->entry_target)};
    return true;
}

static PyObject *model_forward(model_object *self, PyObject *args) {
    PyObject *tokens, *segments, *row, *target;
    int adapter, keep, stats, train;
    unsigned long long seed;
    if (!PyArg_ParseTuple(args, "OOOOppppK:forward", &tokens, &segments, &row, &target, &adapter, &keep, &stats, &train,
                          &seed) ||
        !model_enter(self))
        return NULL;
    forest_arrays arrays;
    jpo_forest forest;
    PyObject *logps = NULL, *result = NULL;
    if (forest_read(&forest, &arrays, tokens, segments, row, target)) {
        npy_intp n = forest.entries;
        logps = PyArray_SimpleNew(1, &n, NPY_FLOAT64);
    }
    jpo_forward_options options = {.adapter = adapter, .keep = keep, .statistics = stats, .train = train, .seed = seed};
    jpo_error err;
    if (logps) {
        jpo_status status;
        JPO_COMPUTE_BEGIN_POLLED
        status = jpo_pass_forward(&self->pass, PyArray_DATA((PyArrayObject *)logps), &forest, &options, &err);
        JPO_COMPUTE_END_POLLED(status, &err)
        if (status != JPO_OK)
            jpo_raise(&err);
        else if (stats)
            result = Py_BuildValue("(ON)", logps, statistics(&self->pass));
        else
            result = Py_BuildValue("(OO)", logps, Py_None);
    }
    Py_XDECREF(logps);
    forest_release(&arrays);
    model_leave(self);
    return result;
}

static PyObject *model_backward(model_object *self, PyObject *coefficients) {
    if (!model_enter(self)) return NULL;
    PyArrayObject *array = arg_copy(coefficients, "coefficients", NPY_FLOAT64, 1);
    jpo_status status = JPO_ERR_INTERNAL;
    if (array && PyArray_SIZE(array) != self->pass.plan.entries) {
        PyErr_Format(PyExc_ValueError,
                     "coefficients must hold one value for each of the %lld entries of the last forward pass, got %zd",
                     (long long)self->pass.plan.entries, (Py_ssize_t)PyArray_SIZE(array));
    } else if (array) {
        jpo_error err;
        JPO_COMPUTE_BEGIN_POLLED
        status = jpo_pass_backward(&self->pass, PyArray_DATA(array), &err);
        JPO_COMPUTE_END_POLLED(status, &err)
        if (status != JPO_OK) jpo_raise(&err);
    }
    Py_XDECREF(array);
    model_leave(self);
    if (status != JPO_OK) return NULL;
    Py_RETURN_NONE;
}

/* Final hidden states (rows, H) of the last pass, after the last norm; the model is entered. */
static PyArrayObject *hidden_of_rows(const jpo_pass *pass, PyObject *rows_object) {
    PyArrayObject *rows = arg_copy(rows_object, "rows", NPY_INT32, 1);
    if (!rows) return NULL;
    npy_intp shape[2] = {PyArray_SIZE(rows), pass->model->config.hidden};
    PyArrayObject *out = (PyArrayObject *)PyArray_SimpleNew(2, shape, NPY_FLOAT32);
    const int32_t *row = PyArray_DATA(rows);
    const int64_t left = jpo_pass_rows(pass);
    for (npy_intp i = 0; out && i < shape[0]; i++) {
        if (row[i] < 0 || row[i] >= left) {
            PyErr_Format(PyExc_ValueError, "rows[%zd] = %d: the last pass left %lld rows", (Py_ssize_t)i, row[i],
                         (long long)left);
            Py_CLEAR(out);
            break;
        }
        jpo_pass_hidden(pass, (float *)PyArray_DATA(out) + i * shape[1], row[i]);
    }
    Py_DECREF(rows);
    return out;
}

static PyObject *model_hidden(model_object *self, PyObject *rows) {
    if (!model_enter(self)) return NULL;
    PyArrayObject *out = hidden_of_rows(&self->pass, rows);
    model_leave(self);
    return (PyObject *)out;
}

/* Logits (rows, V) of the last pass. */
static PyObject *model_logits(model_object *self, PyObject *rows) {
    if (!model_enter(self)) return NULL;
    PyArrayObject *hidden = hidden_of_rows(&self->pass, rows), *out = NULL;
    if (hidden) {
        npy_intp shape[2] = {PyArray_DIM(hidden, 0), self->model.config.vocab};
        out = (PyArrayObject *)PyArray_SimpleNew(2, shape, NPY_FLOAT32);
    }
    if (out) {
        jpo_error err;
        jpo_status status;
        JPO_COMPUTE_BEGIN_POLLED
        status = jpo_pass_logits(&self->pass, PyArray_DATA(out), PyArray_DATA(hidden), PyArray_DIM(hidden, 0), &err);
        JPO_COMPUTE_END_POLLED(status, &err)
        if (status != JPO_OK) {
            jpo_raise(&err);
            Py_CLEAR(out);
        }
    }
    Py_XDECREF(hidden);
    model_leave(self);
    return (PyObject *)out;
}

/* Bytes that a pass over the forest would allocate. */
static PyObject *model_plan(model_object *self, PyObject *args) {
    PyObject *tokens, *segments, *row, *target;
    int keep;
    if (!PyArg_ParseTuple(args, "OOOOp:plan", &tokens, &segments, &row, &target, &keep) || !model_enter(self))
        return NULL;
    forest_arrays arrays;
    jpo_forest forest;
    jpo_plan plan;
    jpo_error err;
    jpo_forward_options options = {.adapter = true, .keep = keep, .statistics = true, .train = true};
    bool read = forest_read(&forest, &arrays, tokens, segments, row, target), planned = false;
    if (read) {
        jpo_status status = jpo_forest_check(&forest, &self->model.config, &err);
        if (status == JPO_OK) status = jpo_plan_make(&plan, &self->pass, &forest, &options, &err);
        if (status != JPO_OK) jpo_raise(&err);
        planned = status == JPO_OK;
    }
    forest_release(&arrays);
    model_leave(self);
    if (!planned) return NULL;
    return PyLong_FromSize_t(plan.saved_bytes + plan.work_bytes + plan.head_bytes + plan.index_bytes);
}

static PyObject *model_trim(model_object *self, PyObject *unused) {
    (void)unused;
    if (!model_enter(self)) return NULL;
    jpo_pass_trim(&self->pass);
    model_leave(self);
    Py_RETURN_NONE;
}

static PyObject *model_set_recompute(model_object *self, PyObject *on) {
    int wanted = PyObject_IsTrue(on);
    if (wanted < 0 || !model_enter(self)) return NULL;
    self->pass.recompute = wanted;
    model_leave(self);
    Py_RETURN_NONE;
}

/* {operator: (calls, seconds, flop)} since the last reading; counts from now on if `on`. */
static PyObject *model_profile(model_object *self, PyObject *on) {
    int wanted = PyObject_IsTrue(on);
    if (wanted < 0 || !model_enter(self)) return NULL;
    jpo_profile *profile = &self->pass.profile;
    PyObject *out = PyDict_New();
    for (int op = 0; out && op < JPO_OPERATORS; op++) {
        if (!profile->calls[op]) continue;
        PyObject *row = Py_BuildValue("(Ldd)", (long long)profile->calls[op], profile->seconds[op], profile->flop[op]);
        out = arg_entered(out, jpo_operator_name((jpo_operator)op), row);
    }
    if (out) *profile = (jpo_profile){.on = wanted};
    model_leave(self);
    return out;
}

static PyMethodDef model_methods[] = {
    {"forward", (PyCFunction)(void (*)(void))model_forward, METH_VARARGS,
     "forward(tokens (R,), segments (S, 4), entry_row (L,), entry_target (L,), adapter, keep, statistics, train, "
     "seed)\n"
     "-> (logps (L,) float64, None or (entropy, mean_logit, log_p2, hit) each (L,))"},
    {"backward", (PyCFunction)model_backward, METH_O, "backward(coefficients (L,)): adds d loss into the gradients."},
    {"hidden", (PyCFunction)model_hidden, METH_O,
     "hidden(rows) -> (n, H) float32: final hidden states of the last pass."},
    {"logits", (PyCFunction)model_logits, METH_O, "logits(rows) -> (n, V) float32 of the last pass."},
    {"plan", (PyCFunction)(void (*)(void))model_plan, METH_VARARGS,
     "plan(tokens, segments, entry_row, entry_target, keep) -> bytes."},
    {"trim", (PyCFunction)model_trim, METH_NOARGS, "Frees the buffers of the last pass."},
    {"profile", (PyCFunction)model_profile, METH_O,
     "profile(on) -> {operator: (calls, seconds, flop)} since the last call; counts from now on if on."},
    {"set_recompute", (PyCFunction)model_set_recompute, METH_O,
     "set_recompute(on): from the next pass on keep each layer's input alone and repeat its forward in backward."},
    {"set_lora", (PyCFunction)(void (*)(void))model_set_lora, METH_VARARGS,
     "set_lora(params (P,), grads (P,), [(layer, module, r, scale, dropout, offset_a, offset_b, offset_m = -1), ...],\n"
     "{tensor: offset} = {}): offset_m: of the magnitudes of the rows (DoRA), -1: none; tensors that are trained "
     "whole."},
    {"row_norms", (PyCFunction)(void (*)(void))model_row_norms, METH_VARARGS,
     "row_norms(layer, module) -> (N,) float32: lengths of the rows of W + scale B A of a module with magnitudes."},
    {"set_full", (PyCFunction)(void (*)(void))model_set_full, METH_VARARGS,
     "set_full(params (P,), grads (P,), {tensor: offset})"},
    {"clear", (PyCFunction)model_clear, METH_NOARGS,
     "Removes what is trained, an adapter or all weights: the stored weights stand again."},
    {"decode", (PyCFunction)(void (*)(void))model_decode, METH_VARARGS,
     "decode(k, v (layers, capacity, KV) float32, tokens (R,), positions (R,), kv_rows (R,), segments (S, 4), ranges "
     "(n, 2),\n"
     "rows (n,)) -> logits (n, V): one pass over cached keys; segments: first_row, length, first range, ranges."},
    {NULL, NULL, 0, NULL}};

static PyTypeObject model_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "jpo._core.Model",
    .tp_doc = "Model(config: dict, tensors: dict of (dtype, bytes), compute=0)",
    .tp_basicsize = sizeof(model_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)model_init,
    .tp_dealloc = (destructor)model_dealloc,
    .tp_methods = model_methods,
};

int jpo_bind_model(PyObject *module) { return PyModule_AddType(module, &model_type); }

/* jpo._core.Model: a decoder over borrowed weight buffers; passes over forests. jpo/model.py is its user. */
#include "bind/arguments.h"
#include "bind/model.h"

#include <math.h>
#include <string.h>

#include "base/size.h"
#include "ops/rmsnorm.h"

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

static bool get_int(PyObject *dict, const char *key, int64_t *out) {
    PyObject *item = PyDict_GetItemString(dict, key);
    if (!item) return PyErr_Format(PyExc_ValueError, "config lacks %s", key), false;
    *out = PyLong_AsLongLong(item);
    return !(*out == -1 && PyErr_Occurred());
}

static bool get_double(PyObject *dict, const char *key, double *out) {
    PyObject *item = PyDict_GetItemString(dict, key);
    if (!item) return PyErr_Format(PyExc_ValueError, "config lacks %s", key), false;
    *out = PyFloat_AsDouble(item);
    return !(*out == -1 && PyErr_Occurred());
}

static bool read_config(PyObject *dict, jpo_config *c, PyArrayObject **inv_freq) {
    double eps;
    int64_t tied;
    if (!get_int(dict, "vocab_size", &c->vocab) || !get_int(dict, "hidden_size", &c->hidden) ||
        !get_int(dict, "num_hidden_layers", &c->layers) || !get_int(dict, "num_attention_heads", &c->heads) ||
        !get_int(dict, "num_key_value_heads", &c->kv_heads) || !get_int(dict, "head_dim", &c->head_dim) ||
        !get_int(dict, "intermediate_size", &c->intermediate) || !get_int(dict, "sliding_window", &c->window) ||
        !get_int(dict, "max_position_embeddings", &c->max_positions) || !get_int(dict, "tie_word_embeddings", &tied) ||
        !get_double(dict, "rms_norm_eps", &eps) || !get_double(dict, "rope_attention_factor", &c->rope_factor))
        return false;
    c->eps = (float)eps;
    c->tied = tied;
    PyObject *frequencies = PyDict_GetItemString(dict, "inv_freq");
    if (!frequencies) return PyErr_Format(PyExc_ValueError, "config lacks inv_freq"), false;
    *inv_freq = (PyArrayObject *)PyArray_FROM_OTF(frequencies, NPY_FLOAT64, NPY_ARRAY_IN_ARRAY);
    if (!*inv_freq) return false;
    if (PyArray_SIZE(*inv_freq) != c->head_dim / 2)
        return PyErr_Format(PyExc_ValueError, "inv_freq must hold head_dim / 2 = %lld values, got %zd",
                            (long long)c->head_dim / 2, (Py_ssize_t)PyArray_SIZE(*inv_freq)),
               false;
    c->inv_freq = PyArray_DATA(*inv_freq);
    return true;
}

/* One stored tensor (dtype name, bytes): its weight, checked for size. optional: *weight is left empty where absent. */
static bool take_weight(model_object *self, PyObject *tensors, const char *name, int64_t n, int64_t k, bool optional,
                        jpo_weight *weight) {
    PyObject *item = PyDict_GetItemString(tensors, name);
    if (!item && optional) return true;
    const char *dtype_name;
    PyObject *bytes;
    if (!item) return PyErr_Format(PyExc_ValueError, "the model lacks the tensor %s", name), false;
    if (!PyTuple_Check(item))
        return PyErr_Format(PyExc_TypeError, "tensor %s must be a tuple (dtype, array), got %R", name, Py_TYPE(item)),
               false;
    if (!PyArg_ParseTuple(item, "sO!:tensor", &dtype_name, &PyArray_Type, &bytes)) return false;
    int dtype = jpo_dtype_from_name(dtype_name);
    if (dtype < 0)
        return PyErr_Format(PyExc_ValueError, "tensor %s has the type %s, which is not implemented", name, dtype_name),
               false;
    if (k % jpo_dtype_block((jpo_dtype)dtype))
        return PyErr_Format(PyExc_ValueError, "tensor %s: rows of %lld values are no whole blocks of %s", name,
                            (long long)k, dtype_name),
               false;
    PyArrayObject *array = (PyArrayObject *)bytes;
    size_t want;
    if (!jpo_size_mul(jpo_dtype_row_bytes((jpo_dtype)dtype, k), (size_t)n, &want))
        return PyErr_Format(PyExc_ValueError, "tensor %s: (%lld, %lld) values of %s do not fit the address space", name,
                            (long long)n, (long long)k, dtype_name),
               false;
    if (!PyArray_ISCARRAY_RO(array) || (size_t)PyArray_NBYTES(array) != want)
        return PyErr_Format(PyExc_ValueError,
                            "tensor %s: expected %zu contiguous bytes for (%lld, %lld) of %s, got %zd", name, want,
                            (long long)n, (long long)k, dtype_name, (Py_ssize_t)PyArray_NBYTES(array)),
               false;
    if (PyList_Append(self->owners, bytes) < 0) return false;
    *weight = (jpo_weight){
        .n = n, .k = k, .data = PyArray_DATA(array), .dtype = (jpo_dtype)dtype, .compute = weight->compute};
    return true;
}

/* A float32 vector (norm, bias). */
static bool take_vector(model_object *self, PyObject *tensors, const char *name, int64_t n, bool optional,
                        const float **out) {
    jpo_weight weight = {0};
    if (!take_weight(self, tensors, name, 1, n, optional, &weight)) return false;
    if (weight.data && weight.dtype != JPO_F32)
        return PyErr_Format(PyExc_ValueError, "tensor %s must be widened to F32", name), false;
    *out = weight.data;
    return true;
}

static bool take_layer(model_object *self, PyObject *tensors, int64_t index, jpo_compute compute) {
    jpo_layer *layer = self->model.layer + index;
    const jpo_config *c = &self->model.config;
    char name[128];
    for (int m = 0; m < JPO_MODULES; m++) {
        jpo_linear *linear = layer->module + m;
        int64_t n = jpo_module_outputs(c, (jpo_module)m), k = jpo_module_inputs(c, (jpo_module)m);
        linear->weight.compute = compute;
        snprintf(name, sizeof name, "model.layers.%lld.%s.weight", (long long)index, jpo_module_name((jpo_module)m));
        if (!take_weight(self, tensors, name, n, k, false, &linear->weight)) return false;
        snprintf(name, sizeof name, "model.layers.%lld.%s.bias", (long long)index, jpo_module_name((jpo_module)m));
        if (!take_vector(self, tensors, name, n, true, &linear->bias)) return false;
    }
    snprintf(name, sizeof name, "model.layers.%lld.input_layernorm.weight", (long long)index);
    if (!take_vector(self, tensors, name, c->hidden, false, &layer->norm1)) return false;
    snprintf(name, sizeof name, "model.layers.%lld.post_attention_layernorm.weight", (long long)index);
    return take_vector(self, tensors, name, c->hidden, false, &layer->norm2);
}

static jpo_status prepare(jpo_model *model, jpo_error *err) {
    for (int64_t i = 0; i < model->config.layers; i++)
        for (int m = 0; m < JPO_MODULES; m++) JPO_TRY(jpo_weight_prepare(&model->layer[i].module[m].weight, err));
    return jpo_weight_prepare(&model->head, err);
}

static bool take_tensors(model_object *self, PyObject *tensors, jpo_compute compute) {
    jpo_model *model = &self->model;
    const jpo_config *c = &model->config;
    if (!take_weight(self, tensors, "model.embed_tokens.weight", c->vocab, c->hidden, false, &model->embedding) ||
        !take_vector(self, tensors, "model.norm.weight", c->hidden, false, &model->norm))
        return false;
    model->head = model->embedding;
    if (!c->tied && !take_weight(self, tensors, "lm_head.weight", c->vocab, c->hidden, false, &model->head))
        return false;
    model->head.compute = compute;
    for (int64_t i = 0; i < c->layers; i++)
        if (!take_layer(self, tensors, i, compute)) return false;
    return true;
}

/* Remembers the weights as they stand now, for model_stored_weights. */
static bool store_weights(model_object *self) {
    const jpo_model *model = &self->model;
    self->stored = PyMem_Calloc((size_t)model->config.layers, sizeof *self->stored);
    if (!self->stored) return PyErr_NoMemory(), false;
    memcpy(self->stored, model->layer, (size_t)model->config.layers * sizeof *self->stored);
    self->stored_embedding = model->embedding, self->stored_head = model->head, self->stored_norm = model->norm;
    return true;
}

void model_stored_weights(model_object *self) {
    jpo_model *model = &self->model;
    memcpy(model->layer, self->stored, (size_t)model->config.layers * sizeof *self->stored);
    model->embedding = self->stored_embedding, model->head = self->stored_head, model->norm = self->stored_norm;
    model->dembedding = model->dhead = model->dnorm = NULL;
    model->full = model->kept = false;
}

static int model_init(model_object *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"config", "tensors", "compute", NULL};
    PyObject *config, *tensors;
    int compute = JPO_COMPUTE_FLOAT32;
    PyArrayObject *inv_freq = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!|i:Model", names, &PyDict_Type, &config, &PyDict_Type, &tensors,
                                     &compute))
        return -1;
    if (self->owners) return PyErr_SetString(PyExc_RuntimeError, "a Model is made once"), -1;
    if (!arg_range("compute", compute, 0, JPO_COMPUTE_COUNT - 1)) return -1;
    jpo_config c = {0};
    jpo_error err;
    if (!(self->owners = PyList_New(0)) || !read_config(config, &c, &inv_freq)) goto fail;
    if (jpo_model_init(&self->model, &c, &err) != JPO_OK) {
        jpo_raise(&err);
        goto fail;
    }
    self->model.poll = check_signals;
    if (!take_tensors(self, tensors, (jpo_compute)compute)) goto fail;
    jpo_status status;
    JPO_COMPUTE_BEGIN
    status = prepare(&self->model, &err);
    JPO_COMPUTE_END
    if (status != JPO_OK) {
        jpo_raise(&err);
        goto fail;
    }
    if (!store_weights(self)) goto fail;
    self->ready = true;
    Py_DECREF(inv_freq);
    return 0;
fail:
    Py_XDECREF(inv_freq);
    return -1;
}

static void model_dealloc(model_object *self) {
    jpo_model_free(&self->model);
    PyMem_Free(self->stored);
    Py_XDECREF(self->owners);
    Py_XDECREF(self->params);
    Py_XDECREF(self->grads);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* (entropy, mean_logit, log_p2) float64 (L) and hit bool (L): each entry's row. */
static PyObject *statistics(const jpo_model *model) {
    npy_intp n = model->plan.entries;
    PyObject *entropy = PyArray_SimpleNew(1, &n, NPY_FLOAT64), *mean = PyArray_SimpleNew(1, &n, NPY_FLOAT64);
    PyObject *p2 = PyArray_SimpleNew(1, &n, NPY_FLOAT64), *hit = PyArray_SimpleNew(1, &n, NPY_BOOL);
    if (entropy && mean && p2 && hit)
        for (npy_intp e = 0; e < n; e++) {
            const jpo_head_row *s = model->head_state + model->head_entry_row[e];
            ((double *)PyArray_DATA((PyArrayObject *)entropy))[e] = s->max + log(s->sum) - s->sum_pz / s->sum;
            ((double *)PyArray_DATA((PyArrayObject *)mean))[e] = s->sum_z / (double)model->config.vocab;
            ((double *)PyArray_DATA((PyArrayObject *)p2))[e] = log(s->sum_p2) - 2 * log(s->sum);
            ((npy_bool *)PyArray_DATA((PyArrayObject *)hit))[e] = s->best == model->entry_target[e];
        }
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
    jpo_forward_options options = {adapter, keep, stats, train, seed};
    jpo_error err;
    if (logps) {
        jpo_status status;
        JPO_COMPUTE_BEGIN_POLLED
        status = jpo_model_forward(&self->model, PyArray_DATA((PyArrayObject *)logps), &forest, &options, &err);
        JPO_COMPUTE_END_POLLED(status, &err)
        if (status != JPO_OK)
            jpo_raise(&err);
        else if (stats)
            result = Py_BuildValue("(ON)", logps, statistics(&self->model));
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
    if (array && PyArray_SIZE(array) != self->model.plan.entries) {
        PyErr_Format(PyExc_ValueError,
                     "coefficients must hold one value for each of the %lld entries of the last forward pass, got %zd",
                     (long long)self->model.plan.entries, (Py_ssize_t)PyArray_SIZE(array));
    } else if (array) {
        jpo_error err;
        JPO_COMPUTE_BEGIN_POLLED
        status = jpo_model_backward(&self->model, PyArray_DATA(array), &err);
        JPO_COMPUTE_END_POLLED(status, &err)
        if (status != JPO_OK) jpo_raise(&err);
    }
    Py_XDECREF(array);
    model_leave(self);
    if (status != JPO_OK) return NULL;
    Py_RETURN_NONE;
}

/* Final hidden states (rows, H) of the last pass, after the last norm; the model is entered. */
static PyArrayObject *hidden_of_rows(jpo_model *model, PyObject *rows_object) {
    PyArrayObject *rows = arg_copy(rows_object, "rows", NPY_INT32, 1);
    if (!rows) return NULL;
    npy_intp shape[2] = {PyArray_SIZE(rows), model->config.hidden};
    PyArrayObject *out = (PyArrayObject *)PyArray_SimpleNew(2, shape, NPY_FLOAT32);
    const int32_t *row = PyArray_DATA(rows);
    for (npy_intp i = 0; out && i < shape[0]; i++) {
        if (!model->final_x || row[i] < 0 || row[i] >= model->plan.rows) {
            PyErr_Format(PyExc_ValueError, "rows[%zd] = %d: the last pass left %lld rows", (Py_ssize_t)i, row[i],
                         model->final_x ? (long long)model->plan.rows : 0);
            Py_CLEAR(out);
            break;
        }
        float *to = (float *)PyArray_DATA(out) + i * shape[1];
        jpo_rmsnorm_forward(to, NULL, model->final_x + row[i] * shape[1], model->norm, 1, shape[1], model->config.eps);
    }
    Py_DECREF(rows);
    return out;
}

static PyObject *model_hidden(model_object *self, PyObject *rows) {
    if (!model_enter(self)) return NULL;
    PyArrayObject *out = hidden_of_rows(&self->model, rows);
    model_leave(self);
    return (PyObject *)out;
}

/* Logits (rows, V) of the last pass. */
static PyObject *model_logits(model_object *self, PyObject *rows) {
    if (!model_enter(self)) return NULL;
    jpo_model *model = &self->model;
    PyArrayObject *hidden = hidden_of_rows(model, rows), *out = NULL;
    if (hidden) {
        npy_intp shape[2] = {PyArray_DIM(hidden, 0), model->config.vocab};
        out = (PyArrayObject *)PyArray_SimpleNew(2, shape, NPY_FLOAT32);
    }
    if (out) {
        jpo_error err;
        jpo_status status;
        JPO_COMPUTE_BEGIN_POLLED
        status = jpo_linear_forward(PyArray_DATA(out), model->config.vocab, PyArray_DATA(hidden), model->config.hidden,
                                    &model->head, PyArray_DIM(hidden, 0), false, NULL, &model->scratch, &err);
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

/* Bytes that a pass over the forest would take. */
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
        if (status == JPO_OK) status = jpo_plan_make(&plan, &self->model, &forest, &options, &err);
        planned = status == JPO_OK;
        if (!planned) jpo_raise(&err);
    }
    forest_release(&arrays);
    model_leave(self);
    if (!planned) return NULL;
    return PyLong_FromSize_t(plan.saved_bytes + plan.work_bytes + plan.head_bytes + plan.index_bytes);
}

static PyObject *model_trim(model_object *self, PyObject *unused) {
    (void)unused;
    if (!model_enter(self)) return NULL;
    jpo_model_trim(&self->model);
    model_leave(self);
    Py_RETURN_NONE;
}

static PyObject *model_set_recompute(model_object *self, PyObject *on) {
    int wanted = PyObject_IsTrue(on);
    if (wanted < 0 || !model_enter(self)) return NULL;
    self->model.recompute = wanted;
    model_leave(self);
    Py_RETURN_NONE;
}

/* {operator: (calls, seconds, flop)} since the last reading; counts from now on if `on`. */
static PyObject *model_profile(model_object *self, PyObject *on) {
    int wanted = PyObject_IsTrue(on);
    if (wanted < 0 || !model_enter(self)) return NULL;
    jpo_profile *profile = &self->model.profile;
    PyObject *out = PyDict_New();
    for (int op = 0; out && op < JPO_OPERATORS; op++) {
        if (!profile->calls[op]) continue;
        PyObject *row = Py_BuildValue("(Ldd)", (long long)profile->calls[op], profile->seconds[op], profile->flop[op]);
        if (!row || PyDict_SetItemString(out, jpo_operator_name((jpo_operator)op), row) < 0) Py_CLEAR(out);
        Py_XDECREF(row);
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
     "set_lora(params (P,), grads (P,), [(layer, module, r, scale, dropout, offset_a, offset_b), ...])"},
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

int jpo_bind_model(PyObject *module) {
    if (PyType_Ready(&model_type) < 0) return -1;
    PyObject *modules = PyTuple_New(JPO_MODULES);
    for (int m = 0; modules && m < JPO_MODULES; m++)
        PyTuple_SET_ITEM(modules, m, PyUnicode_FromString(jpo_module_name((jpo_module)m)));
    if (!modules || PyModule_AddObject(module, "MODULES", modules) < 0) return -1;
    Py_INCREF(&model_type);
    return PyModule_AddObject(module, "Model", (PyObject *)&model_type);
}

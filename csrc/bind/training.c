/* What a model trains: an adapter, or all of its weights, in flat vectors that Python owns. */
#include "bind/arguments.h"
#include "bind/model.h"

#include <math.h>
#include <string.h>

static void forget(model_object *self) {
    jpo_error none; /* without an adapter nothing is reserved */
    jpo_model_restore(&self->model);
    (void)jpo_pass_adapt(&self->pass, &none);
    Py_CLEAR(self->params);
    Py_CLEAR(self->grads);
}

/* The part [offset, offset + count) of a vector of `size` values, or NULL. */
static float *part(PyObject *vector, Py_ssize_t offset, int64_t count) {
    npy_intp size = PyArray_SIZE((PyArrayObject *)vector);
    if (offset < 0 || count > size || offset > size - count) return NULL;
    return (float *)PyArray_DATA((PyArrayObject *)vector) + offset;
}

/* params and grads in place of what was trained before. */
static bool adopt(model_object *self, PyObject *params, PyObject *grads) {
    if (!arg_array(params, "params", NPY_FLOAT32, 1, true) || !arg_array(grads, "grads", NPY_FLOAT32, 1, true))
        return false;
    if (PyArray_SIZE((PyArrayObject *)params) != PyArray_SIZE((PyArrayObject *)grads))
        return PyErr_SetString(PyExc_ValueError, "params and grads must have one length"), false;
    forget(self);
    Py_INCREF(params), Py_INCREF(grads);
    self->params = params, self->grads = grads;
    return true;
}

/* One adapter, as Python names it. */
typedef struct {
    Py_ssize_t layer, module, offset_a, offset_b, offset_m; /* offset_m -1: no magnitudes */
    long long r;
    double scale, dropout;
} place;

static bool set_one(model_object *self, const place *p) {
    jpo_model *model = &self->model;
    const bool embedding = p->module == JPO_EMBEDDING, table = embedding || p->module == JPO_HEAD;
    const int64_t layers = table ? 1 : model->config.layers;
    if (p->layer < 0 || p->layer >= layers || p->module < 0 || (p->module >= JPO_MODULES && !table) || p->r < 1 ||
        p->r > 1 << 20 || !(p->dropout >= 0 && p->dropout < 1) || !isfinite(p->scale))
        return PyErr_Format(PyExc_ValueError, "adapter of layer %zd, module %zd: r %lld, scale or dropout out of range",
                            p->layer, p->module, p->r),
               false;
    const jpo_tensor_info info = jpo_tensor_describe(&model->config, (jpo_tensor)p->module);
    const int64_t in = embedding ? info.n : info.k, out = embedding ? info.k : info.n;
    if (table && (p->offset_m != -1 || p->dropout > 0))
        return PyErr_Format(PyExc_ValueError, "the adapter of %s has neither magnitudes nor dropout", info.name), false;
    if (!info.present && !table) return PyErr_Format(PyExc_ValueError, "this model has no module %s", info.name), false;
    jpo_lora lora = {.r = p->r,
                     .scale = (float)p->scale,
                     .dropout = (float)p->dropout,
                     .a = part(self->params, p->offset_a, p->r * in),
                     .b = part(self->params, p->offset_b, p->r * out),
                     .da = part(self->grads, p->offset_a, p->r * in),
                     .db = part(self->grads, p->offset_b, p->r * out)};
    if (p->offset_m != -1) {
        lora.magnitude = part(self->params, p->offset_m, info.n);
        lora.dmagnitude = part(self->grads, p->offset_m, info.n);
    }
    if (!lora.a || !lora.b || (p->offset_m != -1 && !lora.magnitude))
        return PyErr_Format(PyExc_ValueError, "adapter of layer %zd, module %zd lies outside params", p->layer,
                            p->module),
               false;
    jpo_model_adapt(model, (jpo_tensor)p->module, p->layer, &lora);
    return true;
}

/* All items are read, which may run Python code, before the first adapter is set. */
static bool read_places(place *places, PyObject *items, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; i++) {
        place *p = places + i;
        PyObject *item = PyTuple_GET_ITEM(items, i);
        if (!PyTuple_Check(item))
            return PyErr_Format(PyExc_TypeError, "places[%zd] must be a tuple, got %R", i, Py_TYPE(item)), false;
        p->offset_m = -1;
        if (!PyArg_ParseTuple(item, "nnLddnn|n", &p->layer, &p->module, &p->r, &p->scale, &p->dropout, &p->offset_a,
                              &p->offset_b, &p->offset_m))
            return false;
    }
    return true;
}

/* Tensors that are trained whole: {name: offset}, and how many of them the model has found. */
typedef struct {
    PyObject *offsets;
    bool all; /* every tensor of the model must be there */
    Py_ssize_t found;
} trained_tensors;

/* The named tensor's values in params become the model's own; its gradient stands at the same offset of grads. */
static bool train_named(model_object *self, trained_tensors *trained, const char *name, jpo_tensor tensor,
                        const jpo_tensor_info *info, int64_t layer, bool bias) {
    PyObject *item = arg_item(trained->offsets, name);
    if (!item && PyErr_Occurred()) return false;
    if (!item && trained->all) return PyErr_Format(PyExc_ValueError, "set_full lacks the tensor %s", name), false;
    if (!item) return true;
    Py_ssize_t offset = PyLong_AsSsize_t(item);
    if (offset == -1 && PyErr_Occurred()) return false;
    int64_t count = bias ? info->n : info->n * info->k;
    float *values = part(self->params, offset, count);
    if (!values) return PyErr_Format(PyExc_ValueError, "tensor %s lies outside params", name), false;
    jpo_model_train(&self->model, tensor, layer, bias, values, part(self->grads, offset, count));
    trained->found++;
    return true;
}

static bool train_tensor(model_object *self, void *context, jpo_tensor tensor, const jpo_tensor_info *info,
                         int64_t layer, bool bias) {
    char name[TENSOR_NAME];
    model_tensor_name(name, info, layer, bias);
    return train_named(self, context, name, tensor, info, layer, bias);
}

/* The tensors of a dictionary; a tied head is trained with the embedding where all are, alone where it is named. */
static bool train_tensors(model_object *self, PyObject *offsets, bool all) {
    trained_tensors trained = {offsets, all, 0};
    if (!model_each_tensor(self, train_tensor, &trained)) return false;
    if (self->model.config.tied) {
        const jpo_tensor_info info = jpo_tensor_describe(&self->model.config, JPO_HEAD);
        char name[TENSOR_NAME];
        const jpo_tensor_info shared = jpo_tensor_describe(&self->model.config, JPO_EMBEDDING);
        model_tensor_name(name, all ? &shared : &info, 0, false);
        if (!train_named(self, &trained, name, JPO_HEAD, &info, 0, false)) return false;
    }
    if (!all && trained.found != PyDict_Size(offsets))
        return PyErr_SetString(PyExc_ValueError, "set_lora: a tensor to be trained is none of the model's"), false;
    return true;
}

static bool set_lora(model_object *self, PyObject *params, PyObject *grads, PyObject *items, PyObject *tensors) {
    Py_ssize_t count = PyTuple_GET_SIZE(items);
    place *places = PyMem_Calloc((size_t)count + 1, sizeof *places);
    if (!places) return PyErr_NoMemory(), false;
    bool done = read_places(places, items, count) && adopt(self, params, grads);
    if (done) {
        for (Py_ssize_t i = 0; done && i < count; i++) done = set_one(self, places + i);
        if (done && tensors) done = train_tensors(self, tensors, false);
        jpo_error err;
        if (done && jpo_pass_adapt(&self->pass, &err) != JPO_OK) done = (jpo_raise(&err), false);
        if (!done) forget(self);
    }
    PyMem_Free(places);
    return done;
}

PyObject *model_set_lora(model_object *self, PyObject *args) {
    PyObject *params, *grads, *list, *items, *tensors = NULL;
    if (!PyArg_ParseTuple(args, "OOO!|O!:set_lora", &params, &grads, &PyList_Type, &list, &PyDict_Type, &tensors) ||
        !model_enter(self))
        return NULL;
    bool done = false;
    if ((items = PyList_AsTuple(list))) {
        done = set_lora(self, params, grads, items, tensors);
        Py_DECREF(items);
    }
    model_leave(self);
    if (!done) return NULL;
    Py_RETURN_NONE;
}

PyObject *model_row_norms(model_object *self, PyObject *args) {
    Py_ssize_t layer, module;
    if (!PyArg_ParseTuple(args, "nn:row_norms", &layer, &module) || !model_enter(self)) return NULL;
    PyObject *out = NULL;
    jpo_pass *pass = &self->pass;
    const bool known = layer >= 0 && layer < self->model.config.layers && module >= 0 && module < JPO_MODULES;
    if (!known || !self->model.live.layer[layer].module[module].lora.magnitude) {
        PyErr_Format(PyExc_ValueError, "layer %zd, module %zd has no magnitudes", layer, module);
    } else {
        const jpo_linear *linear = &self->model.live.layer[layer].module[module];
        jpo_row_norms *norms = pass->norms + layer * JPO_MODULES + module;
        npy_intp n = linear->weight.n;
        jpo_status status;
        jpo_error err;
        JPO_COMPUTE_BEGIN
        status = jpo_row_norms_update(norms, &linear->weight, &linear->lora, false, &pass->scratch, &err);
        JPO_COMPUTE_END
        if (status != JPO_OK)
            jpo_raise(&err);
        else if ((out = PyArray_SimpleNew(1, &n, NPY_FLOAT32)))
            memcpy(PyArray_DATA((PyArrayObject *)out), norms->norm, (size_t)n * sizeof(float));
    }
    model_leave(self);
    return out;
}

PyObject *model_clear(model_object *self, PyObject *unused) {
    (void)unused;
    if (!model_enter(self)) return NULL;
    forget(self);
    model_leave(self);
    Py_RETURN_NONE;
}

PyObject *model_set_full(model_object *self, PyObject *args) {
    PyObject *params, *grads, *offsets;
    if (!PyArg_ParseTuple(args, "OOO!:set_full", &params, &grads, &PyDict_Type, &offsets) || !model_enter(self))
        return NULL;
    bool done = adopt(self, params, grads);
    self->model.full = done;
    if (done && !(done = train_tensors(self, offsets, true))) forget(self); /* the stored weights again */
    model_leave(self);
    if (!done) return NULL;
    Py_RETURN_NONE;
}

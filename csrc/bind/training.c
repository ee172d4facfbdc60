/* What a model trains: an adapter, or all of its weights, in flat vectors that Python owns. */
#include "bind/model.h"

#include <math.h>
#include <string.h>

static void forget(model_object *self) {
    for (int64_t i = 0; i < self->model.config.layers; i++)
        for (int m = 0; m < JPO_MODULES; m++) self->model.layer[i].module[m].lora = (jpo_lora){0};
    self->model.kept = false;
    Py_CLEAR(self->params);
    Py_CLEAR(self->grads);
}

static bool flat(PyObject *object, const char *name) {
    PyArrayObject *array = (PyArrayObject *)object;
    if (PyArray_Check(object) && PyArray_TYPE(array) == NPY_FLOAT32 && PyArray_NDIM(array) == 1 &&
        PyArray_ISCARRAY(array))
        return true;
    return PyErr_Format(PyExc_TypeError, "%s must be a writable, contiguous float32 vector", name), false;
}

/* The part [offset, offset + count) of a vector of `size` values, or NULL. */
static float *part(PyObject *vector, Py_ssize_t offset, int64_t count) {
    npy_intp size = PyArray_SIZE((PyArrayObject *)vector);
    if (offset < 0 || count > size || offset > size - count) return NULL;
    return (float *)PyArray_DATA((PyArrayObject *)vector) + offset;
}

static bool adopt(model_object *self, PyObject *params, PyObject *grads) {
    if (!flat(params, "params") || !flat(grads, "grads")) return false;
    if (PyArray_SIZE((PyArrayObject *)params) != PyArray_SIZE((PyArrayObject *)grads))
        return PyErr_SetString(PyExc_ValueError, "params and grads must have one length"), false;
    if (self->busy) return PyErr_SetString(PyExc_RuntimeError, "the model is at work in another thread"), false;
    forget(self);
    Py_INCREF(params), Py_INCREF(grads);
    self->params = params, self->grads = grads;
    return true;
}

static bool set_one(model_object *self, PyObject *item) {
    Py_ssize_t layer, module, offset_a, offset_b;
    long long r;
    double scale, dropout;
    if (!PyArg_ParseTuple(item, "nnLddnn", &layer, &module, &r, &scale, &dropout, &offset_a, &offset_b)) return false;
    jpo_model *model = &self->model;
    if (layer < 0 || layer >= model->config.layers || module < 0 || module >= JPO_MODULES || r < 1 || r > 1 << 20 ||
        !(dropout >= 0 && dropout < 1) || !isfinite(scale))
        return PyErr_Format(PyExc_ValueError, "adapter of layer %zd, module %zd: r %lld, scale or dropout out of range",
                            layer, module, r),
               false;
    jpo_linear *linear = &model->layer[layer].module[module];
    jpo_lora lora = {.r = r,
                     .scale = (float)scale,
                     .dropout = (float)dropout,
                     .a = part(self->params, offset_a, r * linear->weight.k),
                     .b = part(self->params, offset_b, r * linear->weight.n),
                     .da = part(self->grads, offset_a, r * linear->weight.k),
                     .db = part(self->grads, offset_b, r * linear->weight.n)};
    if (!lora.a || !lora.b)
        return PyErr_Format(PyExc_ValueError, "adapter of layer %zd, module %zd lies outside params", layer, module),
               false;
    linear->lora = lora;
    return true;
}

PyObject *model_set_lora(model_object *self, PyObject *args) {
    PyObject *params, *grads, *items;
    if (!PyArg_ParseTuple(args, "OOO!:set_lora", &params, &grads, &PyList_Type, &items) || !adopt(self, params, grads))
        return NULL;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(items); i++)
        if (!set_one(self, PyList_GET_ITEM(items, i))) {
            forget(self);
            return NULL;
        }
    Py_RETURN_NONE;
}

PyObject *model_clear(model_object *self, PyObject *unused) {
    (void)unused;
    if (self->busy) return PyErr_Format(PyExc_RuntimeError, "the model is at work in another thread");
    forget(self);
    Py_RETURN_NONE;
}

/* The tensor's values in params become the model's own; its gradient stands at the same offset of grads. */
static bool bind_tensor(model_object *self, PyObject *offsets, const char *name, int64_t count, const void **data,
                        float **gradient) {
    if (!*data) return true; /* a bias that this model has not */
    PyObject *item = PyDict_GetItemString(offsets, name);
    if (!item) return PyErr_Format(PyExc_ValueError, "set_full lacks the tensor %s", name), false;
    Py_ssize_t offset = PyLong_AsSsize_t(item);
    if (offset == -1 && PyErr_Occurred()) return false;
    float *values = part(self->params, offset, count);
    if (!values) return PyErr_Format(PyExc_ValueError, "tensor %s lies outside params", name), false;
    *data = values;
    *gradient = part(self->grads, offset, count);
    return true;
}

static bool bind_layer(model_object *self, PyObject *offsets, int64_t index) {
    jpo_layer *layer = self->model.layer + index;
    char name[128];
    for (int m = 0; m < JPO_MODULES; m++) {
        jpo_linear *linear = layer->module + m;
        snprintf(name, sizeof name, "model.layers.%lld.%s.weight", (long long)index, jpo_module_name((jpo_module)m));
        if (!bind_tensor(self, offsets, name, linear->weight.n * linear->weight.k, &linear->weight.data,
                         &linear->dweight))
            return false;
        linear->weight.dtype = JPO_F32;
        snprintf(name, sizeof name, "model.layers.%lld.%s.bias", (long long)index, jpo_module_name((jpo_module)m));
        if (!bind_tensor(self, offsets, name, linear->weight.n, (const void **)&linear->bias, &linear->dbias))
            return false;
    }
    snprintf(name, sizeof name, "model.layers.%lld.input_layernorm.weight", (long long)index);
    if (!bind_tensor(self, offsets, name, self->model.config.hidden, (const void **)&layer->norm1, &layer->dnorm1))
        return false;
    snprintf(name, sizeof name, "model.layers.%lld.post_attention_layernorm.weight", (long long)index);
    return bind_tensor(self, offsets, name, self->model.config.hidden, (const void **)&layer->norm2, &layer->dnorm2);
}

PyObject *model_set_full(model_object *self, PyObject *args) {
    PyObject *params, *grads, *offsets;
    if (!PyArg_ParseTuple(args, "OOO!:set_full", &params, &grads, &PyDict_Type, &offsets)) return NULL;
    jpo_model *model = &self->model;
    if (!adopt(self, params, grads)) return NULL;
    const jpo_config *c = &model->config;
    if (!bind_tensor(self, offsets, "model.embed_tokens.weight", c->vocab * c->hidden, &model->embedding.data,
                     &model->dembedding) ||
        !bind_tensor(self, offsets, "model.norm.weight", c->hidden, (const void **)&model->norm, &model->dnorm))
        return NULL;
    model->embedding.dtype = JPO_F32;
    if (c->tied) {
        model->head.data = model->embedding.data, model->dhead = model->dembedding;
    } else if (!bind_tensor(self, offsets, "lm_head.weight", c->vocab * c->hidden, &model->head.data, &model->dhead)) {
        return NULL;
    }
    model->head.dtype = JPO_F32;
    for (int64_t i = 0; i < c->layers; i++)
        if (!bind_layer(self, offsets, i)) return NULL;
    model->full = true;
    Py_RETURN_NONE;
}

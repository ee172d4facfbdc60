/* A configuration from Python's dictionary, and the list of tensors for Python. */
#include "bind/model.h"

#include <stddef.h>
#include <string.h>

#include "bind/arguments.h"

static PyObject *get(PyObject *dict, const char *key) {
    PyObject *item = arg_item(dict, key);
    if (!item && !PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "config lacks %s", key);
    return item;
}

static bool get_int(PyObject *dict, const char *key, int64_t *out) {
    PyObject *item = get(dict, key);
    if (!item) return false;
    *out = PyLong_AsLongLong(item);
    return !(*out == -1 && PyErr_Occurred());
}

static bool get_double(PyObject *dict, const char *key, double *out) {
    PyObject *item = get(dict, key);
    if (!item) return false;
    *out = PyFloat_AsDouble(item);
    return !(*out == -1 && PyErr_Occurred());
}

/* The index of the choice that dict[key] names. */
static bool get_choice(PyObject *dict, const char *key, const char *const *names, int count, int *out) {
    PyObject *item = get(dict, key);
    if (!item) return false;
    for (*out = 0; *out < count; ++*out)
        if (PyUnicode_Check(item) && PyUnicode_CompareWithASCIIString(item, names[*out]) == 0) return true;
    return PyErr_Format(PyExc_ValueError, "config: %s = %R is no choice of the engine", key, item), false;
}

#define CHOICE(enumeration, count, name_of, key, field)                            \
    do {                                                                           \
        const char *names[count];                                                  \
        int index;                                                                 \
        for (int i = 0; i < (int)(count); i++) names[i] = name_of((enumeration)i); \
        if (!get_choice(dict, key, names, (int)(count), &index)) return false;     \
        (field) = (enumeration)index;                                              \
    } while (0)

static bool read_choices(PyObject *dict, jpo_config *c) {
    CHOICE(jpo_norm_kind, JPO_NORMS, jpo_norm_name, "norm", c->norm);
    CHOICE(jpo_norm_place, JPO_NORM_PLACES, jpo_norm_place_name, "norm_place", c->norm_place);
    CHOICE(jpo_qk_norm, JPO_QK_NORMS, jpo_qk_norm_name, "qk_norm", c->qk_norm);
    CHOICE(jpo_activation, JPO_ACTIVATIONS, jpo_activation_name, "activation", c->activation);
    return true;
}

static bool read_numbers(PyObject *dict, jpo_config *c) {
    const struct {
        const char *key;
        int64_t *to;
    } sizes[] = {{"vocab_size", &c->vocab},
                 {"hidden_size", &c->hidden},
                 {"num_hidden_layers", &c->layers},
                 {"num_attention_heads", &c->heads},
                 {"num_key_value_heads", &c->kv_heads},
                 {"head_dim", &c->head_dim},
                 {"intermediate_size", &c->intermediate},
                 {"max_position_embeddings", &c->max_positions}};
    const struct {
        const char *key;
        float *to;
    } numbers[] = {{"norm_eps", &c->eps},
                   {"attention_scale", &c->attention_scale},
                   {"attention_softcap", &c->attention_softcap},
                   {"logits_softcap", &c->logits_softcap},
                   {"logits_multiplier", &c->logits_multiplier},
                   {"embedding_multiplier", &c->embedding_multiplier},
                   {"residual_multiplier", &c->residual_multiplier}};
    const struct {
        const char *key;
        bool *to;
    } flags[] = {{"gated", &c->gated},
                 {"norm_bias", &c->norm_bias},
                 {"parallel", &c->parallel},
                 {"tie_word_embeddings", &c->tied},
                 {"learned_positions", &c->learned_positions}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (!get_int(dict, sizes[i].key, sizes[i].to)) return false;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        double value;
        if (!get_double(dict, numbers[i].key, &value)) return false;
        *numbers[i].to = (float)value;
    }
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        int64_t value;
        if (!get_int(dict, flags[i].key, &value)) return false;
        *flags[i].to = value != 0;
    }
    return true;
}

/* The linear modules that have a bias, by name, as bits. */
static bool read_biases(PyObject *dict, jpo_config *c) {
    PyObject *names = get(dict, "biases");
    PyObject *fast = names ? PySequence_Fast(names, "config: biases must be a list of names") : NULL;
    for (Py_ssize_t i = 0; fast && i < PySequence_Fast_GET_SIZE(fast); i++) {
        PyObject *name = PySequence_Fast_GET_ITEM(fast, i);
        int m = 0;
        while (m < JPO_MODULES &&
               !(PyUnicode_Check(name) &&
                 PyUnicode_CompareWithASCIIString(name, jpo_tensor_describe(c, (jpo_tensor)m).name) == 0))
            m++;
        if (m == JPO_MODULES) {
            PyErr_Format(PyExc_ValueError, "config: biases: there is no module %R", name);
            Py_CLEAR(fast);
            break;
        }
        c->biases |= (int64_t)1 << m;
    }
    Py_XDECREF(fast);
    return fast != NULL;
}

static bool read_rotary(PyObject *dict, jpo_rotary *rotary, PyArrayObject **frequencies,
                        PyArrayObject **long_frequencies) {
    int64_t pairs;
    PyObject *item = PyDict_Check(dict) ? get(dict, "inv_freq") : NULL;
    if (!PyDict_Check(dict)) PyErr_SetString(PyExc_TypeError, "config: rotary must be a list of dictionaries");
    if (!item || !(*frequencies = arg_copy(item, "inv_freq", NPY_FLOAT64, 1)) || !get_int(dict, "pairs", &pairs) ||
        !get_double(dict, "attention_factor", &rotary->factor))
        return false;
    PyObject *other = arg_item(dict, "long_inv_freq");
    if (!other && PyErr_Occurred()) return false;
    if (other && other != Py_None) {
        if (!(*long_frequencies = arg_copy(other, "long_inv_freq", NPY_FLOAT64, 1)) ||
            !get_int(dict, "original", &rotary->original))
            return false;
        if (PyArray_SIZE(*long_frequencies) != PyArray_SIZE(*frequencies))
            return PyErr_SetString(PyExc_ValueError, "config: long_inv_freq must be as long as inv_freq"), false;
        rotary->long_freq = PyArray_DATA(*long_frequencies);
    }
    rotary->half = PyArray_SIZE(*frequencies), rotary->pairs = pairs != 0,
    rotary->inv_freq = PyArray_DATA(*frequencies);
    return true;
}

static bool read_rotaries(PyObject *dict, config_arrays *arrays, jpo_config *c) {
    PyObject *list = get(dict, "rotary");
    if (!list) return false;
    if (!PyList_Check(list) || PyList_GET_SIZE(list) > MOST_ROTARIES)
        return PyErr_Format(PyExc_ValueError, "config: rotary must be a list of at most %d", MOST_ROTARIES), false;
    c->rotaries = PyList_GET_SIZE(list), c->rotary = arrays->rotary;
    for (int64_t i = 0; i < c->rotaries; i++)
        if (!read_rotary(PyList_GET_ITEM(list, i), arrays->rotary + i, arrays->frequencies + i,
                         arrays->long_frequencies + i))
            return false;
    return true;
}

static bool read_layers(PyObject *dict, config_arrays *arrays, jpo_config *c) {
    PyObject *windows = get(dict, "layer_window"), *rotary = windows ? get(dict, "layer_rotary") : NULL;
    if (!rotary || !(arrays->windows = arg_copy(windows, "layer_window", NPY_INT64, 1)) ||
        !(arrays->layer_rotary = arg_copy(rotary, "layer_rotary", NPY_INT64, 1)))
        return false;
    if (PyArray_SIZE(arrays->windows) != c->layers || PyArray_SIZE(arrays->layer_rotary) != c->layers)
        return PyErr_Format(PyExc_ValueError,
                            "config: layer_window and layer_rotary need one entry for each of %lld "
                            "layers (num_hidden_layers)",
                            (long long)c->layers),
               false;
    arrays->layer = PyMem_Calloc((size_t)c->layers + 1, sizeof *arrays->layer);
    if (!arrays->layer) return PyErr_NoMemory(), false;
    const int64_t *window = PyArray_DATA(arrays->windows), *index = PyArray_DATA(arrays->layer_rotary);
    for (int64_t i = 0; i < c->layers; i++) arrays->layer[i] = (jpo_layer_choice){window[i], index[i]};
    c->layer = arrays->layer;
    return true;
}

bool config_read(PyObject *dict, jpo_config *c, config_arrays *arrays) {
    *c = (jpo_config){0};
    *arrays = (config_arrays){0};
    if (!read_numbers(dict, c) || !read_choices(dict, c) || !read_biases(dict, c) || !read_rotaries(dict, arrays, c) ||
        !read_layers(dict, arrays, c))
        return false;
    jpo_error err;
    if (jpo_config_check(c, &err) == JPO_OK) return true;
    jpo_raise(&err);
    return false;
}

void config_release(config_arrays *arrays) {
    for (int i = 0; i < MOST_ROTARIES; i++) {
        Py_XDECREF(arrays->frequencies[i]);
        Py_XDECREF(arrays->long_frequencies[i]);
    }
    Py_XDECREF(arrays->windows);
    Py_XDECREF(arrays->layer_rotary);
    PyMem_Free(arrays->layer);
}

/* (name, GGUF name, kind, per layer, shape or None, has a bias). */
static PyObject *tensor_row(const jpo_tensor_info *info, bool sized) {
    static const char *const kinds[] = {"linear", "table", "vector"};
    PyObject *shape = Py_NewRef(Py_None);
    if (sized)
        Py_SETREF(shape, info->kind == JPO_VECTOR ? Py_BuildValue("(L)", (long long)info->n)
                                                  : Py_BuildValue("(LL)", (long long)info->n, (long long)info->k));
    return Py_BuildValue("(sssNNN)", info->name, info->gguf, kinds[info->kind],
                         PyBool_FromLong(info->scope == JPO_PER_LAYER), shape, PyBool_FromLong(info->bias));
}

/* Rows of all tensors, or of those that a configuration has, with their shapes. */
static PyObject *tensor_list(const jpo_config *c, bool sized) {
    PyObject *list = PyList_New(0);
    for (int t = 0; list && t < JPO_TENSORS; t++) {
        jpo_tensor_info info = jpo_tensor_describe(c, (jpo_tensor)t);
        if (sized && !info.present) continue;
        list = arg_appended(list, tensor_row(&info, sized));
    }
    return list;
}

static PyObject *tensors(PyObject *self, PyObject *dict) {
    (void)self;
    if (!PyDict_Check(dict)) return PyErr_Format(PyExc_TypeError, "config must be a dictionary, got %R", Py_TYPE(dict));
    jpo_config c;
    config_arrays arrays;
    PyObject *list = config_read(dict, &c, &arrays) ? tensor_list(&c, true) : NULL;
    config_release(&arrays);
    return list;
}

static PyMethodDef methods[] = {
    {"tensors", tensors, METH_O,
     "tensors(config) -> [(name, GGUF name, kind, per layer, shape, has a bias)] of the tensors that a model of this\n"
     "configuration has; those of a layer stand once."},
    {NULL, NULL, 0, NULL}};

int jpo_bind_config(PyObject *module) {
    const jpo_config none = {0};
    if (arg_published(module, "TENSORS", tensor_list(&none, false)) < 0) return -1;
    return PyModule_AddFunctions(module, methods);
}

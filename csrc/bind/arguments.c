/* The checks of bind/arguments.h. */
#include "bind/arguments.h"

#include <string.h>

#include "base/cpu.h"

/* "float32" for NPY_FLOAT32: NumPy's own name without its module. */
static const char *type_name(int type) {
    PyArray_Descr *descr = PyArray_DescrFromType(type);
    const char *name = descr->typeobj->tp_name;
    Py_DECREF(descr);
    return strrchr(name, '.') + 1;
}

static bool wrong_array(PyObject *object, const char *name, int type, int dimensions, bool writable) {
    char rank[32] = "";
    if (dimensions >= 0) snprintf(rank, sizeof rank, " of %d dimension(s)", dimensions);
    if (PyArray_Check(object))
        return PyErr_Format(PyExc_TypeError, "%s must be a contiguous%s %s array%s, got %R of %d dimension(s)", name,
                            writable ? " writable" : "", type_name(type), rank, PyArray_DESCR((PyArrayObject *)object),
                            PyArray_NDIM((PyArrayObject *)object)),
               false;
    return PyErr_Format(PyExc_TypeError, "%s must be a contiguous%s %s array%s, got %R", name,
                        writable ? " writable" : "", type_name(type), rank, Py_TYPE(object)),
           false;
}

bool arg_array(PyObject *object, const char *name, int type, int dimensions, bool writable) {
    PyArrayObject *array = (PyArrayObject *)object;
    if (PyArray_Check(object) && PyArray_TYPE(array) == type && (dimensions < 0 || PyArray_NDIM(array) == dimensions) &&
        PyArray_ISCARRAY_RO(array) && (!writable || PyArray_ISWRITEABLE(array)))
        return true;
    return wrong_array(object, name, type, dimensions, writable);
}

PyArrayObject *arg_copy(PyObject *object, const char *name, int type, int dimensions) {
    PyArrayObject *array = (PyArrayObject *)PyArray_FROM_OTF(object, type, NPY_ARRAY_CARRAY | NPY_ARRAY_ENSURECOPY);
    if (array && PyArray_NDIM(array) != dimensions) {
        PyErr_Format(PyExc_ValueError, "%s must have %d dimension(s), got %d", name, dimensions, PyArray_NDIM(array));
        Py_CLEAR(array);
    }
    return array;
}

PyObject *arg_item(PyObject *dict, const char *key) {
    PyObject *name = PyUnicode_FromString(key);
    PyObject *item = name ? PyDict_GetItemWithError(dict, name) : NULL;
    Py_XDECREF(name);
    return item;
}

/* The container after an item went in, or none; the item's reference is taken either way. */
static PyObject *filled(PyObject *container, PyObject *item, bool done) {
    Py_XDECREF(item);
    if (done) return container;
    Py_DECREF(container);
    return NULL;
}

PyObject *arg_appended(PyObject *list, PyObject *item) {
    return filled(list, item, item && PyList_Append(list, item) == 0);
}

PyObject *arg_entered(PyObject *dict, const char *key, PyObject *item) {
    return filled(dict, item, item && PyDict_SetItemString(dict, key, item) == 0);
}

int arg_published(PyObject *module, const char *name, PyObject *object) {
    const int failed = PyModule_AddObjectRef(module, name, object);
    Py_XDECREF(object);
    return failed;
}

bool arg_range(const char *name, long long value, long long low, long long high) {
    if (value >= low && value <= high) return true;
    return PyErr_Format(PyExc_ValueError, "%s must lie in %lld..%lld, got %lld", name, low, high, value), false;
}

bool arg_matrix(PyObject *object, const char *name, bool writable, PyArrayObject **array, int64_t *stride) {
    PyArrayObject *a = (PyArrayObject *)object;
    const npy_intp item = sizeof(float);
    bool good = PyArray_Check(object) && PyArray_TYPE(a) == NPY_FLOAT32 && PyArray_NDIM(a) == 2 &&
                PyArray_ISALIGNED(a) && PyArray_ISNOTSWAPPED(a) && (!writable || PyArray_ISWRITEABLE(a));
    if (good && PyArray_SIZE(a)) {
        good &= PyArray_DIM(a, 1) == 1 || PyArray_STRIDE(a, 1) == item;
        good &= PyArray_DIM(a, 0) == 1 || PyArray_STRIDE(a, 0) / item >= PyArray_DIM(a, 1);
    }
    if (!good)
        return PyErr_Format(PyExc_TypeError,
                            "%s must be an aligned%s float32 array of 2 dimensions with contiguous columns", name,
                            writable ? " writable" : ""),
               false;
    *array = a;
    *stride = PyArray_SIZE(a) && PyArray_DIM(a, 0) > 1 ? PyArray_STRIDE(a, 0) / item : PyArray_DIM(a, 1);
    return true;
}

bool arg_when_idle(const char *what, void (*change)(void *), void *context) {
    if (jpo_compute_idle(change, context)) return true;
    return PyErr_Format(PyExc_RuntimeError, "another thread computes: wait until it ends before %s", what), false;
}

typedef struct {
    jpo_isa isa;
    bool chosen;
} isa_choice;

static void choose_isa(void *context) {
    isa_choice *choice = context;
    choice->chosen = jpo_cpu_choose(choice->isa);
}

PyObject *arg_choose_isa(PyObject *name) {
    for (int isa = 0; isa < JPO_ISA_COUNT; isa++)
        if (PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, jpo_isa_name((jpo_isa)isa)) == 0) {
            isa_choice choice = {.isa = (jpo_isa)isa};
            if (!arg_when_idle("another instruction set is chosen", choose_isa, &choice)) return NULL;
            return PyBool_FromLong(choice.chosen);
        }
    return PyErr_Format(PyExc_ValueError, "no instruction set is called %R", name);
}

int arg_poll_signals(void) {
    PyGILState_STATE state = PyGILState_Ensure();
    int raised = PyErr_CheckSignals();
    PyGILState_Release(state);
    return raised;
}

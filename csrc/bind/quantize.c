/* Conversion of float32 rows to the stored types of files. */
#include "ops/quantize.h"

#include "bind/arguments.h"
#include "bind/bind.h"

/* quantize_rows(values (N, K) float32, dtype) -> bytes: the rows in the stored type's blocks. */
static PyObject *quantize_rows(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *object;
    const char *name;
    if (!PyArg_ParseTuple(args, "Os", &object, &name)) return NULL;
    const int dtype = jpo_dtype_from_name(name);
    if (dtype < 0 || !jpo_quantizes((jpo_dtype)dtype))
        return PyErr_Format(PyExc_ValueError, "dtype: %s is not written; see QUANTIZED", name);
    PyArrayObject *values;
    int64_t stride;
    if (!arg_matrix(object, "values", false, &values, &stride)) return NULL;
    const int64_t n = PyArray_DIM(values, 0), k = PyArray_DIM(values, 1);
    if (stride != k || k % jpo_dtype_block((jpo_dtype)dtype))
        return PyErr_Format(PyExc_ValueError, "values: expected contiguous rows of a multiple of %lld values for %s",
                            (long long)jpo_dtype_block((jpo_dtype)dtype), name);
    PyObject *out = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)jpo_dtype_row_bytes((jpo_dtype)dtype, k) * n);
    if (!out || !n || !k) return out;
    uint8_t *bytes = (uint8_t *)PyByteArray_AsString(out);
    const float *data = PyArray_DATA(values);
    JPO_COMPUTE_BEGIN
    jpo_quantize(bytes, data, (jpo_dtype)dtype, n * k);
    JPO_COMPUTE_END
    return out;
}

static PyMethodDef methods[] = {
    {"quantize_rows", quantize_rows, METH_VARARGS,
     "quantize_rows(values (N, K) float32, dtype) -> bytearray: the rows in the blocks of a type of QUANTIZED."},
    {NULL, NULL, 0, NULL}};

/* QUANTIZED: names of the types that quantize_rows writes. */
int jpo_bind_quantize(PyObject *module) {
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < JPO_DTYPE_COUNT; i++) {
        if (!jpo_quantizes((jpo_dtype)i)) continue;
        list = arg_appended(list, PyUnicode_FromString(jpo_dtype_name((jpo_dtype)i)));
    }
    if (arg_published(module, "QUANTIZED", list) < 0) return -1;
    return PyModule_AddFunctions(module, methods);
}

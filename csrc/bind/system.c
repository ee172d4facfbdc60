/* What `jpo doctor` asks: threads, processor, BLAS. */
#include "bind/bind.h"
#include "base/cpu.h"
#include "bind/arguments.h"
#include "ops/blas.h"

/* The names of a set of features. */
static PyObject *feature_names(uint32_t features) {
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < JPO_CPU_FEATURES; i++) {
        if (!(features >> i & 1)) continue;
        list = arg_appended(list, PyUnicode_FromString(jpo_cpu_feature_name(i)));
    }
    return list;
}

static PyObject *system_info(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    const jpo_cpu *cpu = jpo_cpu_get();
    return Py_BuildValue("{s:s,s:s,s:N,s:N,s:z,s:O,s:O,s:s,s:s,s:i}", "isa", jpo_isa_name(cpu->chosen), "isa_best",
                         jpo_isa_name(cpu->best), "features", feature_names(cpu->features), "masked",
                         feature_names(cpu->machine & ~cpu->features), "isa_unavailable", cpu->ignored, "avx512_vnni",
                         jpo_cpu_has(JPO_CPU_VNNI) ? Py_True : Py_False, "avx512_bf16",
                         jpo_cpu_has(JPO_CPU_BF16) ? Py_True : Py_False, "blas", jpo_blas_config(), "blas_kernel",
                         jpo_blas_kernel(), "threads", jpo_threads_asked());
}

static PyObject *get_num_threads(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return PyLong_FromLong(jpo_threads_asked());
}

static PyObject *set_num_threads(PyObject *self, PyObject *argument) {
    (void)self;
    long count = PyLong_AsLong(argument);
    if (count == -1 && PyErr_Occurred()) return NULL;
    if (!arg_range("num_threads", count, 1, JPO_MAX_THREADS)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    jpo_threads_set((int)count);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"system_info", system_info, METH_NOARGS,
     "A dict: isa, isa_best, features, masked, isa_unavailable, avx512_vnni, avx512_bf16, blas, blas_kernel, threads."},
    {"get_num_threads", get_num_threads, METH_NOARGS, "The number of threads that kernels use."},
    {"set_num_threads", set_num_threads, METH_O,
     "Sets the number of threads that kernels use (1..256); computations in progress in other threads end first."},
    {NULL, NULL, 0, NULL}};

int jpo_bind_system(PyObject *module) { return PyModule_AddFunctions(module, methods); }

/* AdamW and the gradient's norm over flat float32 buffers. */
#include "bind/arguments.h"

#include <math.h>

#include "base/size.h"
#include "kernels/kernels.h"

enum { BLOCK = 65536 }; /* values of a task: the cut, and so the sums' order, does not depend on the threads */

/* A contiguous, aligned, native float32 vector; writable where asked; borrowed. */
static float *vector(PyObject *object, const char *name, bool writable, npy_intp *n) {
    PyArrayObject *array = (PyArrayObject *)object;
    if (!arg_array(object, name, NPY_FLOAT32, 1, writable)) return NULL;
    if (*n >= 0 && PyArray_DIM(array, 0) != *n) {
        PyErr_Format(PyExc_ValueError, "%s must hold %zd values as params does, got %zd", name, (Py_ssize_t)*n,
                     (Py_ssize_t)PyArray_DIM(array, 0));
        return NULL;
    }
    *n = PyArray_DIM(array, 0);
    return PyArray_DATA(array);
}

typedef struct {
    float *p, *m, *v;
    const float *g;
    int64_t n;
    double *sums;
    jpo_adamw constants;
} job;

static void adamw_task(void *context, int64_t task, int thread) {
    (void)thread;
    job *j = context;
    int64_t first = task * BLOCK, n = jpo_min64(BLOCK, j->n - first);
    jpo_kernels_get()->adamw(j->p + first, j->m + first, j->v + first, j->g + first, n, &j->constants);
}

static void norm_task(void *context, int64_t task, int thread) {
    (void)thread;
    job *j = context;
    int64_t first = task * BLOCK;
    j->sums[task] = jpo_kernels_get()->sum_squares(j->g + first, jpo_min64(BLOCK, j->n - first));
}

static PyObject *adamw_step(PyObject *self, PyObject *args, PyObject *kwargs) {
    (void)self;
    static char *names[] = {"params", "grads",        "m",    "v",     "lr", "beta1", "beta2",
                            "eps",    "weight_decay", "step", "scale", NULL};
    PyObject *params, *grads, *m, *v;
    double lr, beta1, beta2, eps, decay, scale = 1.0;
    long long step;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOdddddL|d:adamw_step", names, &params, &grads, &m, &v, &lr,
                                     &beta1, &beta2, &eps, &decay, &step, &scale))
        return NULL;
    npy_intp n = -1;
    job j = {0};
    if (!(j.p = vector(params, "params", true, &n)) || !(j.g = vector(grads, "grads", false, &n)) ||
        !(j.m = vector(m, "m", true, &n)) || !(j.v = vector(v, "v", true, &n)))
        return NULL;
    if (step < 1) return PyErr_Format(PyExc_ValueError, "step counts from 1, got %lld", step);
    if (!(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1))
        return PyErr_Format(PyExc_ValueError, "beta1 and beta2 must lie in [0, 1)");
    if (!(eps > 0)) return PyErr_Format(PyExc_ValueError, "eps must be positive");
    j.n = n;
    j.constants = (jpo_adamw){(float)beta1,
                              (float)beta2,
                              (float)eps,
                              (float)scale,
                              (float)(lr / (1 - pow(beta1, (double)step))),
                              (float)sqrt(1 - pow(beta2, (double)step)),
                              (float)(1 - lr * decay)};
    JPO_COMPUTE_BEGIN
    jpo_parallel(jpo_ceil_div(n, BLOCK), adamw_task, &j);
    JPO_COMPUTE_END
    Py_RETURN_NONE;
}

static PyObject *grad_squares(PyObject *self, PyObject *grads) {
    (void)self;
    npy_intp n = -1;
    job j = {0};
    if (!(j.g = vector(grads, "grads", false, &n))) return NULL;
    j.n = n;
    npy_intp tasks = jpo_ceil_div(n, BLOCK);
    PyObject *sums = PyArray_SimpleNew(1, &tasks, NPY_DOUBLE);
    if (!sums) return NULL;
    j.sums = PyArray_DATA((PyArrayObject *)sums);
    JPO_COMPUTE_BEGIN
    jpo_parallel(tasks, norm_task, &j);
    JPO_COMPUTE_END
    return sums;
}

static PyObject *grad_norm(PyObject *self, PyObject *grads) {
    PyObject *sums = grad_squares(self, grads);
    if (!sums) return NULL;
    const double *values = PyArray_DATA((PyArrayObject *)sums);
    double total = 0;
    for (npy_intp i = 0; i < PyArray_DIM((PyArrayObject *)sums, 0); i++) total += values[i];
    Py_DECREF(sums);
    return PyFloat_FromDouble(sqrt(total));
}

static PyMethodDef methods[] = {
    {"adamw_step", (PyCFunction)(void (*)(void))adamw_step, METH_VARARGS | METH_KEYWORDS,
     "adamw_step(params, grads, m, v, *, lr, beta1, beta2, eps, weight_decay, step, scale=1.0)\n\n"
     "One AdamW update in place (arXiv 1711.05101, algorithm 2) over (P,) float32 vectors; scale multiplies grads."},
    {"grad_norm", grad_norm, METH_O,
     "grad_norm(grads) -> float: the Euclidean norm, summed in float64 in a fixed order."},
    {"grad_squares", grad_squares, METH_O,
     "grad_squares(grads) -> float64 array: the sum of squares of every 65536 values, whose sum in order grad_norm "
     "takes the root of."},
    {NULL, NULL, 0, NULL}};

int jpo_bind_optimizer(PyObject *module) { return PyModule_AddFunctions(module, methods); }

/* One loss over float64 vectors. Arrays are checked here, numbers in jpo/objectives.py, which combines losses: what it
   refuses is computed as the formula says (exo_pair without smoothing: infinite). */
#include "bind/arguments.h"
#include "base/size.h"
#include "objective/losses.h"

/* A float64 vector of `n` values, or NULL for None; false with an error otherwise. Borrowed. */
static bool vector(PyObject *object, const char *name, int type, npy_intp n, const void **data) {
    *data = NULL;
    if (object == Py_None) return true;
    PyArrayObject *array = (PyArrayObject *)object;
    if (!arg_array(object, name, type, -1, false)) return false;
    if (PyArray_SIZE(array) != n)
        return PyErr_Format(PyExc_TypeError, "%s must hold %zd values, got %zd", name, (Py_ssize_t)n,
                            (Py_ssize_t)PyArray_SIZE(array)),
               false;
    *data = PyArray_DATA(array);
    return true;
}

static PyObject *preference(PyObject *self, PyObject *args) {
    (void)self;
    int loss, divergence, normalize;
    PyObject *lp_w, *lp_l, *ref_w, *ref_l, *n_w, *n_l, *weights, *groups, *ties;
    jpo_preference p = {0};
    if (!PyArg_ParseTuple(args, "iOOOOOOOOOddddddddddip:preference", &loss, &lp_w, &lp_l, &ref_w, &ref_l, &n_w, &n_l,
                          &weights, &groups, &ties, &p.beta, &p.smoothing, &p.gamma, &p.lambda, &p.tau, &p.kl,
                          &p.desirable, &p.undesirable, &p.alpha, &p.nu, &divergence, &normalize))
        return NULL;
    if (!arg_range("loss", loss, 0, jpo_loss_count - 1) ||
        !arg_range("divergence", divergence, 0, JPO_ALPHA_DIVERGENCE) ||
        !arg_array(lp_w, "policy_chosen", NPY_FLOAT64, -1, false))
        return NULL;
    npy_intp n = p.pairs = PyArray_SIZE((PyArrayObject *)lp_w);
    const npy_intp square = (npy_intp)jpo_size_product((size_t)n, (size_t)n); /* below 0: no array has so many */
    p.divergence = (jpo_divergence)divergence;
    p.length_normalize = normalize;
    p.lp_w = PyArray_DATA((PyArrayObject *)lp_w);
    if (!vector(lp_l, "policy_rejected", NPY_FLOAT64, n, (const void **)&p.lp_l) ||
        !vector(ref_w, "ref_chosen", NPY_FLOAT64, n, (const void **)&p.ref_w) ||
        !vector(ref_l, "ref_rejected", NPY_FLOAT64, n, (const void **)&p.ref_l) ||
        !vector(n_w, "chosen_lengths", NPY_FLOAT64, n, (const void **)&p.n_w) ||
        !vector(n_l, "rejected_lengths", NPY_FLOAT64, n, (const void **)&p.n_l) ||
        !vector(weights, "rpo_weights", NPY_FLOAT64, square, (const void **)&p.rpo_weights) ||
        !vector(groups, "groups", NPY_INT64, n, (const void **)&p.groups) ||
        !vector(ties, "ties", NPY_INT64, n, (const void **)&p.ties))
        return NULL;
    unsigned reads = jpo_losses[loss].reads;
    bool lengths = !(reads & JPO_READS_LENGTH_NORMALIZE) || normalize;
    if (!p.lp_l || ((reads & JPO_READS_REFERENCE) && (!p.ref_w || !p.ref_l)) ||
        (lengths && (reads & JPO_READS_CHOSEN_LENGTHS) && !p.n_w) ||
        (lengths && (reads & JPO_READS_REJECTED_LENGTHS) && !p.n_l) ||
        ((reads & JPO_READS_RPO_WEIGHTS) && !p.rpo_weights) || ((reads & JPO_READS_GROUPS) && !p.groups))
        return PyErr_Format(PyExc_ValueError, "loss %s lacks an array that it reads", jpo_losses[loss].name);
    PyObject *out[3];
    for (int i = 0; i < 3; i++) out[i] = PyArray_SimpleNew(1, &n, NPY_FLOAT64);
    if (!out[0] || !out[1] || !out[2]) {
        for (int i = 0; i < 3; i++) Py_XDECREF(out[i]);
        return NULL;
    }
    double *data[3];
    for (int i = 0; i < 3; i++) data[i] = PyArray_DATA((PyArrayObject *)out[i]);
    jpo_error err;
    jpo_status status;
    JPO_COMPUTE_BEGIN
    status = jpo_preference_run(&p, jpo_losses + loss, data[0], data[1], data[2], &err);
    JPO_COMPUTE_END
    if (status == JPO_OK) return Py_BuildValue("(NNN)", out[0], out[1], out[2]);
    for (int i = 0; i < 3; i++) Py_DECREF(out[i]);
    return jpo_raise(&err);
}

static PyMethodDef methods[] = {
    {"preference", preference, METH_VARARGS, "One loss -> (losses, d_chosen, d_rejected), each (B,), before the mean."},
    {NULL, NULL, 0, NULL}};

int jpo_bind_objective(PyObject *module) {
    PyObject *losses = PyList_New(0);
    for (int i = 0; losses && i < jpo_loss_count; i++)
        losses = arg_appended(losses, Py_BuildValue("(sI)", jpo_losses[i].name, jpo_losses[i].reads));
    if (arg_published(module, "LOSSES", losses) < 0) return -1;
    return PyModule_AddFunctions(module, methods);
}

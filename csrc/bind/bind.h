/* Shared by the files of bind/: each public group adds its functions to the module through one hook. */
#ifndef JPO_BIND_BIND_H
#define JPO_BIND_BIND_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "base/status.h"

/* Raises err as its Python exception; returns NULL, so that callers write `return jpo_raise(&err)`. */
PyObject *jpo_raise(const jpo_error *err);

/* Each adds its methods and types to the module `jpo._core`; 0, or -1 with an exception set. One line adds a group. */
#define JPO_BIND_GROUPS(X) \
    X(system)              \
    X(kernels)             \
    X(objective)           \
    X(linear)              \
    X(config)              \
    X(model)               \
    X(generation)          \
    X(optimizer)           \
    X(quantize)

#define JPO_BIND_GROUP(name) int jpo_bind_##name(PyObject *module);
JPO_BIND_GROUPS(JPO_BIND_GROUP)
#undef JPO_BIND_GROUP

#endif

/* The Python type jpo._core.Model, shared by the files that add its methods. */
#ifndef JPO_BIND_MODEL_H
#define JPO_BIND_MODEL_H

#include "bind/bind.h"
#include "bind/numpy.h"
#include "model/model.h"

typedef struct {
    PyObject_HEAD jpo_model model;
    PyObject *owners;         /* a list: what the weights' memory belongs to */
    PyObject *params, *grads; /* flat float32 vectors of what is trained, or NULL */
    bool busy;                /* a pass runs without the GIL: a second one must not start */
} model_object;

/* Marks the model busy; false with RuntimeError where it already is. */
bool model_enter(model_object *self);
/* A contiguous int32 array of the given rank, or NULL with an error that names it; a new reference. */
PyArrayObject *model_int32(PyObject *object, const char *name, int dimensions);

/* Methods of bind/training.c and bind/generation.c. */
PyObject *model_set_lora(model_object *self, PyObject *args);
PyObject *model_set_full(model_object *self, PyObject *args);
PyObject *model_clear(model_object *self, PyObject *unused);
PyObject *model_decode(model_object *self, PyObject *args);

#endif

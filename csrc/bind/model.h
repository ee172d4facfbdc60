/* The Python type jpo._core.Model, shared by the files that add its methods. */
#ifndef JPO_BIND_MODEL_H
#define JPO_BIND_MODEL_H

#include "bind/bind.h"
#include "bind/numpy.h"
#include "model/model.h"

typedef struct {
    PyObject_HEAD jpo_model model;
    PyObject *owners;  /* a list: what the stored weights' memory belongs to */
    jpo_layer *stored; /* (layers): as the stored weights make them, without adapter and gradients */
    jpo_weight stored_embedding, stored_head;
    const float *stored_norm;
    PyObject *params, *grads; /* flat float32 vectors of what is trained, or NULL */
    bool ready;               /* made whole: every weight stands */
    bool busy;                /* a method is at work, perhaps without the GIL: a second one must not start */
} model_object;

/* The one door of every method: marks the model busy; false with RuntimeError where it is busy (in another thread, or
 * in a signal handler or __index__ of this one) or was never made whole. model_leave opens it again. */
bool model_enter(model_object *self);
void model_leave(model_object *self);
/* Points every weight to its stored tensor again; no adapter and no gradient is left. */
void model_stored_weights(model_object *self);

/* Methods of bind/training.c and bind/generation.c. */
PyObject *model_set_lora(model_object *self, PyObject *args);
PyObject *model_set_full(model_object *self, PyObject *args);
PyObject *model_clear(model_object *self, PyObject *unused);
PyObject *model_decode(model_object *self, PyObject *args);

#endif

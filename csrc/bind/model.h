/* The Python type jpo._core.Model, shared by the files that add its methods. */
#ifndef JPO_BIND_MODEL_H
#define JPO_BIND_MODEL_H

#include "bind/bind.h"
#include "bind/numpy.h"
#include "model/pass.h"

typedef struct {
    PyObject_HEAD jpo_model model;
    jpo_pass pass;
    PyObject *owners;         /* a list: what the stored weights' memory belongs to */
    PyObject *params, *grads; /* flat float32 vectors of what is trained, or NULL */
    bool ready;               /* made whole: every weight stands */
    bool busy;                /* a method is at work, perhaps without the GIL: a second one must not start */
} model_object;

/* The one door of every method: marks the model busy; false with RuntimeError where it is busy (in another thread, or
 * in a signal handler or __index__ of this one) or was never made whole. model_leave opens it again. */
bool model_enter(model_object *self);
void model_leave(model_object *self);

enum { MOST_ROTARIES = 16 };

/* The arrays of a configuration that was read from a dictionary. */
typedef struct {
    jpo_rotary rotary[MOST_ROTARIES];
    PyArrayObject *frequencies[MOST_ROTARIES], *long_frequencies[MOST_ROTARIES], *windows, *layer_rotary;
    jpo_layer_choice *layer;
} config_arrays;

/* The normalized configuration of jpo.formats.config, checked; config_release is due in any case. */
bool config_read(PyObject *dict, jpo_config *config, config_arrays *arrays);
void config_release(config_arrays *arrays);

/* "model.layers.3.self_attn.q_proj.weight": the key of a tensor (or of its bias) in the dictionaries of Model. */
enum { TENSOR_NAME = 128 };
void model_tensor_name(char *name, const jpo_tensor_info *info, int64_t layer, bool bias);
/* visit(self, context, tensor, info, layer, bias) for every tensor and bias of the model, until one returns false. */
typedef bool (*tensor_visitor)(model_object *, void *, jpo_tensor, const jpo_tensor_info *, int64_t, bool);
bool model_each_tensor(model_object *self, tensor_visitor visit, void *context);

/* Methods of bind/training.c and bind/generation.c. */
PyObject *model_set_lora(model_object *self, PyObject *args);
PyObject *model_row_norms(model_object *self, PyObject *args);
PyObject *model_set_full(model_object *self, PyObject *args);
PyObject *model_clear(model_object *self, PyObject *unused);
PyObject *model_decode(model_object *self, PyObject *args);

#endif

/* The one door for what Python passes: types, shapes, ranges, and the state of the engine. Every function of bind/
 * checks here before a pointer reaches the layers below; messages name the argument, what was expected, what came. */
#ifndef JPO_BIND_ARGUMENTS_H
#define JPO_BIND_ARGUMENTS_H

#include <stdbool.h>
#include <stdint.h>

#include "bind/bind.h"
#include "bind/numpy.h"
#include "base/threads.h"

/* Around every call into the layers below: the GIL is released, and the number of threads stays what it is, so that
 * scratch sized by it fits (base/threads.h). Python objects must not be touched in between. */
#define JPO_COMPUTE_BEGIN  \
    Py_BEGIN_ALLOW_THREADS \
    jpo_compute_begin(NULL);
#define JPO_COMPUTE_END      \
    (void)jpo_compute_end(); \
    Py_END_ALLOW_THREADS

/* The same for what Ctrl-C may end at any moment, as its outputs are thrown away then: status and err become those of
 * an interrupt. Not for updates in place. */
#define JPO_COMPUTE_BEGIN_POLLED \
    Py_BEGIN_ALLOW_THREADS       \
    jpo_compute_begin(arg_poll_signals);
#define JPO_COMPUTE_END_POLLED(status, err)                                                \
    if (jpo_compute_end()) (status) = jpo_fail((err), JPO_ERR_INTERRUPTED, "interrupted"); \
    Py_END_ALLOW_THREADS

/* Runs the signal handlers that are due, with the GIL; nonzero where one raised. */
int arg_poll_signals(void);

/* An aligned, native, C-contiguous array of the NumPy type and rank (-1: any rank), writable where asked; false with
 * TypeError. Its data may still be changed by other threads: indices are read through arg_copy instead. */
bool arg_array(PyObject *object, const char *name, int type, int dimensions, bool writable);

/* A private C-contiguous copy of an integer array (converted to `type` where that loses nothing), so that what is
 * checked is what is used, whatever other threads do to the original; a new reference, or NULL with an error. */
PyArrayObject *arg_copy(PyObject *object, const char *name, int type, int dimensions);

/* dict[key], borrowed; NULL with an error, or without one where there is no such key. (PyDict_GetItemString hides
 * errors: without memory for the key it would be missing.) */
PyObject *arg_item(PyObject *dict, const char *key);

/* The list with one item more, whose reference it takes; NULL with an error, and no list, where the item is NULL or
 * there is no memory. */
PyObject *arg_appended(PyObject *list, PyObject *item);

/* The same for a dictionary: dict[key] = item. */
PyObject *arg_entered(PyObject *dict, const char *key, PyObject *item);

/* module.name = object, whose reference it takes; -1 with an error, also where the object is NULL. */
int arg_published(PyObject *module, const char *name, PyObject *object);

/* low <= value <= high, else false with ValueError. */
bool arg_range(const char *name, long long value, long long low, long long high);

/* A float32 (rows, columns) array with contiguous columns and a row stride of at least a row; the stride in elements.
 */
bool arg_matrix(PyObject *object, const char *name, bool writable, PyArrayObject **array, int64_t *stride);

/* Runs change(context) while no thread computes; false with RuntimeError where one does. `what` ends the sentence. */
bool arg_when_idle(const char *what, void (*change)(void *), void *context);

/* For the tests: the instruction set of that name from now on -> True, or False where the machine lacks it. */
PyObject *arg_choose_isa(PyObject *name);

#endif

/* A jpo_error as a Python exception: the one conversion. */
#include "bind/bind.h"

PyObject *jpo_raise(const jpo_error *err) {
    if (err->code == JPO_ERR_INTERRUPTED) return NULL; /* what the signal's handler raised is set (arg_poll_signals) */
    PyObject *exceptions[] = {
#define JPO_STATUS_EXCEPTION(code, exception) exception,
        JPO_STATUS_LIST(JPO_STATUS_EXCEPTION)
#undef JPO_STATUS_EXCEPTION
    };
    PyErr_SetString(exceptions[err->code], err->text);
    return NULL;
}

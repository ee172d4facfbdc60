#include "bind/bind.h"

int jpo_bind_model(PyObject *module) {
    (void)module;
    return 0;
}

#include "bind/bind.h"

int jpo_bind_objective(PyObject *module) {
    (void)module;
    return 0;
}

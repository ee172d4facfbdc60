#include "bind/bind.h"

int jpo_bind_testing(PyObject *module) {
    (void)module;
    return 0;
}

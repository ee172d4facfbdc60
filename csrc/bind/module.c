/* The module jpo._core: imports NumPy's C API, readies BLAS and the processor's tables, adds each group. */
#define JPO_IMPORT_NUMPY
#include "bind/bind.h"
#include "bind/numpy.h"
#include "base/cpu.h"
#include "ops/blas.h"

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "jpo._core",
                                        .m_doc = "The C engine of jpo; see the package's docstrings.", .m_size = -1};

PyMODINIT_FUNC PyInit__core(void) {
    import_array();
    jpo_cpu_get();
    jpo_blas_init();
    PyObject *module = PyModule_Create(&definition);
    if (!module) return NULL;
#define JPO_BIND_CALL(name)            \
    if (jpo_bind_##name(module) < 0) { \
        Py_DECREF(module);             \
        return NULL;                   \
    }
    JPO_BIND_GROUPS(JPO_BIND_CALL)
#undef JPO_BIND_CALL
    return module;
}

/* NumPy's C API for the files of bind/: module.c imports it, every other file shares that import. */
#ifndef JPO_BIND_NUMPY_H
#define JPO_BIND_NUMPY_H

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL jpo_numpy_api
#ifndef JPO_IMPORT_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#endif

/* Private hooks on ops/linear for the tests, and the measurement that `jpo doctor` and the benchmarks print. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bind/arguments.h"
#include "base/cpu.h"
#include "base/size.h"
#include "ops/finite.h"
#include "ops/linear.h"
#include "ops/packed.h"
#include "ops/sgemm.h"

/* "float32, int16, ..." into text (size). */
static const char *compute_list(char *text, size_t size) {
    size_t used = 0;
    text[0] = 0;
    for (int i = 0; i < JPO_COMPUTE_COUNT && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%s", i ? ", " : "", jpo_compute_name((jpo_compute)i));
    return text;
}

static int compute_from_name(const char *name, jpo_compute *out) {
    char names[256];
    const int code = jpo_compute_from_name(name);
    if (code < 0) {
        PyErr_Format(PyExc_ValueError, "compute must be one of %s, got \"%s\"", compute_list(names, sizeof names),
                     name);
        return -1;
    }
    *out = (jpo_compute)code;
    return 0;
}

static int dtype_from_name(const char *name, jpo_dtype *out) {
    int code = jpo_dtype_from_name(name);
    if (code < 0) {
        PyErr_Format(PyExc_ValueError, "dtype must be a name in jpo._core.DTYPES, got \"%s\"", name);
        return -1;
    }
    *out = (jpo_dtype)code;
    return 0;
}

static bool direction_from_name(const char *name, bool *forward) {
    *forward = !strcmp(name, "forward");
    if (*forward || !strcmp(name, "backward")) return true;
    return PyErr_Format(PyExc_ValueError, "direction must be \"forward\" or \"backward\", got \"%s\"", name), false;
}

/* The weight (n, k) over the bytes of `data`, prepared for `compute`. */
static bool weight_open(jpo_weight *w, PyObject *data, const char *dtype, const char *compute, int64_t n, int64_t k) {
    *w = (jpo_weight){.n = n, .k = k};
    if (dtype_from_name(dtype, &w->dtype) || compute_from_name(compute, &w->compute)) return false;
    if (!arg_range("n", n, 1, INT32_MAX) || !arg_range("k", k, 1, INT32_MAX)) return false;
    PyArrayObject *bytes = (PyArrayObject *)data;
    const size_t want = jpo_size_product((size_t)n, jpo_dtype_row_bytes(w->dtype, k));
    if (!PyArray_Check(data) || !PyArray_ISCARRAY_RO(bytes) || (size_t)PyArray_NBYTES(bytes) != want)
        return PyErr_Format(PyExc_ValueError,
                            "data must be a contiguous array of the bytes of a %s weight (%lld, %lld)", dtype,
                            (long long)n, (long long)k),
               false;
    w->data = PyArray_DATA(bytes);
    jpo_error err;
    if (jpo_weight_check(w, &err) == JPO_OK) return true;
    jpo_raise(&err);
    return false;
}

/* _linear_product(out, in, data, n, k, dtype, compute="float32", direction="forward", accumulate=False) */
static PyObject *linear_product(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"out", "in", "data", "n", "k", "dtype", "compute", "direction", "accumulate", NULL};
    (void)self;
    PyObject *out_object, *in_object, *data;
    const char *dtype, *compute = "float32", *direction = "forward";
    long long n, k;
    int accumulate = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOLLs|ssp", names, &out_object, &in_object, &data, &n, &k, &dtype,
                                     &compute, &direction, &accumulate))
        return NULL;
    PyArrayObject *out, *in;
    int64_t ldo, ldi;
    if (!arg_matrix(out_object, "out", true, &out, &ldo) || !arg_matrix(in_object, "in", false, &in, &ldi)) return NULL;
    bool forward;
    if (!direction_from_name(direction, &forward)) return NULL;
    int64_t m = PyArray_DIM(in, 0);
    if (PyArray_DIM(out, 0) != m || PyArray_DIM(in, 1) != (forward ? k : n) || PyArray_DIM(out, 1) != (forward ? n : k))
        return PyErr_Format(PyExc_ValueError, "out and in must be (M, N) and (M, K) in their direction");
    jpo_weight w;
    if (!weight_open(&w, data, dtype, compute, n, k)) return NULL;
    jpo_scratch scratch = {0};
    jpo_error err;
    jpo_status status;
    JPO_COMPUTE_BEGIN_POLLED
    status = (forward ? jpo_linear_forward : jpo_linear_backward_input)(PyArray_DATA(out), ldo, PyArray_DATA(in), ldi,
                                                                        &w, m, accumulate, &scratch, &err);
    jpo_scratch_free(&scratch);
    JPO_COMPUTE_END_POLLED(status, &err)
    if (status != JPO_OK) return jpo_raise(&err);
    Py_RETURN_NONE;
}

/* _packed_tile(out, in, data, n, k, dtype, compute, row0, rows, column0, columns, backward, accumulate): one packed
 * tile of W times the rows of `in`. */
static PyObject *packed_tile(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *out_object, *in_object, *data;
    const char *dtype, *compute;
    long long n, k, row0, rows, column0, columns;
    int backward, accumulate;
    if (!PyArg_ParseTuple(args, "OOOLLssLLLLpp", &out_object, &in_object, &data, &n, &k, &dtype, &compute, &row0, &rows,
                          &column0, &columns, &backward, &accumulate))
        return NULL;
    PyArrayObject *out, *in;
    int64_t ldo, ldi;
    if (!arg_matrix(out_object, "out", true, &out, &ldo) || !arg_matrix(in_object, "in", false, &in, &ldi)) return NULL;
    int64_t m = PyArray_DIM(in, 0), depth = backward ? rows : columns, width = backward ? columns : rows;
    jpo_weight w;
    if (!weight_open(&w, data, dtype, compute, n, k)) return NULL;
    if (!arg_range("row0", row0, 0, n - 1) || !arg_range("rows", rows, 1, n - row0) ||
        !arg_range("column0", column0, 0, k - 1) || !arg_range("columns", columns, 1, k - column0))
        return NULL;
    const bool blocks = w.compute != JPO_COMPUTE_FLOAT32 || jpo_dtype_block(w.dtype) > 1;
    const int64_t block = blocks ? JPO_GEMM_BLOCK : 1;
    if (PyArray_DIM(out, 0) != m || PyArray_DIM(in, 1) != depth || PyArray_DIM(out, 1) != width || column0 % block)
        return PyErr_Format(PyExc_ValueError, "out, in and the tile do not agree");
    void *memory = aligned_alloc(64, jpo_packed_tile_bytes(&w, depth, width) + 64);
    void *scratch = aligned_alloc(64, jpo_packed_scratch_bytes(&w, m, depth) + 64);
    if (memory && scratch) {
        jpo_packed_tile tile;
        jpo_packed_pack(&tile, memory, &w, row0, rows, column0, columns, backward);
        jpo_packed_multiply(PyArray_DATA(out), ldo, PyArray_DATA(in), ldi, m, &tile, accumulate, scratch);
    }
    bool done = memory && scratch;
    free(memory), free(scratch);
    if (!done) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* _linear_backward_weight(dw, dy, x, compute=0): dw (N, K) += dy (M, N)^T x (M, K) */
static PyObject *linear_backward_weight(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *objects[3];
    int compute = 0;
    if (!PyArg_ParseTuple(args, "OOO|i", &objects[0], &objects[1], &objects[2], &compute) ||
        !arg_range("compute", compute, 0, JPO_COMPUTE_COUNT - 1))
        return NULL;
    PyArrayObject *dw, *dy, *x;
    int64_t lddw, lddy, ldx;
    if (!arg_matrix(objects[0], "dw", true, &dw, &lddw) || !arg_matrix(objects[1], "dy", false, &dy, &lddy) ||
        !arg_matrix(objects[2], "x", false, &x, &ldx))
        return NULL;
    int64_t m = PyArray_DIM(x, 0), n = PyArray_DIM(dw, 0), k = PyArray_DIM(dw, 1);
    if (PyArray_DIM(dy, 0) != m || PyArray_DIM(dy, 1) != n || PyArray_DIM(x, 1) != k || lddw != k)
        return PyErr_Format(PyExc_ValueError, "expected dw (N, K) contiguous, dy (M, N), x (M, K)");
    if (!n || !k) Py_RETURN_NONE;
    jpo_weight_scratch scratch = {0};
    jpo_error err;
    jpo_status status;
    JPO_COMPUTE_BEGIN
    status = jpo_linear_backward_weight(PyArray_DATA(dw), PyArray_DATA(dy), lddy, PyArray_DATA(x), ldx, n, k, m,
                                        (jpo_compute)compute, &scratch, &err);
    jpo_weight_scratch_free(&scratch);
    JPO_COMPUTE_END
    if (status != JPO_OK) return jpo_raise(&err);
    Py_RETURN_NONE;
}

/* widen_rows(out, data, n, k, dtype, row0): out (count, K) = rows row0.. of W, widened. */
static PyObject *widen_rows(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *out_object, *data;
    const char *dtype;
    long long n, k, row0;
    if (!PyArg_ParseTuple(args, "OOLLsL", &out_object, &data, &n, &k, &dtype, &row0)) return NULL;
    PyArrayObject *out;
    int64_t ldo;
    if (!arg_matrix(out_object, "out", true, &out, &ldo)) return NULL;
    if (PyArray_DIM(out, 1) != k || ldo != k || row0 < 0 || row0 > n - PyArray_DIM(out, 0))
        return PyErr_Format(PyExc_ValueError, "out must be (count, %lld) with rows inside 0..%lld", k, n);
    jpo_weight w;
    if (!weight_open(&w, data, dtype, "float32", n, k)) return NULL;
    float *values = PyArray_DATA(out);
    const int64_t count = PyArray_DIM(out, 0);
    JPO_COMPUTE_BEGIN
    jpo_weight_rows(values, &w, row0, count);
    JPO_COMPUTE_END
    Py_RETURN_NONE;
}

/* first_nonfinite(data, dtype) -> int: the first value of a stored tensor whose block holds NaN or infinity, or -1. */
static PyObject *first_nonfinite(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer data;
    const char *name;
    jpo_dtype dtype;
    if (!PyArg_ParseTuple(args, "y*s", &data, &name)) return NULL;
    PyObject *result = NULL;
    if (!dtype_from_name(name, &dtype)) {
        const size_t bytes = jpo_dtype_block_bytes(dtype);
        if ((size_t)data.len % bytes) {
            PyErr_Format(PyExc_ValueError, "data: %zd bytes are no whole blocks of %s (%zu bytes)", data.len, name,
                         bytes);
        } else {
            const int64_t values = (int64_t)((size_t)data.len / bytes) * jpo_dtype_block(dtype);
            int64_t first = -1;
            JPO_COMPUTE_BEGIN
            first = jpo_first_nonfinite(data.buf, dtype, values);
            JPO_COMPUTE_END
            result = PyLong_FromLongLong(first);
        }
    }
    PyBuffer_Release(&data);
    return result;
}

/* _sgemm(c, a, b, ta, tb, alpha, beta, runs=1): c = alpha op(a) op(b) + beta c, `runs` times in one thread. */
static PyObject *sgemm(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *objects[3];
    int ta, tb, runs = 1;
    float alpha, beta;
    if (!PyArg_ParseTuple(args, "OOOppff|i", &objects[0], &objects[1], &objects[2], &ta, &tb, &alpha, &beta, &runs))
        return NULL;
    PyArrayObject *c, *a, *b;
    int64_t ldc, lda, ldb;
    if (!arg_matrix(objects[0], "c", true, &c, &ldc) || !arg_matrix(objects[1], "a", false, &a, &lda) ||
        !arg_matrix(objects[2], "b", false, &b, &ldb))
        return NULL;
    int64_t m = PyArray_DIM(c, 0), n = PyArray_DIM(c, 1), k = PyArray_DIM(a, ta ? 0 : 1);
    if (PyArray_DIM(a, ta ? 1 : 0) != m || PyArray_DIM(b, tb ? 0 : 1) != n || PyArray_DIM(b, tb ? 1 : 0) != k)
        return PyErr_Format(PyExc_ValueError, "the shapes of c, op(a) and op(b) do not agree");
    if (!arg_range("rows of c", m, 1, INT32_MAX) || !arg_range("columns of c", n, 1, INT32_MAX) ||
        !arg_range("the common depth", k, 1, INT32_MAX))
        return NULL;
    float *scratch = aligned_alloc(64, JPO_SGEMM_SCRATCH * sizeof(float));
    if (!scratch) return PyErr_NoMemory();
    JPO_COMPUTE_BEGIN
    for (int run = 0; run < runs; run++)
        jpo_sgemm(ta, tb, m, n, k, alpha, PyArray_DATA(a), lda, PyArray_DATA(b), ldb, beta, PyArray_DATA(c), ldc,
                  scratch);
    JPO_COMPUTE_END
    free(scratch);
    Py_RETURN_NONE;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Small pseudo-random numbers; quantized forms get finite scales by construction. */
static void fill_weight(uint8_t *data, jpo_dtype dtype, size_t bytes) {
    uint32_t state = 12345;
    size_t block = jpo_dtype_row_bytes(dtype, jpo_dtype_block(dtype));
    for (size_t i = 0; i < bytes; i++) data[i] = (uint8_t)((state = state * 1664525u + 1013904223u) >> 24);
    if (jpo_dtype_block(dtype) == 1) {
        for (size_t i = block - 1; i < bytes; i += block) data[i] = (data[i] & 0x80) | 0x3c;
        return;
    }
    int offset[2];
    const int halves = jpo_dtype_halves(dtype, offset);
    for (size_t i = 0; i < bytes; i += block)
        for (int h = 0; h < halves; h++) data[i + (size_t)offset[h] + 1] = h ? 0xa0 : 0x20;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static jpo_status measure(const jpo_weight *w, int64_t m, bool forward, int runs, double *median, jpo_error *err) {
    int64_t in_width = forward ? w->k : w->n, out_width = forward ? w->n : w->k;
    float *in = calloc((size_t)(m * in_width) + 1, 4), *out = calloc((size_t)(m * out_width) + 1, 4);
    double *times = calloc((size_t)runs, sizeof *times);
    jpo_scratch scratch = {0};
    jpo_status status = JPO_OK;
    if (!in || !out || !times) status = jpo_fail(err, JPO_ERR_MEMORY, "could not allocate the measured matrices");
    for (int64_t i = 0; status == JPO_OK && i < m * in_width; i++) in[i] = (float)(i % 251 - 125) / 125;
    for (int run = -1; status == JPO_OK && run < runs; run++) { /* the first is not counted */
        double start = seconds();
        status = (forward ? jpo_linear_forward : jpo_linear_backward_input)(out, out_width, in, in_width, w, m, false,
                                                                            &scratch, err);
        if (run >= 0) times[run] = seconds() - start;
    }
    if (status == JPO_OK) {
        qsort(times, (size_t)runs, sizeof *times, compare_doubles);
        *median = times[runs / 2];
    }
    jpo_scratch_free(&scratch);
    free(times), free(in), free(out);
    return status;
}

/* measure_gflops(compute, n, k, m, dtype="F32", direction="forward", runs=11) -> float */
static PyObject *measure_gflops(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"compute", "n", "k", "m", "dtype", "direction", "runs", NULL};
    (void)self;
    const char *compute, *dtype = "F32", *direction = "forward";
    long long n, k, m;
    int runs = 11;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sLLL|ssi", names, &compute, &n, &k, &m, &dtype, &direction, &runs))
        return NULL;
    jpo_weight w = {.n = n, .k = k};
    bool forward;
    if (dtype_from_name(dtype, &w.dtype) || compute_from_name(compute, &w.compute) ||
        !direction_from_name(direction, &forward) || !arg_range("n", n, 1, 1 << 24) || !arg_range("k", k, 1, 1 << 24) ||
        !arg_range("m", m, 1, 1 << 24) || !arg_range("runs", runs, 1, 1 << 20))
        return NULL;
    size_t bytes = (size_t)n * jpo_dtype_row_bytes(w.dtype, k);
    uint8_t *data = malloc(bytes + 64);
    if (!data) return PyErr_NoMemory();
    double median = 0;
    jpo_error err;
    jpo_status status;
    JPO_COMPUTE_BEGIN_POLLED
    fill_weight(data, w.dtype, bytes);
    w.data = data;
    status = jpo_weight_check(&w, &err);
    if (status == JPO_OK) status = measure(&w, m, forward, runs, &median, &err);
    free(data);
    JPO_COMPUTE_END_POLLED(status, &err)
    if (status != JPO_OK) return jpo_raise(&err);
    return PyFloat_FromDouble(2e-9 * (double)n * (double)k * (double)m / median);
}

static void allow_portable(void *allow) { jpo_gemm_allow_portable(*(int *)allow); }
static void prefer_openblas(void *prefer) { jpo_packed_prefer_openblas(*(int *)prefer); }

typedef struct {
    const jpo_gemm_kernel *kernel;
    bool done;
} force_job;
static void force_kernel(void *context) {
    force_job *job = context;
    job->done = jpo_gemm_force(job->kernel);
}

/* _linear_force(name): this kernel serves its compute type from now on, "" none by force; False where the machine
 * cannot run it. */
static PyObject *linear_force(PyObject *self, PyObject *argument) {
    (void)self;
    const char *name = PyUnicode_AsUTF8(argument);
    if (!name) return NULL;
    force_job job = {NULL, false};
    for (int i = 0; *name && jpo_gemm_at(i) && !job.kernel; i++)
        if (!strcmp(jpo_gemm_at(i)->name, name)) job.kernel = jpo_gemm_at(i);
    if (*name && !job.kernel) return PyErr_Format(PyExc_ValueError, "no product kernel is called \"%s\"", name);
    if (!arg_when_idle("other kernels are chosen", force_kernel, &job)) return NULL;
    return PyBool_FromLong(job.done);
}

/* product_kernels() -> list of (name, compute type, chosen here). */
static PyObject *product_kernels(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    PyObject *list = PyList_New(0);
    for (int i = 0; list && jpo_gemm_at(i); i++) {
        const jpo_gemm_kernel *kernel = jpo_gemm_at(i);
        list = arg_appended(list, Py_BuildValue("(ssO)", kernel->name, jpo_compute_name(kernel->compute),
                                                jpo_gemm_find(kernel->compute) == kernel ? Py_True : Py_False));
    }
    return list;
}

/* auto_compute() -> the compute type that "auto" is on this processor. */
static PyObject *auto_compute(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return PyUnicode_FromString(jpo_compute_name(jpo_gemm_auto()));
}

/* compute_types() -> list of (name, meaning, what it lacks here or None), in the engine's order. */
static PyObject *compute_types(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < JPO_COMPUTE_COUNT; i++) {
        const jpo_compute compute = (jpo_compute)i;
        const bool there = compute == JPO_COMPUTE_FLOAT32 || jpo_gemm_find(compute);
        list = arg_appended(list, Py_BuildValue("(ssz)", jpo_compute_name(compute), jpo_compute_meaning(compute),
                                                there ? NULL : jpo_gemm_lacking(compute)));
    }
    return list;
}

/* _linear_portable(allow): compute types that no kernel of the chosen level serves run by portable C. */
static PyObject *linear_portable(PyObject *self, PyObject *argument) {
    (void)self;
    int allow = PyObject_IsTrue(argument);
    if (allow < 0 || !arg_when_idle("other kernels are chosen", allow_portable, &allow)) return NULL;
    Py_RETURN_NONE;
}

/* _linear_openblas(prefer): float32 products by OpenBLAS, the peer of our kernels in benchmarks. */
static PyObject *linear_openblas(PyObject *self, PyObject *argument) {
    (void)self;
    int prefer = PyObject_IsTrue(argument);
    if (prefer < 0 || !arg_when_idle("other kernels are chosen", prefer_openblas, &prefer)) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"_linear_product", (PyCFunction)(void *)linear_product, METH_VARARGS | METH_KEYWORDS, "Private: for the tests."},
    {"_linear_backward_weight", linear_backward_weight, METH_VARARGS, "Private: for the tests."},
    {"_packed_tile", packed_tile, METH_VARARGS, "Private: for the tests."},
    {"_sgemm", sgemm, METH_VARARGS, "Private: for the tests."},
    {"widen_rows", widen_rows, METH_VARARGS,
     "widen_rows(out (count, K), data, n, k, dtype, row0): out = rows row0.. of a stored (n, k), widened exactly."},
    {"first_nonfinite", first_nonfinite, METH_VARARGS,
     "first_nonfinite(data, dtype) -> int: the first value whose block holds NaN or infinity, or -1."},
    {"_linear_openblas", linear_openblas, METH_O, "Private: for the benchmarks."},
    {"_linear_force", linear_force, METH_O, "Private: for the tests."},
    {"product_kernels", product_kernels, METH_NOARGS,
     "product_kernels() -> list of (name, compute type, chosen here): the kernels of products, fastest first."},
    {"auto_compute", auto_compute, METH_NOARGS,
     "auto_compute() -> the compute type that \"auto\" is on this processor."},
    {"compute_types", compute_types, METH_NOARGS,
     "compute_types() -> list of (name, meaning, what it lacks here or None), in the engine's order."},
    {"_linear_portable", linear_portable, METH_O, "Private: for the tests."},
    {"measure_gflops", (PyCFunction)(void *)measure_gflops, METH_VARARGS | METH_KEYWORDS,
     "measure_gflops(compute, n, k, m, dtype=\"F32\", direction=\"forward\"|\"backward\", runs=11) -> float: GF/s of "
     "the "
     "median run of a product with a weight (n, k) over m rows."},
    {NULL, NULL, 0, NULL}};

/* The stored types, name -> (values per block, bytes per block). */
static PyObject *dtype_sizes(void) {
    PyObject *sizes = PyDict_New();
    for (int code = 0; sizes && code < JPO_DTYPE_COUNT; code++) {
        const jpo_dtype dtype = (jpo_dtype)code;
        PyObject *size =
            Py_BuildValue("(Ln)", (long long)jpo_dtype_block(dtype), (Py_ssize_t)jpo_dtype_block_bytes(dtype));
        sizes = arg_entered(sizes, jpo_dtype_name(dtype), size);
    }
    return sizes;
}

int jpo_bind_linear(PyObject *module) {
    if (arg_published(module, "DTYPES", dtype_sizes()) < 0) return -1;
    return PyModule_AddFunctions(module, methods);
}

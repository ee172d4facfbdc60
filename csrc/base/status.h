/* Status codes and messages. Every core function that can fail returns a jpo_status and,
 * when it is not JPO_OK, has filled a jpo_error with a message for the user: what was wrong,
 * what was expected, what came. The binding layer turns it into one Python exception. */
#ifndef JPO_BASE_STATUS_H
#define JPO_BASE_STATUS_H

/* X(code, Python exception class) */
#define JPO_STATUS_LIST(X)                            \
    X(JPO_OK, NULL)                                   \
    X(JPO_ERR_VALUE, PyExc_ValueError)                \
    X(JPO_ERR_TYPE, PyExc_TypeError)                  \
    X(JPO_ERR_MEMORY, PyExc_MemoryError)              \
    X(JPO_ERR_UNSUPPORTED, PyExc_NotImplementedError) \
    X(JPO_ERR_INTERRUPTED, PyExc_KeyboardInterrupt)   \
    X(JPO_ERR_INTERNAL, PyExc_RuntimeError)

typedef enum {
#define JPO_STATUS_CODE(code, exception) code,
    JPO_STATUS_LIST(JPO_STATUS_CODE)
#undef JPO_STATUS_CODE
} jpo_status;

typedef struct {
    jpo_status code;
    char text[512];
} jpo_error;

/* Fills err (which may be NULL) and returns code, so that callers write `return jpo_fail(...)`. */
jpo_status jpo_fail(jpo_error *err, jpo_status code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Leaves the function with the callee's status when it failed. */
#define JPO_TRY(call)                                        \
    do {                                                     \
        jpo_status jpo_try_status = (call);                  \
        if (jpo_try_status != JPO_OK) return jpo_try_status; \
    } while (0)

#endif

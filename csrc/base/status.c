/* Fills a jpo_error (base/status.h). */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>

jpo_status jpo_fail(jpo_error *err, jpo_status code, const char *format, ...) {
    if (err) {
        va_list arguments;
        va_start(arguments, format);
        err->code = code;
        vsnprintf(err->text, sizeof err->text, format, arguments);
        va_end(arguments);
    }
    return code;
}

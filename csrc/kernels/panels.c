/* Widens stored rows to float32 (kernels/panels.h). */
#include "kernels/panels.inc"

void jpo_panel_widen_row(float *out, jpo_dtype dtype, const void *row, int64_t column0, int64_t count) {
    widen_row(out, dtype, row, column0, count);
}

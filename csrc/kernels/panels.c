/* Widens stored rows to float32 (kernels/panels.h). */
#include "kernels/panels.inc"

float jpo_half_widen(uint16_t half) { return half_widen(half); }

void jpo_panel_widen_row(float *out, jpo_dtype dtype, const void *row, int64_t column0, int64_t count) {
    widen_row(out, dtype, row, column0, count);
}

void jpo_panel_widen(float *out, int64_t ldo, jpo_dtype dtype, const void *data, int64_t k, int64_t row0, int64_t rows,
                     int64_t column0, int64_t columns) {
    size_t stride = jpo_dtype_row_bytes(dtype, k);
    const uint8_t *row = (const uint8_t *)data + (size_t)row0 * stride;
    for (int64_t i = 0; i < rows; i++, row += stride) widen_row(out + i * ldo, dtype, row, column0, columns);
}

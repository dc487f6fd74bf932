// The C interface: checks the arguments, picks the instruction set, runs the encoder. Called through ctypes, without the GIL.
#include "task.h"

namespace {

enum : int { PORTABLE = 0, AVX2 = 1, AVX512 = 2 };
enum : int64_t { UNSUPPORTED_TYPE = -1, NOT_FINITE = -2, BAD_ARGUMENTS = -3, OVERFLOW_IN_SEARCH = -4 };

int best_isa() {
#ifdef MEDLITE_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return AVX512;
    if (__builtin_cpu_supports("avx2")) return AVX2;
#endif
    return PORTABLE;
}

const TypeRow *find(int isa, int type) {
    const TypeRow *rows = portable::TYPES;
    int n = portable::N_TYPES;
#ifdef MEDLITE_X86
    if (isa == AVX2) rows = avx2::TYPES, n = avx2::N_TYPES;
    if (isa == AVX512) rows = avx512::TYPES, n = avx512::N_TYPES;
#else
    (void)isa;
#endif
    for (int i = 0; i < n; ++i)
        if (rows[i].type == type) return rows + i;
    return nullptr;
}

// ggml has no encoder for these without importance (ggml_quantize_requires_imatrix).
bool needs_importance(int type) { return type == GGML_IQ2_XXS || type == GGML_IQ2_XS; }

// ggml ignores it for these, too.
bool ignores_importance(int type) { return type == GGML_Q8_0 || type == GGML_TQ1_0 || type == GGML_TQ2_0; }

int source_size(int type) { return type == GGML_F32 ? 4 : type == GGML_F16 || type == GGML_BF16 ? 2 : 0; }

}  // namespace

extern "C" {

// 0: portable, 1: AVX2, 2: AVX-512; the best that this machine runs.
int medlite_isa(void) { return best_isa(); }

const char *medlite_isa_name(int isa) {
#ifdef MEDLITE_X86
    return isa == AVX512 ? "avx512" : isa == AVX2 ? "avx2" : isa == PORTABLE ? "sse2" : "";
#elif defined(__aarch64__)
    return isa == PORTABLE ? "neon" : "";
#else
    return isa == PORTABLE ? "portable" : "";
#endif
}

int medlite_supports(int type, int with_importance) {
    return find(PORTABLE, type) && (with_importance || !needs_importance(type));
}

// Encode n_rows x n_per_row weights. Returns the bytes written, or UNSUPPORTED_TYPE, BAD_ARGUMENTS, or NOT_FINITE or
// OVERFLOW_IN_SEARCH with *bad_row the row. isa: -1 for the best. importance: n_per_row floats or NULL.
int64_t medlite_encode(int type, int source_type, const void *source, void *target, int64_t n_rows, int64_t n_per_row,
                       const float *importance, int isa, int64_t *bad_row) {
    int best = best_isa();
    if (isa > best || isa < -1 || n_rows < 0 || n_per_row <= 0 || !source_size(source_type)) return BAD_ARGUMENTS;
    const TypeRow *row = find(isa < 0 ? best : isa, type);
    if (!row || (!importance && needs_importance(type))) return UNSUPPORTED_TYPE;
    if (n_per_row % row->block_weights || (n_rows && (!source || !target))) return BAD_ARGUMENTS;
    Task task = {source_type, source_size(source_type), (const uint8_t *)source, (uint8_t *)target,
                 n_rows,      n_per_row,                ignores_importance(type) ? nullptr : importance};
    Outcome outcome = row->encode(task);
    if (outcome.problem != Problem::NONE) {
        if (bad_row) *bad_row = outcome.row;
        return outcome.problem == Problem::NOT_FINITE ? NOT_FINITE : OVERFLOW_IN_SEARCH;
    }
    return n_rows * (n_per_row / row->block_weights) * row->block_bytes;
}

// The squared errors and squared weights of n_rows encoded rows, two doubles a row. decode: ggml's to_float of the type, whose
// blocks are a multiple of 32 and divide 2048. Returns n_rows, or BAD_ARGUMENTS.
int64_t medlite_measure(int source_type, const void *source, const void *encoded, int64_t n_rows, int64_t n_per_row,
                        int64_t block_weights, int64_t block_bytes, void *decode, double *errors) {
    if (!source_size(source_type) || n_rows < 0 || n_per_row <= 0 || !decode || block_weights <= 0 || block_weights % 32 ||
        2048 % block_weights || n_per_row % block_weights)
        return BAD_ARGUMENTS;
    Measurement what = {source_type, source_size(source_type), (const uint8_t *)source, (const uint8_t *)encoded, n_rows,
                        n_per_row, n_per_row / block_weights * block_bytes, block_weights, block_bytes,
                        (void (*)(const void *, float *, int64_t))decode};
    RowErrors *rows = (RowErrors *)errors;
#ifdef MEDLITE_X86
    int isa = best_isa();
    if (isa == AVX512) avx512::measure_rows(what, rows);
    else if (isa == AVX2) avx2::measure_rows(what, rows);
    else
#endif
        portable::measure_rows(what, rows);
    return n_rows;
}

}  // extern "C"

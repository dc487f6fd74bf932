// One call of the encoder, the ids of ggml's types, and the functions that every instruction set provides.

#pragma once

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

#include "iq_lattice.h"

#if defined(__x86_64__) || defined(_M_X64)
#define MEDLITE_X86 1
#include <immintrin.h>
#endif

// enum ggml_type in ggml/include/ggml.h; a file format, so the numbers do not change.
enum : int {
    GGML_F32 = 0, GGML_F16 = 1, GGML_Q4_0 = 2, GGML_Q4_1 = 3, GGML_Q5_0 = 6, GGML_Q5_1 = 7, GGML_Q8_0 = 8,
    GGML_Q2_K = 10, GGML_Q3_K = 11, GGML_Q4_K = 12, GGML_Q5_K = 13, GGML_Q6_K = 14,
    GGML_IQ2_XXS = 16, GGML_IQ2_XS = 17, GGML_IQ3_XXS = 18, GGML_IQ4_NL = 20, GGML_IQ3_S = 21, GGML_IQ2_S = 22,
    GGML_IQ4_XS = 23, GGML_BF16 = 30, GGML_TQ1_0 = 34, GGML_TQ2_0 = 35,
};

struct Task {
    int source_type, source_bytes;  // bytes of one source weight
    const uint8_t *source;          // n_rows x n_per_row weights
    uint8_t *target;
    int64_t n_rows, n_per_row;
    const float *importance;        // n_per_row weights of the columns, or nullptr
};

// Why a row could not be encoded: it holds an infinity or NaN, or the type's search overflows (ggml aborts the process there).
enum class Problem { NONE, NOT_FINITE, OVERFLOW_IN_SEARCH };

struct Outcome {
    Problem problem = Problem::NONE;
    int64_t row = -1;
};

using Encoder = Outcome (*)(const Task &);

struct TypeRow {
    int type, block_weights, block_bytes;
    Encoder encode;
};

// Encoded rows beside their source; block_weights divides n_per_row and 2048, 32 divides block_weights.
struct Measurement {
    int source_type, source_bytes;
    const uint8_t *source, *encoded;
    int64_t n_rows, n_per_row, row_bytes, block_weights, block_bytes;
    void (*decode)(const void *, float *, int64_t);  // ggml's to_float of the type
};

struct RowErrors {
    double error, weight;  // sums of squares
};

#define MEDLITE_PROVIDES                                   \
    extern const TypeRow TYPES[];                          \
    extern const int N_TYPES;                              \
    void measure_rows(const Measurement &, RowErrors *);

namespace portable { MEDLITE_PROVIDES }
#ifdef MEDLITE_X86
namespace avx2 { MEDLITE_PROVIDES }
namespace avx512 { MEDLITE_PROVIDES }
#endif

// The whole encoder for one instruction set: a table of types. Included by isa_*.cc after the target pragma.

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors pass between inlined functions only

#include "lanes.h"
#include "blocks.h"
#include "scale_search.h"
#include "k_quants.h"
#include "legacy_contiguous.h"
#include "legacy.h"
#include "iq4.h"
#include "ternary.h"
#include "iq_search.h"
#include "iq_grid.h"
#include "encode_rows.h"
#include "row_errors.h"

namespace MEDLITE_ISA {

template <int ID, typename Type>
constexpr TypeRow row() {
    return {ID, Type::WEIGHTS, Type::BYTES, encode_rows<Type>};
}

const TypeRow TYPES[] = {
    {GGML_F32, 1, 4, convert_rows_to<GGML_F32>},
    {GGML_F16, 1, 2, convert_rows_to<GGML_F16>},
    {GGML_BF16, 1, 2, convert_rows_to<GGML_BF16>},
    row<GGML_Q4_0, Q4_0>(),
    row<GGML_Q4_1, Q4_1>(),
    row<GGML_Q5_0, Q5_0>(),
    row<GGML_Q5_1, Q5_1>(),
    row<GGML_Q8_0, Q8_0>(),
    row<GGML_Q2_K, Q2_K>(),
    row<GGML_Q3_K, Q3_K>(),
    row<GGML_Q4_K, Q4_K>(),
    row<GGML_Q5_K, Q5_K>(),
    row<GGML_Q6_K, Q6_K>(),
    row<GGML_IQ4_NL, IQ4_NL>(),
    row<GGML_IQ4_XS, IQ4_XS>(),
    row<GGML_IQ2_XXS, IQ2_XXS>(),
    row<GGML_IQ2_XS, IQ2_XS>(),
    row<GGML_IQ2_S, IQ2_S>(),
    row<GGML_IQ3_XXS, IQ3_XXS>(),
    row<GGML_IQ3_S, IQ3_S>(),
    row<GGML_TQ1_0, TQ1_0>(),
    row<GGML_TQ2_0, TQ2_0>(),
};
const int N_TYPES = sizeof TYPES / sizeof TYPES[0];

}  // namespace MEDLITE_ISA

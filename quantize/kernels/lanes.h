// Vector lanes: W floats or ints side by side, and the few operations that the encoders need.
//
// Included once per instruction set, with MEDLITE_ISA (a namespace) and MEDLITE_LANES (W) defined, after the target pragma.
// Every operation rounds once, as the scalar operation does, and nothing here is reassociated: a lane holds the bits that a
// scalar program holds. Compile with -ffp-contract=off; a fused multiply-add would round once where the reference rounds twice.

#ifdef __FAST_MATH__
#error "medlite kernels: -ffast-math changes the bits; build without it"
#endif

#define LANE_INLINE inline __attribute__((always_inline))
#define LANE_FN static LANE_INLINE

namespace MEDLITE_ISA {

constexpr int W = MEDLITE_LANES;

typedef float F __attribute__((vector_size(W * 4)));
typedef int32_t I __attribute__((vector_size(W * 4)));
typedef uint32_t U __attribute__((vector_size(W * 4)));
typedef uint16_t H __attribute__((vector_size(W * 2)));

LANE_FN I bits(F v) { return (I)v; }
LANE_FN F from_bits(I v) { return (F)v; }
LANE_FN F splat(float v) { return F{} + v; }
LANE_FN I splat(int v) { return I{} + v; }
LANE_FN F to_float(I v) { return __builtin_convertvector(v, F); }
// Out of range and NaN give INT_MIN on x86, as the scalar conversion does there.
LANE_FN I to_int(F v) { return __builtin_convertvector(v, I); }

LANE_FN F select(I mask, F yes, F no) { return mask ? yes : no; }
LANE_FN I select(I mask, I yes, I no) { return mask ? yes : no; }
LANE_FN I smaller(I a, I b) { return a < b ? a : b; }
LANE_FN I larger(I a, I b) { return a > b ? a : b; }
LANE_FN F magnitude(F v) { return from_bits(bits(v) & 0x7fffffff); }

LANE_FN bool any(I mask) {
    int64_t words[W / 2], seen = 0;
    memcpy(words, &mask, sizeof mask);
    for (int k = 0; k < W / 2; ++k) seen |= words[k];
    return seen != 0;
}

// Bit k is the sign of lane k.
LANE_FN uint32_t signs(I v) {
#if MEDLITE_LANES == 16
    return _mm512_movepi32_mask((__m512i)v);
#elif MEDLITE_LANES == 8
    return uint32_t(_mm256_movemask_ps((__m256)v));
#elif defined(MEDLITE_X86)
    return uint32_t(_mm_movemask_ps((__m128)v));
#else
    uint32_t word = 0;
    for (int k = 0; k < W; ++k) word |= uint32_t(v[k] < 0) << k;
    return word;
#endif
}

// W numbers from 0 to 255 as W bytes. g++ 12 makes __builtin_convertvector to bytes one lane at a time.
LANE_FN void store_bytes(I v, uint8_t *to) {
#if MEDLITE_LANES == 16
    _mm_storeu_si128((__m128i *)to, _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)v));
#elif MEDLITE_LANES == 8
    __m128i pairs = _mm_packus_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
    _mm_storel_epi64((__m128i *)to, _mm_packus_epi16(pairs, pairs));
#elif defined(MEDLITE_X86)
    __m128i pairs = _mm_packs_epi32((__m128i)v, (__m128i)v);
    int32_t word = _mm_cvtsi128_si32(_mm_packus_epi16(pairs, pairs));
    memcpy(to, &word, 4);
#else
    for (int k = 0; k < W; ++k) to[k] = uint8_t(v[k]);
#endif
}

LANE_FN F square_root(F v) {
#if MEDLITE_LANES == 16
    return (F)_mm512_maskz_sqrt_ps(0xffff, (__m512)v);  // the plain form warns in g++ 12
#elif MEDLITE_LANES == 8
    return (F)_mm256_sqrt_ps((__m256)v);
#elif defined(MEDLITE_X86)
    return (F)_mm_sqrt_ps((__m128)v);
#else
    F root;
    for (int k = 0; k < W; ++k) root[k] = sqrtf(v[k]);
    return root;
#endif
}

// ggml rounds by adding 1.5 * 2^23 and reading the mantissa (nearest_int in ggml-quants.c): ties go to even, and what does
// not fit into 23 bits wraps. Overflow and NaN therefore give definite integers, and these functions give the same.
constexpr float ROUNDER = 12582912.f;
constexpr int32_t MANTISSA = 0x7fffff, ROUNDER_BITS = 0x4b400000, TWO_POWER_23_BITS = 0x4b000000;

LANE_FN I nearest(F v) { return (bits(v + ROUNDER) & MANTISSA) - 0x400000; }

// clamp(nearest(v), lowest, highest) as float: the clamp works on the bits of 2^23 + mantissa, whose order is the integers'.
LANE_FN F nearest_clamped(F v, int lowest, int highest) {
    I raw = (bits(v + ROUNDER) & MANTISSA) | TWO_POWER_23_BITS;
    raw = smaller(larger(raw, splat(ROUNDER_BITS + lowest)), splat(ROUNDER_BITS + highest));
    return from_bits(raw) - ROUNDER;
}

LANE_FN I nearest_clamped_int(F v, int lowest, int highest) {
    return smaller(larger(nearest(v), splat(lowest)), splat(highest));
}

// float32 -> float16 bits, ties to even; overflow gives infinity, every NaN gives sign | 0x7e00.
// Below 2^-14 the sum with 0.5 has the ulp of a float16 denormal (2^-24), so the addition itself rounds.
LANE_FN I to_half(F v) {
    I raw = bits(v), absolute = raw & 0x7fffffff;
    I normal = (absolute - 0x38000000 + 0xfff + ((absolute >> 13) & 1)) >> 13;
    I denormal = bits(from_bits(absolute) + 0.5f) - 0x3f000000;
    I half = select(absolute < 0x38800000, denormal, smaller(normal, splat(0x7c00)));
    half = select(absolute > 0x7f800000, splat(0x7e00), half);
    return half | ((raw >> 16) & 0x8000);
}

LANE_FN F from_half(I half) {
    I exponent = half & 0x7c00;
    F denormal = to_float(half & 0x3ff) * 0x1p-24f;
    I normal = ((half & 0x7fff) << 13) + 0x38000000;
    I special = normal + 0x38000000;
    I value = select(exponent == 0, bits(denormal), select(exponent == 0x7c00, special, normal));
    return from_bits(value | ((half & 0x8000) << 16));
}

// ---- Tables of 8 floats, looked up with an index in every lane. 16 lanes hold the table twice.

constexpr int TABLE_SIZE = W < 8 ? 8 : W;
typedef float Table __attribute__((vector_size(TABLE_SIZE * 4)));

// table[index & 7]; with 16 lanes table[index & 15], which is the same number.
LANE_FN F lookup(const Table &table, I index) {
#if MEDLITE_LANES == 16
    return (F)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)index, (__m512)table);
#elif MEDLITE_LANES == 8
    return (F)_mm256_permutevar8x32_ps((__m256)table, (__m256i)index);
#else
    float entries[8];
    F value;
    memcpy(entries, &table, sizeof entries);
    for (int k = 0; k < W; ++k) value[k] = entries[index[k] & 7];
    return value;
#endif
}

// ---- Across the lanes.

template <int D, int... K>
LANE_FN F exchange(F v, std::integer_sequence<int, K...>) {
    return __builtin_shufflevector(v, v, (K ^ D)...);
}
template <int D = W / 2>
LANE_FN float smallest(F v) {
    if constexpr (D == 0) return v[0];
    else {
        F other = exchange<D>(v, std::make_integer_sequence<int, W>{});
        return smallest<D / 2>(select(other < v, other, v));
    }
}
template <int D = W / 2>
LANE_FN int smallest(I v) {
    if constexpr (D == 0) return v[0];
    else return smallest<D / 2>(smaller(v, bits(exchange<D>(from_bits(v), std::make_integer_sequence<int, W>{}))));
}
LANE_FN I lane_numbers() {
    I numbers;
    for (int k = 0; k < W; ++k) numbers[k] = k;
    return numbers;
}

// ---- Transposition: W rows of W words become W columns, in log2(W) rounds of swapping off-diagonal squares.

template <int D, int... K>
LANE_FN F swap_low(F a, F b, std::integer_sequence<int, K...>) {
    return __builtin_shufflevector(a, b, ((K & D) ? W + K - D : K)...);
}
template <int D, int... K>
LANE_FN F swap_high(F a, F b, std::integer_sequence<int, K...>) {
    return __builtin_shufflevector(a, b, ((K & D) ? W + K : K + D)...);
}

template <int D>
LANE_FN void transpose_from(F *tile) {
    if constexpr (D > 0) {
        using Lanes = std::make_integer_sequence<int, W>;
        for (int i = 0; i < W; ++i)
            if (!(i & D)) {
                F low = swap_low<D>(tile[i], tile[i + D], Lanes{});
                tile[i + D] = swap_high<D>(tile[i], tile[i + D], Lanes{});
                tile[i] = low;
            }
        transpose_from<D / 2>(tile);
    }
}
LANE_FN void transpose(F *tile) { transpose_from<W / 2>(tile); }

}  // namespace MEDLITE_ISA

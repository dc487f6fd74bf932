// Q4_0, Q4_1, Q5_0, Q5_1 without importance, a block's weights side by side: nothing is searched there, so turning W blocks into
// columns would cost more than encoding them. W whole blocks a call; what needs the reference's order (equal extremes), or its
// conversions (denormal scales), or is rare (weights of one sign) is left to the columns of legacy.h: encode returns false.

namespace MEDLITE_ISA {

constexpr int VECTORS = 32 / W;  // of one block

LANE_FN I infinite(F v) { return magnitude(v) == __builtin_inff(); }

// As integers, positive floats are in their order, and negative ones, unsigned, in the order of their magnitudes. So the largest
// bits show the extremes and whether all is finite at once.
struct Highest { static LANE_INLINE F of(F a, F b) { return from_bits(larger(bits(a), bits(b))); } };
struct Lowest { static LANE_INLINE F of(F a, F b) { return (F)((U)a > (U)b ? (U)a : (U)b); } };

// Lane k of v[0] becomes the largest, by Pick, of v[k]: a transposition that folds as it goes.
template <typename Pick, int D = W / 2>
LANE_FN void fold(F *v) {
    if constexpr (D > 0) {
        using Numbers = std::make_integer_sequence<int, W>;
        for (int i = 0; i < D; ++i) v[i] = Pick::of(swap_low<D>(v[i], v[i + D], Numbers{}), swap_high<D>(v[i], v[i + D], Numbers{}));
        fold<Pick, D / 2>(v);
    }
}

// W blocks: vectors VECTORS * k .. belong to block k, its lowest and highest weight are in lane k.
template <int SOURCE>
struct BlocksOf32 {
    const uint8_t *from;
    F low, high;

    LANE_INLINE F vector(int i) const { return load_weights<SOURCE>(from, i * W); }

    // False if a block has a weight that is not finite, or no negative weight, or no positive one.
    LANE_INLINE bool find_extremes() {
        F lows[W], highs[W];
        for (int k = 0; k < W; ++k) {
            lows[k] = highs[k] = vector(VECTORS * k);
            for (int v = 1; v < VECTORS; ++v) {
                F x = vector(VECTORS * k + v);
                lows[k] = Lowest::of(lows[k], x);
                highs[k] = Highest::of(highs[k], x);
            }
        }
        fold<Lowest>(lows);
        fold<Highest>(highs);
        low = lows[0], high = highs[0];
        constexpr int INFINITE = 0x7f800000;
        I usual = (bits(high) > 0) & (bits(high) < INFINITE) & (bits(low) > INT32_MIN) & (bits(low) < INFINITE + INT32_MIN);
        return !any(~usual);
    }
};

// levels[v]: weights v * W ... of one block, 0 .. 2^BITS - 1. Writes the fifth bits, if any, and 16 bytes of nibbles.
template <int BITS>
LANE_FN void store_levels(I *levels, uint8_t *to) {
    if constexpr (BITS == 5) {
        uint32_t fifth = 0;
        for (int v = 0; v < VECTORS; ++v) {
            fifth |= signs(levels[v] << 27) << (v * W);
            levels[v] &= 15;
        }
        memcpy(to, &fifth, 4);
        to += 4;
    }
    for (int v = 0; v < VECTORS / 2; ++v)
        store_bytes(levels[v] | (levels[v + VECTORS / 2] << 4), to + v * W);
}

// The arithmetic of Centered::encode.
template <int BITS>
struct ContiguousCentered {
    template <int SOURCE>
    static bool encode(const uint8_t *from, uint8_t *to) {
        constexpr int HALF = 1 << (BITS - 1), BYTES = 2 + (BITS == 5 ? 4 : 0) + 16;
        BlocksOf32<SOURCE> blocks = {from, {}, {}};
        if (!blocks.find_extremes()) return false;
        F d = select(blocks.high > -blocks.low, blocks.high, blocks.low) / float(-HALF), inverse = 1.f / d;
        I halves = to_half(d);
        if (any((blocks.high == -blocks.low) | infinite(inverse))) return false;
        for (int k = 0; k < W; ++k) {
            I levels[VECTORS];
            for (int v = 0; v < VECTORS; ++v)
                levels[v] = smaller(to_int(blocks.vector(VECTORS * k + v) * inverse[k] + (HALF + 0.5f)), splat(2 * HALF - 1));
            uint16_t half = uint16_t(halves[k]);
            memcpy(to + k * BYTES, &half, 2);
            store_levels<BITS>(levels, to + k * BYTES + 2);
        }
        return true;
    }
};

// The arithmetic of Offset::encode.
template <int BITS>
struct ContiguousOffset {
    template <int SOURCE>
    static bool encode(const uint8_t *from, uint8_t *to) {
        constexpr int BYTES = 4 + (BITS == 5 ? 4 : 0) + 16;
        BlocksOf32<SOURCE> blocks = {from, {}, {}};
        if (!blocks.find_extremes()) return false;
        F d = (blocks.high - blocks.low) / float((1 << BITS) - 1), inverse = 1.f / d;
        I heads = to_half(d) | (to_half(blocks.low) << 16);
        if (any(infinite(inverse) | infinite(d))) return false;
        for (int k = 0; k < W; ++k) {
            I levels[VECTORS];
            for (int v = 0; v < VECTORS; ++v)
                levels[v] = to_int((blocks.vector(VECTORS * k + v) - blocks.low[k]) * inverse[k] + 0.5f);
            int32_t head = heads[k];
            memcpy(to + k * BYTES, &head, 4);
            store_levels<BITS>(levels, to + k * BYTES + 4);
        }
        return true;
    }
};

}  // namespace MEDLITE_ISA

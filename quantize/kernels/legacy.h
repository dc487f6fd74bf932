// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: blocks of 32 weights, one per lane.
//
// Layouts: block_q*_0 and block_q*_1 in ggml/src/ggml-common.h. Algorithms: quantize_row_q*_ref (no importance) and
// quantize_row_q*_impl (importance) in ggml/src/ggml-quants.c. With importance the error weights depend on the whole row's
// mean square (`variance`), which the caller supplies.

namespace MEDLITE_ISA {

LANE_FN F inverse_or_zero(F d) { return select(d != 0.f, 1.f / d, F{}); }

// Byte l holds weights l and l + 16; levels 0 .. 15.
LANE_FN void pack_nibbles(const I *levels, I *words) {
    for (int k = 0; k < 4; ++k) {
        I word{};
        for (int b = 3; b >= 0; --b) word = (((word << 4) | levels[4 * k + b + 16]) << 4) | levels[4 * k + b];
        words[k] = word;
    }
}

// Levels 0 .. 31: their fifth bits as one word, which they lose.
LANE_FN I split_fifth_bits(I *levels) {
    I word{};
    for (int i = 31; i >= 0; --i) {
        word = (word << 1) | (levels[i] >> 4);
        levels[i] &= 15;
    }
    return word;
}

// x ~ d * (level - HALF): the extreme weight gets level 0.
template <int BITS>
struct Centered {
    static constexpr int WEIGHTS = 32, BYTES = 2 + (BITS == 5 ? 4 : 0) + 16, HALF = 1 << (BITS - 1);
    using Contiguous = ContiguousCentered<BITS>;

    static void encode(const F *x, const F *q, F variance, I *words) {
        F d;
        I levels[32], body[5];
        if (q) {
            F w[32];
            weigh<32>(x, q, variance, w);
            Symmetric fit;
            fit_symmetric<32, HALF, 1>(x, w, &fit);
            d = fit.scale;
            for (int i = 0; i < 32; ++i) levels[i] = to_int(level<HALF>(fit, x[i]));
        } else {
            F largest;
            d = extreme<32>(x, largest) / float(-HALF);
            F inverse = inverse_or_zero(d), offset = splat(HALF + 0.5f);
            // Denormal d: the reference converts infinity and NaN to bytes, which gives 0.
            I broken = infinite(inverse);
            inverse = select(broken, F{}, inverse);
            offset = select(broken, F{}, offset);
            for (int i = 0; i < 32; ++i) levels[i] = smaller(to_int(x[i] * inverse + offset), splat(2 * HALF - 1));
        }
        constexpr int EXTRA = BITS == 5;
        if (EXTRA) body[0] = split_fifth_bits(levels);
        pack_nibbles(levels, body + EXTRA);
        prepend_half<4 + EXTRA>(to_half(d), body, words);
    }
};

// x ~ d * level + min.
template <int BITS>
struct Offset {
    static constexpr int WEIGHTS = 32, BYTES = 4 + (BITS == 5 ? 4 : 0) + 16, HIGHEST = (1 << BITS) - 1;
    using Contiguous = ContiguousOffset<BITS>;

    // The lowest and highest weight; the first of equals (zeros have signs). Two halves at once, as in extreme().
    static LANE_INLINE void extent(const F *x, F &low, F &high) {
        F low2 = x[16], high2 = x[16];
        low = high = x[0];
        for (int i = 1; i < 16; ++i) {
            low = select(x[i] < low, x[i], low);
            high = select(x[i] > high, x[i], high);
            low2 = select(x[i + 16] < low2, x[i + 16], low2);
            high2 = select(x[i + 16] > high2, x[i + 16], high2);
        }
        low = select(low2 < low, low2, low);
        high = select(high2 > high, high2, high);
    }

    static void encode(const F *x, const F *q, F variance, I *words) {
        F d, low;
        I levels[32];
        if (q) {
            F w[32];
            weigh<32>(x, q, variance, w);
            Line line;
            fit_lines<32, HIGHEST, 36, false, 1>(x, w, -0.9f, 0.05f, &line);
            d = line.scale;
            low = line.min;
            for (int i = 0; i < 32; ++i) levels[i] = to_int(level<HIGHEST>(line, x[i]));
        } else {
            F high;
            extent(x, low, high);
            d = (high - low) / float(HIGHEST);
            F inverse = inverse_or_zero(d), offset = splat(0.5f), origin = low;
            // Denormal or infinite d: as above. Otherwise no level exceeds HIGHEST, as the ends are 0 and HIGHEST.
            I broken = infinite(inverse) | infinite(d);
            inverse = select(broken, F{}, inverse);
            offset = select(broken, F{}, offset);
            origin = select(broken, F{}, origin);
            for (int i = 0; i < 32; ++i) levels[i] = to_int((x[i] - origin) * inverse + offset);
        }
        words[0] = to_half(d) | (to_half(low) << 16);
        constexpr int EXTRA = BITS == 5;
        if (EXTRA) words[1] = split_fifth_bits(levels);
        pack_nibbles(levels, words + 1 + EXTRA);
    }
};

using Q4_0 = Centered<4>;
using Q5_0 = Centered<5>;
using Q4_1 = Offset<4>;
using Q5_1 = Offset<5>;

// In two chains, as in extreme(); magnitudes have no order among equals.
template <int N>
LANE_FN F largest_magnitude(const F *x) {
    I one{}, other{};
    for (int i = 0; i < N; i += 2) {
        one = larger(one, bits(magnitude(x[i])));
        other = larger(other, bits(magnitude(x[i + 1])));
    }
    return from_bits(larger(one, other));
}

struct Q8_0 {
    static constexpr int WEIGHTS = 32, BYTES = 34;

    static void encode(const F *x, const F *, F, I *words) {
        I body[8];
        F d = largest_magnitude<32>(x) / 127.f, inverse = inverse_or_zero(d);
        for (int k = 0; k < 8; ++k) {
            body[k] = I{};
            for (int b = 3; b >= 0; --b) body[k] = (body[k] << 8) | (to_int(round_away(x[4 * k + b] * inverse)) & 255);
        }
        prepend_half<8>(to_half(d), body, words);
    }

    // roundf: halves go away from zero. Adding the float below one half and truncating is exact below 2^23; above it the
    // value is an integer already, and what does not fit an int becomes INT_MIN either way. The truncation is to_int's.
    static LANE_INLINE F round_away(F v) {
        return v + from_bits((bits(v) & INT32_MIN) | bits(splat(0x1.fffffep-2f)));
    }
};

}  // namespace MEDLITE_ISA

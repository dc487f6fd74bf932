// IQ4_NL and IQ4_XS: 16 levels at uneven distances. IQ4_NL: blocks of 32; IQ4_XS: superblocks of 8 such blocks.
//
// Source: quantize_row_iq4_nl_impl and best_index_int8 in ggml/src/ggml-quants.c, kvalues_iq4nl in ggml/src/ggml-common.h.

namespace MEDLITE_ISA {

constexpr float IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// The level nearest to x, by four comparisons with the midpoints between levels. The reference compares the distances to
// both neighbours; near a midpoint both differences are exact floats, so the outcome is the same, ties and NaN upwards.
struct Iq4Levels {
    float middles[16];
    Table last, even, odd;

    Iq4Levels() : even(every_other(IQ4_VALUES)), odd(every_other(IQ4_VALUES + 1)) {
        for (int k = 1; k < 16; ++k) middles[k] = 0.5f * (IQ4_VALUES[k - 1] + IQ4_VALUES[k]);
        last = every_other(middles + 1);
    }

    static Table every_other(const float *from) {
        Table table;
        for (int k = 0; k < TABLE_SIZE; ++k) table[k] = from[k % 8 * 2];
        return table;
    }
    // The upper three bits of the level, and whether the lowest is set.
    LANE_INLINE I find(F x, I &upper) const {
        I first = ~(x < middles[8]);
        I second = ~(x < select(first, splat(middles[12]), splat(middles[4])));
        F below = select(second, splat(middles[6]), splat(middles[2]));
        F above = select(second, splat(middles[14]), splat(middles[10]));
        I third = ~(x < select(first, above, below));
        upper = (first & 4) | (second & 2) | (third & 1);
        return ~(x < lookup(last, upper));
    }
    LANE_INLINE F value(F x) const {
        I upper, lowest = find(x, upper);
        return select(lowest, lookup(odd, upper), lookup(even, upper));
    }
    LANE_INLINE I level(F x) const {
        I upper, lowest = find(x, upper);
        return 2 * upper - lowest;
    }
};

// The scale of one block of 32.
LANE_FN F fit_iq4(const Iq4Levels &levels, const F *x, const F *w) {
    F largest, peak = extreme<32>(x, largest), scale{}, best{};
    for (int trial = -8; trial <= 7; ++trial) {  // -8 stands for the reference's first guess
        F inverse = trial == -8 ? 1.f / (-peak / IQ4_VALUES[0]) : (float(trial) + IQ4_VALUES[0]) / peak, sum_qx{}, sum_q2{};
        for (int i = 0; i < 32; ++i) {
            F q = levels.value(inverse * x[i]), wq = w[i] * q;
            sum_qx += wq * x[i];
            sum_q2 += wq * q;
        }
        I some = sum_q2 > 0.f;
        F candidate = sum_qx / sum_q2;
        if (trial == -8) {
            scale = select(some, candidate, F{});
            best = scale * sum_qx;
            continue;
        }
        I better = some & (sum_qx * sum_qx > best * sum_q2);
        scale = select(better, candidate, scale);
        best = select(better, candidate * sum_qx, best);
    }
    return select(largest < NEARLY_ZERO, F{}, scale);
}

template <int N>
LANE_FN void fit_iq4_blocks(const Iq4Levels &levels, const F *x, const F *q, F *scales) {
    F variance = sum_of_squares(x, N) * (2.f / N), w[32];
    for (int j = 0; j < N / 32; ++j) {
        if (q) weigh<32>(x + 32 * j, q + 32 * j, variance, w);
        else
            for (int i = 0; i < 32; ++i) w[i] = x[32 * j + i] * x[32 * j + i];
        scales[j] = fit_iq4(levels, x + 32 * j, w);
    }
}

struct IQ4_NL {
    static constexpr int WEIGHTS = 32, BYTES = 18;

    static void encode(const F *x, const F *q, F, I *words) {
        Iq4Levels levels;
        F scale;
        I found[32], body[4];
        fit_iq4_blocks<32>(levels, x, q, &scale);
        F inverse = inverse_or_zero(scale);
        for (int i = 0; i < 32; ++i) found[i] = levels.level(inverse * x[i]);
        pack_nibbles(found, body);
        prepend_half<4>(to_half(scale), body, words);
    }
};

struct IQ4_XS {
    static constexpr int WEIGHTS = 256, BYTES = 136;

    static void encode(const F *x, const F *q, F, I *words) {
        Iq4Levels levels;
        F scales[8], largest;
        I found[32], low{}, high{};
        fit_iq4_blocks<256>(levels, x, q, scales);
        F d = -extreme<8>(scales, largest) / 32.f, inverse = inverse_or_zero(d);
        for (int j = 0; j < 8; ++j) {
            I l = nearest_clamped_int(inverse * scales[j], -32, 31);
            F of_block = inverse_or_zero(d * to_float(l));
            for (int i = 0; i < 32; ++i) found[i] = levels.level(of_block * x[32 * j + i]);
            pack_nibbles(found, words + 2 + 4 * j);
            low |= ((l + 32) & 15) << (4 * j);
            high |= ((l + 32) >> 4) << (2 * j);
        }
        words[0] = to_half(d) | (high << 16);
        words[1] = low;
    }
};

}  // namespace MEDLITE_ISA

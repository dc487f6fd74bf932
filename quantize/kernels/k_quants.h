// Q2_K, Q3_K, Q4_K, Q5_K, Q6_K: superblocks of 256 weights, one per lane.
//
// Layouts: block_q*_K in ggml/src/ggml-common.h. Algorithms: quantize_row_q*_K_ref (no importance) and quantize_row_q*_K_impl
// (importance) in ggml/src/ggml-quants.c. x[256]: the weights; q[256]: their importance, or nullptr.

namespace MEDLITE_ISA {

LANE_FN F sum_of_squares(const F *x, int n) {
    F sum{};
    for (int i = 0; i < n; ++i) sum += x[i] * x[i];
    return sum;
}

// The weights of the error terms with importance, and their sum.
template <int N>
LANE_FN F weigh(const F *x, const F *q, F variance, F *w) {
    F sum{};
    for (int i = 0; i < N; ++i) {
        w[i] = q[i] * square_root(variance + x[i] * x[i]);
        sum += w[i];
    }
    return sum;
}

template <int N>
LANE_FN F largest_positive(const F *values) {
    F largest{};
    for (int j = 0; j < N; ++j) largest = select(values[j] > largest, values[j], largest);
    return largest;
}

// ---- Q4_K and Q5_K: 8 lines of 32 weights, their scales and minima in 6 bits.

struct SixBitPairs {
    I bytes[12];

    void pack(const I *scales, const I *mins) {
        for (int j = 0; j < 4; ++j) {
            bytes[j] = (scales[j] | ((scales[j + 4] >> 4) << 6)) & 255;
            bytes[j + 4] = (mins[j] | ((mins[j + 4] >> 4) << 6)) & 255;
            bytes[j + 8] = (scales[j + 4] & 15) | ((mins[j + 4] & 15) << 4);
        }
    }
    I scale(int j) const { return j < 4 ? bytes[j] & 63 : (bytes[j + 4] & 15) | ((bytes[j - 4] >> 6) << 4); }
    I min(int j) const { return j < 4 ? bytes[j + 4] & 63 : (bytes[j + 4] >> 4) | ((bytes[j] >> 6) << 4); }
};

template <int BITS>
struct LineSuperblock {
    static constexpr int WEIGHTS = 256, BYTES = BITS == 4 ? 144 : 176, HIGHEST = (1 << BITS) - 1;

    static void encode(const F *x, const F *q, F, I *words) {
        Line lines[8];
        F scales[8], mins[8], sums[8], d, d_min;
        SixBitPairs packed;
        I scale_levels[8], min_levels[8];
        fit(x, q, lines, sums);
        for (int j = 0; j < 8; ++j) {
            scales[j] = lines[j].scale;
            mins[j] = -lines[j].min;
        }
        if (q) {
            d = fit_positive<8, 63>(scales, sums, scale_levels);
            d_min = fit_positive<8, 63>(mins, sums, min_levels);
            // quantize_row_q5_K_impl clamps the byte to 63, quantize_row_q4_K_impl does not.
            if (BITS == 5)
                for (int j = 0; j < 8; ++j) {
                    scale_levels[j] = smaller(scale_levels[j], splat(63));
                    min_levels[j] = smaller(min_levels[j], splat(63));
                }
        } else {
            d = spread(scales, scale_levels);
            d_min = spread(mins, min_levels);
        }
        packed.pack(scale_levels, min_levels);
        I half = to_half(d), half_min = to_half(d_min), levels[256];
        words[0] = half | (half_min << 16);
        for (int k = 0; k < 3; ++k) words[1 + k] = join_bytes(packed.bytes + 4 * k);
        for (int j = 0; j < 8; ++j)
            round_to(lines[j], x + 32 * j, from_half(half) * to_float(packed.scale(j)),
                     from_half(half_min) * to_float(packed.min(j)), levels + 32 * j);
        pack_levels(levels, words + 4);
    }

    static void fit(const F *x, const F *q, Line *lines, F *sums) {
        F w[256], variance{};
        if (q) variance = 2.f * sum_of_squares(x, 256) / 256.f;
        for (int j = 0; j < 8; ++j) {
            const F *xj = x + 32 * j;
            if (q) {
                sums[j] = weigh<32>(xj, q + 32 * j, variance, w + 32 * j);
            } else {
                F mean = square_root(sum_of_squares(xj, 32) / 32.f);
                for (int i = 0; i < 32; ++i) w[32 * j + i] = mean + magnitude(xj[i]);
            }
        }
        for (int j = 0; j < 8; j += AT_ONCE) {
            const F *xj = x + 32 * j, *wj = w + 32 * j;
            if (q) fit_lines<32, HIGHEST, 36, false, AT_ONCE>(xj, wj, -0.9f, 0.05f, lines + j);
            else if (BITS == 4) fit_lines<32, HIGHEST, 20, false, AT_ONCE>(xj, wj, -1.f, 0.1f, lines + j);
            else fit_lines<32, HIGHEST, 15, false, AT_ONCE>(xj, wj, -0.5f, 0.1f, lines + j);
        }
    }

    // 8 scales (or minima) on 63 steps of the largest. Returns the step.
    static F spread(const F *values, I *levels) {
        F largest = largest_positive<8>(values);
        F inverse = select(largest > 0.f, 63.f / largest, F{});
        for (int j = 0; j < 8; ++j) levels[j] = smaller(nearest(inverse * values[j]) & 255, splat(63));
        return largest / 63.f;
    }

    static void round_to(const Line &line, const F *x, F d, F min, I *levels) {
        for (int i = 0; i < 32; ++i) levels[i] = nearest_clamped_int((x[i] + min) / d, 0, HIGHEST);
        I zero = d == 0.f;
        if (any(zero))
            for (int i = 0; i < 32; ++i) levels[i] = select(zero, to_int(level<HIGHEST>(line, x[i])), levels[i]);
    }

    // Two lines share 32 bytes, one nibble each; the fifth bits of line j are bit j of 32 bytes in front.
    static void pack_levels(const I *levels, I *words) {
        if constexpr (BITS == 5) {
            for (int k = 0; k < 8; ++k) {
                I high{};
                for (int j = 0; j < 8; ++j)
                    for (int b = 0; b < 4; ++b) high |= (levels[32 * j + 4 * k + b] >> 4) << (8 * b + j);
                words[k] = high;
            }
            words += 8;
        }
        for (int pair = 0; pair < 4; ++pair)
            for (int k = 0; k < 8; ++k) {
                const I *low = levels + 64 * pair + 4 * k, *high = low + 32;
                I word{};
                for (int b = 0; b < 4; ++b) word |= ((low[b] & 15) | ((high[b] & 15) << 4)) << (8 * b);
                words[8 * pair + k] = word;
            }
    }
};

using Q4_K = LineSuperblock<4>;
using Q5_K = LineSuperblock<5>;

// 128 weights' low two bits: byte l holds weights l, l + 32, l + 64, l + 96. Q2_K and Q3_K.
LANE_FN void pack_two_bits(const I *levels, I *words) {
    for (int half = 0; half < 2; ++half)
        for (int k = 0; k < 8; ++k) {
            I word{};
            for (int b = 0; b < 4; ++b)
                for (int s = 0; s < 4; ++s)
                    word |= (levels[128 * half + 32 * s + 4 * k + b] & 3) << (8 * b + 2 * s);
            words[8 * half + k] = word;
        }
}

// ---- Q2_K: 16 lines of 16 weights, scales and minima in 4 bits.

struct Q2_K {
    static constexpr int WEIGHTS = 256, BYTES = 84;

    static void encode(const F *x, const F *q, F, I *words) {
        Line lines[16];
        F scales[16], mins[16], sums[16], d, d_min;
        I scale_levels[16], min_levels[16], levels[256], both[16];
        fit(x, q, lines, sums);
        for (int j = 0; j < 16; ++j) {
            scales[j] = lines[j].scale;
            mins[j] = -lines[j].min;
        }
        if (q) {
            d = fit_positive<16, 15>(scales, sums, scale_levels);
            d_min = fit_positive<16, 15>(mins, sums, min_levels);
        } else {
            d = spread(scales, scale_levels);
            d_min = spread(mins, min_levels);
        }
        I half = to_half(d), half_min = to_half(d_min);
        for (int j = 0; j < 16; ++j) {
            both[j] = (scale_levels[j] | (min_levels[j] << 4)) & 255;
            F dj = from_half(half) * to_float(both[j] & 15), mj = from_half(half_min) * to_float(both[j] >> 4);
            for (int i = 16 * j; i < 16 * j + 16; ++i) levels[i] = nearest_clamped_int((x[i] + mj) / dj, 0, 3);
            I zero = dj == 0.f;
            if (any(zero))
                for (int i = 16 * j; i < 16 * j + 16; ++i) levels[i] = select(zero, to_int(level<3>(lines[j], x[i])), levels[i]);
        }
        for (int k = 0; k < 4; ++k) words[k] = join_bytes(both + 4 * k);
        pack_two_bits(levels, words + 4);
        words[20] = half | (half_min << 16);
    }

    static void fit(const F *x, const F *q, Line *lines, F *sums) {
        F w[256], variance{};
        if (q) variance = sum_of_squares(x, 256) / 256.f;
        for (int j = 0; j < 16; ++j) {
            if (q) sums[j] = weigh<16>(x + 16 * j, q + 16 * j, variance, w + 16 * j);
            else
                for (int i = 16 * j; i < 16 * j + 16; ++i) w[i] = magnitude(x[i]);
        }
        for (int j = 0; j < 16; j += AT_ONCE) {
            if (q) fit_lines<16, 3, 36, false, AT_ONCE>(x + 16 * j, w + 16 * j, -0.9f, 0.05f, lines + j);
            else fit_lines<16, 3, 15, true, AT_ONCE>(x + 16 * j, w + 16 * j, -0.5f, 0.1f, lines + j);
        }
    }

    static F spread(const F *values, I *levels) {
        F largest = largest_positive<16>(values), inverse = 15.f / largest;
        I some = largest > 0.f;
        for (int j = 0; j < 16; ++j) levels[j] = select(some, nearest(inverse * values[j]), I{});
        return select(some, largest / 15.f, F{});
    }
};

// ---- Q3_K: 16 blocks of 16 weights around zero, scales in 6 bits.

struct Q3_K {
    static constexpr int WEIGHTS = 256, BYTES = 110;

    static void encode(const F *x, const F *q, F, I *words) {
        F scales[16], sums[16], found[256], d;
        I scale_levels[16], levels[256];
        if (q) {
            fit(x, q, found, scales, sums);
            Symmetric fit;
            fit_symmetric<16, 32, 1>(scales, sums, &fit);
            for (int j = 0; j < 16; ++j) scale_levels[j] = to_int(level<32>(fit, scales[j]));
            d = fit.scale;
        } else {
            descend_where_needed<16, 4, 16, 6>(x, found, scales);
            d = spread(scales, scale_levels);
        }
        I half = to_half(d);
        for (int j = 0; j < 16; ++j) {
            F dj = from_half(half) * to_float(scale_levels[j] - 32);
            I zero = dj == 0.f;
            for (int i = 16 * j; i < 16 * j + 16; ++i)
                levels[i] = select(zero, to_int(found[i]), nearest_clamped_int(x[i] / dj, -4, 3) + 4);
        }
        for (int k = 0; k < 8; ++k) {
            I high{};
            for (int b = 0; b < 4; ++b)
                for (int j = 0; j < 8; ++j) high |= (levels[32 * j + 4 * k + b] >> 2) << (8 * b + j);
            words[k] = high;
        }
        pack_two_bits(levels, words + 8);
        pack_scales(scale_levels, words + 24);
        words[27] = half;
    }

    static void fit(const F *x, const F *q, F *found, F *scales, F *sums) {
        F w[256], variance = 2.f * sum_of_squares(x, 256) / 256.f;
        Symmetric fits[16];
        for (int j = 0; j < 16; ++j) sums[j] = weigh<16>(x + 16 * j, q + 16 * j, variance, w + 16 * j);
        for (int j = 0; j < 16; j += AT_ONCE) fit_symmetric<16, 4, AT_ONCE>(x + 16 * j, w + 16 * j, fits + j);
        for (int j = 0; j < 16; ++j) {
            for (int i = 16 * j; i < 16 * j + 16; ++i) found[i] = level<4>(fits[j], x[i]);
            scales[j] = fits[j].scale;
        }
    }

    // The reference narrows nearest_int to a byte before it clamps.
    static F spread(const F *scales, I *levels) {
        F largest, peak = extreme<16>(scales, largest), inverse = -32.f / peak;
        I some = peak != 0.f;
        for (int j = 0; j < 16; ++j) {
            I byte = (nearest(inverse * scales[j]) << 24) >> 24;
            levels[j] = select(some, smaller(larger(byte, splat(-32)), splat(31)) + 32, I{});
        }
        return select(some, 1.f / inverse, F{});
    }

    static void pack_scales(const I *s, I *words) {
        for (int k = 0; k < 2; ++k) {
            I low[4];
            for (int b = 0; b < 4; ++b) low[b] = (s[4 * k + b] & 15) | ((s[4 * k + b + 8] & 15) << 4);
            words[k] = join_bytes(low);
        }
        I high[4];
        for (int b = 0; b < 4; ++b)
            high[b] = (s[b] >> 4) | ((s[b + 4] >> 4) << 2) | ((s[b + 8] >> 4) << 4) | ((s[b + 12] >> 4) << 6);
        words[2] = join_bytes(high);
    }
};

// ---- Q6_K: 16 blocks of 16 weights around zero, scales in 8 bits.

struct Q6_K {
    static constexpr int WEIGHTS = 256, BYTES = 210;

    static void encode(const F *x, const F *q, F, I *words) {
        Symmetric fits[16];
        F scales[16], w[256], largest;
        I scale_levels[16], levels[256];
        for (int i = 0; i < 256; ++i) w[i] = q ? q[i] : x[i] * x[i];
        for (int j = 0; j < 16; j += AT_ONCE) fit_symmetric<16, 32, AT_ONCE>(x + 16 * j, w + 16 * j, fits + j);
        for (int j = 0; j < 16; ++j) scales[j] = fits[j].scale;
        F peak = extreme<16>(scales, largest), inverse = -128.f / peak;
        I some = ~(largest < NEARLY_ZERO), half = to_half(1.f / inverse);
        for (int j = 0; j < 16; ++j) {
            scale_levels[j] = (smaller(nearest(inverse * scales[j]), splat(127)) << 24) >> 24;
            F d = from_half(half) * to_float(scale_levels[j]);
            for (int i = 16 * j; i < 16 * j + 16; ++i) levels[i] = nearest_clamped_int(x[i] / d, -32, 31) + 32;
            I zero = d == 0.f;
            if (any(zero))
                for (int i = 16 * j; i < 16 * j + 16; ++i)
                    levels[i] = select(zero, to_int(level<32>(fits[j], x[i])), levels[i]);
        }
        pack_levels(levels, words);
        for (int k = 0; k < 4; ++k) {
            const I *s = scale_levels + 4 * k;
            words[48 + k] = join_bytes(s[0] & 255, s[1] & 255, s[2] & 255, s[3] & 255);
        }
        words[52] = half;
        for (int k = 0; k < 53; ++k) words[k] &= some;
    }

    // 128 bytes of low nibbles, then 64 bytes of the two high bits.
    static void pack_levels(const I *levels, I *words) {
        for (int half = 0; half < 2; ++half)
            for (int k = 0; k < 8; ++k) {
                const I *l = levels + 128 * half + 4 * k;
                I low{}, middle{}, high{};
                for (int b = 0; b < 4; ++b) {
                    low |= ((l[b] & 15) | ((l[b + 64] & 15) << 4)) << (8 * b);
                    middle |= ((l[b + 32] & 15) | ((l[b + 96] & 15) << 4)) << (8 * b);
                    for (int s = 0; s < 4; ++s) high |= (l[b + 32 * s] >> 4) << (8 * b + 2 * s);
                }
                words[16 * half + k] = low;
                words[16 * half + 8 + k] = middle;
                words[32 + 8 * half + k] = high;
            }
    }
};

}  // namespace MEDLITE_ISA

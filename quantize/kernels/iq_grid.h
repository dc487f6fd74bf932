// IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S: superblocks of 256 weights, one per lane, their levels on a lattice.
//
// Layouts: block_iq2_*, block_iq3_* in ggml/src/ggml-common.h. `encode` returns the lanes where ggml would abort the process:
// weights so large that every candidate's error overflows.

namespace MEDLITE_ISA {

// The scales of a superblock's blocks on 16 odd steps (1, 3, .. 31 times d). Returns the largest scale, 31 d.
template <int N>
LANE_FN F spread_on_odd_steps(const F *scales, I *levels) {
    F largest{};
    for (int j = 0; j < N; ++j) largest = select(largest > scales[j], largest, scales[j]);
    F inverse = 1.f / (largest / 31.f);
    I some = largest != 0.f;
    for (int j = 0; j < N; ++j)
        levels[j] = select(some, nearest_clamped_int(0.5f * (inverse * scales[j] - 1.f), 0, 15), I{});
    return largest;
}

// What the five types share: weigh, split the signs, search, flip a negative scale.
template <GridRules const &RULES>
struct GridFit {
    using Search = GridSearch<RULES>;
    static constexpr int N = Search::N;
    F x[N], w[N], scale;
    I signs[N / 8], index[RULES.n_groups], active, failed;

    // Weights of the errors: with importance q as usual, without it as the type says.
    void weigh_errors(const F *from, const F *q, F variance, F constant) {
        for (int i = 0; i < N; ++i) {
            x[i] = from[i];
            w[i] = q ? q[i] * square_root(variance + x[i] * x[i]) : constant + x[i] * x[i];
        }
    }

    void search(const Lattice &lattice, F reach, F first_scale, int sign_mask) {
        Search grid(lattice, x, w);
        typename Search::Fit fit = grid.search(reach, first_scale, active);
        I negative = fit.scale < 0.f;
        for (int k = 0; k < N / 8; ++k) signs[k] = active & select(negative, ~signs[k] & sign_mask, signs[k]);
        grid.indices(fit, index);
        for (int g = 0; g < RULES.n_groups; ++g) index[g] &= active;
        scale = select(active, select(negative, -fit.scale, fit.scale), F{});
        failed = active & (grid.failed | ~(scale >= 0.f));
    }
};

static constexpr GridRules IQ2_XXS_RULES = {2, 8, 4, 6, 0.1f, Refine::EVERY_GROUP};
static constexpr GridRules IQ2_16_RULES = {2, 8, 2, 9, 0.1f, Refine::OFF_GRID_GROUPS};
static constexpr GridRules IQ3_XXS_RULES = {3, 4, 8, 15, 0.2f, Refine::OFF_GRID_GROUPS};
static constexpr GridRules IQ3_S_RULES = {3, 4, 8, 9, 0.2f, Refine::EVERY_GROUP_IF_ANY_OFF_GRID};

struct IQ2_XXS {
    static constexpr int WEIGHTS = 256, BYTES = 66;

    static I encode(const F *x, const F *q, F, I *words) {
        F scales[8], variance = sum_of_squares(x, 256) / 256.f;
        I body[16], levels[8], failed{};
        for (int j = 0; j < 8; ++j) {
            GridFit<IQ2_XXS_RULES> fit;
            fit.weigh_errors(x + 32 * j, q + 32 * j, variance, F{});
            split_signs<32>(fit.x, fit.w, true, fit.signs);
            I unused[32];
            F first_scale = fit_positive<32, 4>(fit.x, fit.w, unused), reach = first_scale * 3.f;
            fit.active = ~((largest_of<32>(fit.x) < NEARLY_ZERO) | (reach <= 0.f));
            fit.search(iq2_xxs_lattice(), reach, first_scale, 127);
            failed |= fit.failed;
            scales[j] = fit.scale;
            body[2 * j] = join_bytes(fit.index);
            body[2 * j + 1] = fit.signs[0] | (fit.signs[1] << 7) | (fit.signs[2] << 14) | (fit.signs[3] << 21);
        }
        F largest = spread_on_odd_steps<8>(scales, levels);
        I some = largest != 0.f;
        for (int j = 0; j < 8; ++j) body[2 * j + 1] |= levels[j] << 28;
        for (int k = 0; k < 16; ++k) body[k] &= some;
        prepend_half<16>(to_half(largest / 31.f), body, words);
        return failed;
    }
};

// 16 scales of 4 bits, two per byte.
LANE_FN void pack_sixteen_scales(const I *levels, I *words) {
    for (int k = 0; k < 2; ++k) {
        I bytes[4];
        for (int b = 0; b < 4; ++b) bytes[b] = levels[8 * k + 2 * b] | (levels[8 * k + 2 * b + 1] << 4);
        words[k] = join_bytes(bytes);
    }
}

struct IQ2_XS {
    static constexpr int WEIGHTS = 256, BYTES = 74;

    static I encode(const F *x, const F *q, F, I *words) {
        F scales[16], variance = sum_of_squares(x, 256) / 256.f;
        I body[18], levels[16], failed{};
        for (int j = 0; j < 16; ++j) {
            GridFit<IQ2_16_RULES> fit;
            fit.weigh_errors(x + 16 * j, q + 16 * j, variance, F{});
            split_signs<16>(fit.x, fit.w, true, fit.signs);
            F high = largest_of<16>(fit.x);
            fit.active = ~(high < NEARLY_ZERO);
            fit.search(iq2_xs_lattice(), high, high / 5.f, 127);
            failed |= fit.failed;
            scales[j] = fit.scale;
            body[j] = fit.index[0] | (fit.signs[0] << 9) | (fit.index[1] << 16) | (fit.signs[1] << 25);
        }
        F largest = spread_on_odd_steps<16>(scales, levels);
        I some = largest != 0.f;
        for (int k = 0; k < 16; ++k) body[k] &= some;
        pack_sixteen_scales(levels, body + 16);
        prepend_half<18>(to_half(largest / 31.f), body, words);
        return failed;
    }
};

struct IQ2_S {
    static constexpr int WEIGHTS = 256, BYTES = 82;

    static I encode(const F *x, const F *q, F, I *words) {
        F scales[16], variance = 2.f * sum_of_squares(x, 256) / 256.f;
        I body[20], levels[16], failed{};
        for (int k = 0; k < 20; ++k) body[k] = I{};
        for (int j = 0; j < 16; ++j) {
            GridFit<IQ2_16_RULES> fit;
            fit.weigh_errors(x + 16 * j, q ? q + 16 * j : nullptr, variance, 0.25f * variance);
            split_signs<16>(fit.x, fit.w, false, fit.signs);
            F high = largest_of<16>(fit.x);
            fit.active = ~(high < 1e-8f);  // GROUP_MAX_EPS_IQ2_S
            fit.search(iq2_s_lattice(), high, high / 5.f, 255);
            failed |= fit.failed;
            scales[j] = fit.scale;
            int shift = 16 * (j % 2);
            body[j / 2] |= ((fit.index[0] & 255) | ((fit.index[1] & 255) << 8)) << shift;
            body[8 + j / 2] |= (fit.signs[0] | (fit.signs[1] << 8)) << shift;
            body[16 + j / 8] |= ((fit.index[0] >> 8) | ((fit.index[1] >> 8) << 2)) << (4 * (j % 8));
        }
        F largest = spread_on_odd_steps<16>(scales, levels);
        pack_sixteen_scales(levels, body + 18);
        prepend_half<20>(to_half(largest / 31.f * 0.9875f), body, words);
        return failed;
    }
};

struct IQ3_XXS {
    static constexpr int WEIGHTS = 256, BYTES = 98;

    static I encode(const F *x, const F *q, F, I *words) {
        F scales[8], variance = 2.f * sum_of_squares(x, 256) / 256.f;
        I body[24], levels[8], failed{};
        for (int j = 0; j < 8; ++j) {
            GridFit<IQ3_XXS_RULES> fit;
            fit.weigh_errors(x + 32 * j, q ? q + 32 * j : nullptr, variance, F{});
            split_signs<32>(fit.x, fit.w, true, fit.signs);
            F high = largest_of<32>(fit.x);
            fit.active = ~(high < 1e-8f);  // GROUP_MAX_EPS_IQ3_XXS
            fit.search(iq3_xxs_lattice(), high, high / 15.f, 127);
            failed |= fit.failed;
            scales[j] = fit.scale;
            body[2 * j] = join_bytes(fit.index);
            body[2 * j + 1] = join_bytes(fit.index + 4);
            body[16 + j] = fit.signs[0] | (fit.signs[1] << 7) | (fit.signs[2] << 14) | (fit.signs[3] << 21);
        }
        F largest = spread_on_odd_steps<8>(scales, levels);
        I some = largest != 0.f;
        for (int j = 0; j < 8; ++j) body[16 + j] |= levels[j] << 28;
        for (int k = 0; k < 24; ++k) body[k] &= some;
        prepend_half<24>(to_half(largest / 31.f * 1.0125f), body, words);
        return failed;
    }
};

struct IQ3_S {
    static constexpr int WEIGHTS = 256, BYTES = 110;

    static I encode(const F *x, const F *q, F, I *words) {
        F scales[8], variance = 2.f * sum_of_squares(x, 256) / 256.f;
        I body[27], levels[8], high_bits[8], active[8], failed{};
        for (int j = 0; j < 8; ++j) {
            GridFit<IQ3_S_RULES> fit;
            fit.weigh_errors(x + 32 * j, q ? q + 32 * j : nullptr, variance, F{});
            split_signs<32>(fit.x, fit.w, false, fit.signs);
            F high = largest_of<32>(fit.x);
            fit.active = active[j] = high != 0.f;
            fit.search(iq3_s_lattice(), high, high / 15.f, 255);
            failed |= fit.failed;
            scales[j] = fit.scale;
            high_bits[j] = I{};
            for (int g = 0; g < 8; ++g) {
                high_bits[j] |= (fit.index[g] >> 8) << g;
                fit.index[g] &= 255;
            }
            body[2 * j] = join_bytes(fit.index);
            body[2 * j + 1] = join_bytes(fit.index + 4);
            body[18 + j] = join_bytes(fit.signs);
        }
        F largest = spread_on_odd_steps<8>(scales, levels);
        close_gaps(active, body);
        body[16] = join_bytes(high_bits);
        body[17] = join_bytes(high_bits + 4);
        body[26] = I{};
        for (int j = 0; j < 8; ++j) body[26] |= levels[j] << (4 * j);
        prepend_half<27>(to_half(largest / 31.f * 1.033f), body, words);
        return failed;
    }

    // quantize_row_iq3_s_impl does not advance its write positions for levels and signs past a block of zeros, so the
    // blocks behind it move up (their high bits and scales do not). We write what it writes.
    static void close_gaps(const I *active, I *body) {
        I all = splat(-1);
        for (int j = 0; j < 8; ++j) all &= active[j];
        if (!any(~all)) return;
        for (int k = 0; k < W; ++k)
            for (int j = 0, to = 0; j < 8; ++j) {
                int32_t low = body[2 * j][k], high = body[2 * j + 1][k], signs = body[18 + j][k];
                body[2 * j][k] = body[2 * j + 1][k] = body[18 + j][k] = 0;
                if (!active[j][k]) continue;
                body[2 * to][k] = low;
                body[2 * to + 1][k] = high;
                body[18 + to][k] = signs;
                ++to;
            }
    }
};

}  // namespace MEDLITE_ISA

// The search of IQ2 and IQ3: a scale for a block whose levels must be points of a lattice.
//
// Scales, signs and sums run with one block per lane. Only the choice among a code's candidate points differs in length from
// lane to lane; there the lanes are the candidates of one group of one block.
// Source: quantize_row_iq2_{xxs,xs,s}_impl, quantize_row_iq3_{xxs,s}_impl, iq2_find_best_neighbour and
// iq3_find_best_neighbour in ggml/src/ggml-quants.c.

namespace MEDLITE_ISA {

// How the five types' searches differ.
enum class Refine { EVERY_GROUP, OFF_GRID_GROUPS, EVERY_GROUP_IF_ANY_OFF_GRID };

struct GridRules {
    int bits, n_levels, n_groups;  // a block is n_groups points of n_levels levels
    int n_trials;                  // on each side of the first scale
    float step;                    // between the trials' largest levels
    Refine refine;                 // what is rounded again with the best scale
};

// Signs of one block: bit i of signs[k] for weight 8k + i. x becomes magnitudes. With `even`, each group of 8 has an even
// number of minus signs: where it has not, the weight whose error matters least changes sign.
template <int N>
LANE_FN void split_signs(F *x, const F *w, bool even, I *signs) {
    for (int k = 0; k < N / 8; ++k) {
        F *xk = x + 8 * k, least = w[8 * k] * xk[0] * xk[0];
        I sign{}, parity{}, least_at = splat(1);
        for (int i = 0; i < 8; ++i) {
            F error = w[8 * k + i] * xk[i] * xk[i];
            I smaller_error = error < least, minus = ~(xk[i] >= 0.f);
            least = select(smaller_error, error, least);
            least_at = select(smaller_error, splat(1 << i), least_at);
            sign |= minus & (1 << i);
            parity ^= minus;
            xk[i] = select(minus, -xk[i], xk[i]);
        }
        if (even) {
            least_at &= parity;
            for (int i = 0; i < 8; ++i) xk[i] = select((least_at & (1 << i)) != 0, -xk[i], xk[i]);
            sign ^= least_at;
        }
        signs[k] = sign & (even ? 127 : 255);
    }
}

template <int N>
LANE_FN F largest_of(const F *x) {
    F largest = x[0];
    for (int i = 1; i < N; ++i) largest = select(largest > x[i], largest, x[i]);
    return largest;
}

// The candidate with the smallest weighted error; the first of equals, as the reference's strict comparison chooses.
// Every error is a sum of terms that depend on one level each, so the terms are tables. Returns -1 if no error is finite,
// where the reference aborts the process.
template <int BITS, int LEVELS>
static inline int nearest_candidate(const uint16_t *candidates, int n, const float *x, const float *w, float scale) {
    Table terms[LEVELS], level;
    for (int k = 0; k < TABLE_SIZE; ++k) level[k] = float(2 * (k & ((1 << BITS) - 1)) + 1);
    Table scaled = scale * level;
    for (int i = 0; i < LEVELS; ++i) {
        Table difference = scaled - x[i];
        terms[i] = w[i] * difference * difference;
    }
    F least = splat(FLT_MAX);
    I place{}, at = lane_numbers();
    for (int j = 0; j < n; j += W) {
        I code = (I)__builtin_convertvector(load_as<H>(candidates + j), U);
        F error = lookup(terms[0], code);
        for (int i = 1; i < LEVELS; ++i) error += lookup(terms[i], code >> (BITS * i));
        I better = error < least;
        least = select(better, error, least);
        place = select(better, at, place);
        at += W;
    }
    float least_of_all = smallest(least);
    if (!(least_of_all < FLT_MAX)) return -1;
    int first = smallest(select(least == least_of_all, place, splat(INT32_MAX)));
    return candidates[first];
}

// A block per lane, in both orders: columns for the sums, rows for the choice among candidates.
template <int N>
struct GridBlock {
    const F *x, *w;  // magnitudes, and the weights of the errors
    float x_rows[W][N], root_rows[W][N];

    GridBlock(const F *x_columns, const F *w_columns) : x(x_columns), w(w_columns) {
        for (int first = 0; first < N; first += W) {
            F tile[W], roots[W];
            for (int k = 0; k < W; ++k) tile[k] = x[first + k], roots[k] = square_root(w[first + k]);
            transpose(tile);
            transpose(roots);
            for (int k = 0; k < W; ++k) {
                memcpy(x_rows[k] + first, &tile[k], sizeof(F));
                memcpy(root_rows[k] + first, &roots[k], sizeof(F));
            }
        }
    }
};

template <GridRules const &RULES>
struct GridSearch {
    static constexpr int GROUPS = RULES.n_groups, LEVELS = RULES.n_levels, BITS = RULES.bits, N = GROUPS * LEVELS;
    static constexpr int HIGHEST = BITS == 2 ? 2 : 7;

    struct Fit {
        I codes[GROUPS], on_grid[GROUPS];
        F scale;
    };

    const Lattice &lattice;
    GridBlock<N> block;
    I failed{};  // lanes where no candidate has a finite error

    GridSearch(const Lattice &points, const F *x, const F *w) : lattice(points), block(x, w) {}

    // Round with `inverse`, and move what is off the grid to the best candidate. Only where `wanted`.
    void round_to_grid(F inverse, F scale, const I *wanted, I *codes, I *on_grid) {
        float scales[W];
        memcpy(scales, &scale, sizeof scales);
        for (int g = 0; g < GROUPS; ++g) {
            I code{};
            for (int i = 0; i < LEVELS; ++i) {
                F l = 0.5f * (inverse * block.x[LEVELS * g + i] - 1.f);
                code |= nearest_clamped_int(l, 0, HIGHEST) << (BITS * i);
            }
            int32_t rounded[W], here[W], want[W];
            memcpy(rounded, &code, sizeof rounded);
            memcpy(want, &wanted[g], sizeof want);
            for (int k = 0; k < W; ++k) {
                const Code &found = lattice.codes[rounded[k]];
                here[k] = -(found.index >= 0);
                if (here[k] || !want[k]) continue;
                int best = nearest_candidate<BITS, LEVELS>(
                    lattice.candidates + found.first, found.n_candidates, block.x_rows[k] + LEVELS * g,
                    block.root_rows[k] + LEVELS * g, scales[k]);
                if (best < 0) failed[k] = -1;
                else rounded[k] = best;
            }
            codes[g] = load_as<I>(rounded);
            on_grid[g] = load_as<I>(here);
        }
    }

    void sums(const I *codes, F &sum_qx, F &sum_q2) const {
        sum_qx = sum_q2 = F{};
        for (int g = 0; g < GROUPS; ++g)
            for (int i = 0; i < LEVELS; ++i) {
                F q = to_float(2 * ((codes[g] >> (BITS * i)) & ((1 << BITS) - 1)) + 1);
                F w = block.w[LEVELS * g + i];
                sum_qx += w * block.x[LEVELS * g + i] * q;
                sum_q2 += w * q * q;
            }
    }

    // reach: the magnitude that the highest level stands for in the middle trial. first_scale: the scale if no trial fits.
    Fit search(F reach, F first_scale, I active) {
        Fit best;
        F best_score{}, sum_qx, sum_q2;
        I wanted[GROUPS];
        best.scale = first_scale;
        for (int g = 0; g < GROUPS; ++g) {
            best.codes[g] = I{};
            best.on_grid[g] = splat(RULES.refine == Refine::OFF_GRID_GROUPS ? -1 : 0);
            wanted[g] = active;
        }
        for (int trial = -RULES.n_trials; trial <= RULES.n_trials; ++trial) {
            I codes[GROUPS], on_grid[GROUPS];
            F inverse = (float(2 * HIGHEST + 1) + float(trial) * RULES.step) / reach;
            round_to_grid(inverse, 1.f / inverse, wanted, codes, on_grid);
            sums(codes, sum_qx, sum_q2);
            I better = (sum_q2 > 0.f) & (sum_qx * sum_qx > best_score * sum_q2);
            best.scale = select(better, sum_qx / sum_q2, best.scale);
            best_score = select(better, best.scale * sum_qx, best_score);
            for (int g = 0; g < GROUPS; ++g) {
                best.codes[g] = select(better, codes[g], best.codes[g]);
                best.on_grid[g] = select(better, on_grid[g], best.on_grid[g]);
            }
        }
        refine(best, active);
        return best;
    }

    void refine(Fit &best, I active) {
        I all_on_grid = splat(-1), wanted[GROUPS], codes[GROUPS], on_grid[GROUPS];
        for (int g = 0; g < GROUPS; ++g) all_on_grid &= best.on_grid[g];
        if (RULES.refine == Refine::EVERY_GROUP) all_on_grid = I{};
        I some = active & ~all_on_grid & (best.scale > 0.f);
        for (int g = 0; g < GROUPS; ++g)
            wanted[g] = some & (RULES.refine == Refine::OFF_GRID_GROUPS ? ~best.on_grid[g] : splat(-1));
        round_to_grid(1.f / best.scale, best.scale, wanted, codes, on_grid);
        for (int g = 0; g < GROUPS; ++g) best.codes[g] = select(wanted[g], codes[g], best.codes[g]);
        F sum_qx, sum_q2;
        sums(best.codes, sum_qx, sum_q2);
        best.scale = select(some & (sum_q2 > 0.f), sum_qx / sum_q2, best.scale);
    }

    void indices(const Fit &fit, I *index) const {
        for (int g = 0; g < GROUPS; ++g)
            for (int k = 0; k < W; ++k) index[g][k] = lattice.codes[fit.codes[g][k]].index;
    }
};

}  // namespace MEDLITE_ISA

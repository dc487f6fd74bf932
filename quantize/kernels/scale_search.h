// The searches for the scale (and minimum) of a block, W blocks side by side, one per lane.
//
// Each function performs, lane by lane, the operations of one ggml function in its order; a branch of the scalar program is a
// mask here. What the scalar program keeps as an array of levels is kept as the numbers that made it (`Line`, `Symmetric`),
// because the levels are needed again only where the stored scale rounds to zero.
// Source: make_qkx2_quants, make_qkx3_quants, make_qx_quants, make_q3_quants, make_qp_quants in ggml/src/ggml-quants.c.

namespace MEDLITE_ISA {

constexpr float NEARLY_ZERO = 1e-15f;  // GROUP_MAX_EPS

// x ~ scale * level + min. The levels of the best fit are clamp(nearest(level_scale * (x - level_min))).
struct Line {
    F scale, min, level_scale, level_min;
};

template <int HIGHEST>
LANE_FN F level(const Line &line, F x) {
    return nearest_clamped(line.level_scale * (x - line.level_min), 0, HIGHEST);
}

// One candidate of the line search: round with `inverse`, then solve the weighted least squares for scale and minimum.
template <int N, int HIGHEST, bool ABSOLUTE>
LANE_FN void try_line(Line &best, F &best_error, F inverse, const F *x, const F *w, F sum_w, F sum_x) {
    F levels[N], sum_l{}, sum_l2{}, sum_xl{}, min = best.min;
    for (int i = 0; i < N; ++i) {
        F l = nearest_clamped(inverse * (x[i] - min), 0, HIGHEST);
        levels[i] = l;
        F wl = w[i] * l;
        sum_l += wl;
        sum_l2 += wl * l;
        sum_xl += wl * x[i];
    }
    F determinant = sum_w * sum_l2 - sum_l * sum_l;
    F new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
    F new_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
    I above = new_min > 0.f;
    new_scale = select(above, sum_xl / sum_l2, new_scale);
    new_min = select(above, F{}, new_min);
    F error{};
    for (int i = 0; i < N; ++i) {
        F difference = new_scale * levels[i] + new_min - x[i];
        error += w[i] * (ABSOLUTE ? magnitude(difference) : difference * difference);
    }
    I better = (determinant > 0.f) & (error < best_error);
    best_error = select(better, error, best_error);
    best.level_scale = select(better, inverse, best.level_scale);
    best.level_min = select(better, min, best.level_min);
    best.scale = select(better, new_scale, best.scale);
    best.min = select(better, new_min, best.min);
}

// make_qkx2_quants and make_qkx3_quants, which are one algorithm. `first` and `step`: rmin and rdelta there.
// A block of equal values needs no branch: its inverse is infinite, its levels are nearest(NaN) = 0, its scale is 1/inf = 0.
template <int N, int HIGHEST, int STEPS, bool ABSOLUTE>
LANE_FN Line fit_line(const F *x, const F *w, float first, float step) {
    F low = x[0], high = x[0], sum_w = w[0], sum_x = w[0] * x[0];
    for (int i = 1; i < N; ++i) {
        low = select(x[i] < low, x[i], low);
        high = select(x[i] > high, x[i], high);
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    low = select(low > 0.f, F{}, low);
    F inverse = float(HIGHEST) / (high - low);
    Line best = {1.f / inverse, low, inverse, low};
    F best_error{};
    for (int i = 0; i < N; ++i) {
        F difference = best.scale * level<HIGHEST>(best, x[i]) + low - x[i];
        best_error += w[i] * (ABSOLUTE ? magnitude(difference) : difference * difference);
    }
    for (int trial = 0; trial <= STEPS; ++trial) {
        F candidate = (first + step * float(trial) + float(HIGHEST)) / (high - best.min);
        try_line<N, HIGHEST, ABSOLUTE>(best, best_error, candidate, x, w, sum_w, sum_x);
    }
    return best;
}

// x ~ scale * (level - HALF), levels 0 .. 2 HALF - 1; every level of a block that is nearly zero is 0.
struct Symmetric {
    F scale, level_scale;
    I nearly_zero;
};

template <int HALF>
LANE_FN F level(const Symmetric &fit, F x) {
    F l = nearest_clamped(fit.level_scale * x, -HALF, HALF - 1) + float(HALF);
    return select(fit.nearly_zero, F{}, l);
}

// The element of largest magnitude (the first one, if several), with its sign; `largest` is the magnitude.
template <int N>
LANE_FN F extreme(const F *x, F &largest) {
    F value{};
    largest = F{};
    for (int i = 0; i < N; ++i) {
        F a = magnitude(x[i]);
        I more = a > largest;
        largest = select(more, a, largest);
        value = select(more, x[i], value);
    }
    return value;
}

// make_qx_quants with rmse_type 1: w is x * x or given.
template <int N, int HALF>
LANE_FN Symmetric fit_symmetric(const F *x, const F *w) {
    F wx[N], largest, peak = extreme<N>(x, largest);
    for (int i = 0; i < N; ++i) wx[i] = w[i] * x[i];
    Symmetric fit = {F{}, float(-HALF) / peak, largest < NEARLY_ZERO};
    F best{};
    for (int trial = -10; trial <= 9; ++trial) {  // -10 stands for the unshifted scale, which the reference tries first
        if (trial == 0) continue;
        F inverse = trial == -10 ? fit.level_scale : -(float(HALF) + 0.1f * float(trial)) / peak;
        F sum_lx{}, sum_l2{};
        for (int i = 0; i < N; ++i) {
            F l = nearest_clamped(inverse * x[i], -HALF, HALF - 1);
            sum_lx += wx[i] * l;
            sum_l2 += w[i] * l * l;
        }
        F scale = sum_lx / sum_l2;
        I better = (sum_l2 > 0.f) & (sum_lx * sum_lx > best * sum_l2);
        if (trial == -10) {
            better = splat(-1);
            scale = select(sum_l2 != 0.f, scale, F{});
        }
        fit.level_scale = select(better, inverse, fit.level_scale);
        fit.scale = select(better, scale, fit.scale);
        best = select(better, scale * sum_lx, best);
    }
    fit.scale = select(fit.nearly_zero, F{}, fit.scale);
    return fit;
}

// make_q3_quants with do_rmse: levels (0 .. 2 HALF - 1) improved one at a time, at most 5 rounds. Returns the scale.
// A lane that a round did not change is not changed by the next either, so no lane needs to remember that it has stopped.
template <int N, int HALF>
LANE_FN F descend_symmetric(const F *x, F *levels) {
    F w[N], wx[N], largest, peak = extreme<N>(x, largest), sum_lx{}, sum_l2{};
    I nearly_zero = largest < NEARLY_ZERO;
    F inverse = float(-HALF) / peak;
    for (int i = 0; i < N; ++i) {
        F l = nearest_clamped(inverse * x[i], -HALF, HALF - 1);
        levels[i] = l;
        w[i] = x[i] * x[i];
        wx[i] = w[i] * x[i];
        sum_lx += wx[i] * l;
        sum_l2 += w[i] * l * l;
    }
    for (int round = 0; round < 5; ++round) {
        I changed{};
        for (int i = 0; i < N; ++i) {
            F l = levels[i];
            F lx = sum_lx - wx[i] * l, l2 = sum_l2 - w[i] * l * l;
            F moved = nearest_clamped(x[i] * l2 / lx, -HALF, HALF - 1);
            I candidate = (lx > 0.f) & (moved != l);
            lx += wx[i] * moved;
            l2 += w[i] * moved * moved;
            I better = candidate & (l2 > 0.f) & (lx * lx * sum_l2 > sum_lx * sum_lx * l2);
            levels[i] = select(better, moved, l);
            sum_lx = select(better, lx, sum_lx);
            sum_l2 = select(better, l2, sum_l2);
            changed |= better;
        }
        if (!any(changed & ~nearly_zero)) break;
    }
    for (int i = 0; i < N; ++i) levels[i] = select(nearly_zero, F{}, levels[i] + float(HALF));
    return select(nearly_zero | ~(sum_l2 > 0.f), F{}, sum_lx / sum_l2);
}

// make_qp_quants: x ~ scale * level, levels 0 .. highest as bytes. A negative level wraps to a byte, as it does there.
template <int N, int HIGHEST>
LANE_FN F fit_positive(const F *x, const F *w, I *levels) {
    F high{};
    for (int i = 0; i < N; ++i) high = select(high > x[i], high, x[i]);
    I nearly_zero = high < NEARLY_ZERO;
    F inverse = float(HIGHEST) / high, scale = 1.f / inverse, best_error{};
    for (int i = 0; i < N; ++i) {
        F difference = x[i] - scale * to_float(nearest(inverse * x[i]) & 255);
        best_error += w[i] * difference * difference;
    }
    for (int trial = -4; trial <= 4; ++trial) {
        if (trial == 0) continue;
        F candidate = (0.1f * float(trial) + float(HIGHEST)) / high, its_scale = 1.f / candidate, error{};
        for (int i = 0; i < N; ++i) {
            F difference = x[i] - its_scale * to_float(smaller(nearest(candidate * x[i]), splat(HIGHEST)));
            error += w[i] * difference * difference;
        }
        I better = error < best_error;
        best_error = select(better, error, best_error);
        inverse = select(better, candidate, inverse);
    }
    F sum_lx{}, sum_l2{};
    for (int i = 0; i < N; ++i) {
        I l = smaller(nearest(inverse * x[i]), splat(HIGHEST));
        levels[i] = l & 255;
        sum_lx += w[i] * x[i] * to_float(l);
        sum_l2 += w[i] * to_float(l) * to_float(l);
    }
    for (int round = 0; round < 5; ++round) {
        I changed{};
        for (int i = 0; i < N; ++i) {
            F l = to_float(levels[i]), wx = w[i] * x[i];
            F lx = sum_lx - wx * l, l2 = sum_l2 - w[i] * l * l;
            I moved = smaller(nearest(x[i] * l2 / lx), splat(HIGHEST));
            F m = to_float(moved);
            I candidate = (lx > 0.f) & (l2 > 0.f) & (moved != levels[i]);
            lx += wx * m;
            l2 += w[i] * m * m;
            I better = candidate & (lx * lx * sum_l2 > sum_lx * sum_lx * l2);
            levels[i] = select(better, moved & 255, levels[i]);
            sum_lx = select(better, lx, sum_lx);
            sum_l2 = select(better, l2, sum_l2);
            changed |= better;
        }
        if (!any(changed & ~nearly_zero)) break;
    }
    for (int i = 0; i < N; ++i) levels[i] = select(nearly_zero, I{}, levels[i]);
    return select(nearly_zero | ~(sum_l2 > 0.f), F{}, sum_lx / sum_l2);
}

}  // namespace MEDLITE_ISA

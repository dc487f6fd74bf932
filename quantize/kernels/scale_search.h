// The searches for the scale (and minimum) of a block, W blocks side by side, one per lane.
//
// Each function performs, lane by lane, the operations of one ggml function in its order; a branch of the scalar program is a
// mask here. What the scalar program keeps as an array of levels is kept as the numbers that made it (`Line`, `Symmetric`),
// because the levels are needed again only where the stored scale rounds to zero.
// Source: make_qkx2_quants, make_qkx3_quants, make_qx_quants, make_q3_quants, make_qp_quants in ggml/src/ggml-quants.c.

namespace MEDLITE_ISA {

// A sum has one addition under way at a time, and waits for it. Searches therefore run over A blocks per lane at once (block
// a is x[a * N] .. x[a * N + N - 1]), as many as the registers hold.
constexpr int AT_ONCE = W == 16 ? 4 : 2;

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
template <int N, int HIGHEST, bool ABSOLUTE, int A>
LANE_FN void try_lines(Line *best, F *best_error, const F *inverse, const F *x, const F *w, const F *sum_w, const F *sum_x) {
    F levels[A * N], sum_l[A]{}, sum_l2[A]{}, sum_xl[A]{}, scale[A], min[A], error[A]{};
    I solvable[A];
    for (int i = 0; i < N; ++i)
        for (int a = 0; a < A; ++a) {
            F l = nearest_clamped(inverse[a] * (x[a * N + i] - best[a].min), 0, HIGHEST), wl = w[a * N + i] * l;
            levels[a * N + i] = l;
            sum_l[a] += wl;
            sum_l2[a] += wl * l;
            sum_xl[a] += wl * x[a * N + i];
        }
    for (int a = 0; a < A; ++a) {
        F determinant = sum_w[a] * sum_l2[a] - sum_l[a] * sum_l[a];
        min[a] = (sum_l2[a] * sum_x[a] - sum_l[a] * sum_xl[a]) / determinant;
        I above = min[a] > 0.f;
        scale[a] = select(above, sum_xl[a] / sum_l2[a], (sum_w[a] * sum_xl[a] - sum_x[a] * sum_l[a]) / determinant);
        min[a] = select(above, F{}, min[a]);
        solvable[a] = determinant > 0.f;
    }
    for (int i = 0; i < N; ++i)
        for (int a = 0; a < A; ++a) {
            F difference = scale[a] * levels[a * N + i] + min[a] - x[a * N + i];
            error[a] += w[a * N + i] * (ABSOLUTE ? magnitude(difference) : difference * difference);
        }
    for (int a = 0; a < A; ++a) {
        I better = solvable[a] & (error[a] < best_error[a]);
        best_error[a] = select(better, error[a], best_error[a]);
        best[a].level_scale = select(better, inverse[a], best[a].level_scale);
        best[a].level_min = select(better, best[a].min, best[a].level_min);
        best[a].scale = select(better, scale[a], best[a].scale);
        best[a].min = select(better, min[a], best[a].min);
    }
}

// make_qkx2_quants and make_qkx3_quants, which are one algorithm. `first` and `step`: rmin and rdelta there.
// A block of equal values needs no branch: its inverse is infinite, its levels are nearest(NaN) = 0, its scale is 1/inf = 0.
template <int N, int HIGHEST, int STEPS, bool ABSOLUTE, int A>
LANE_FN void fit_lines(const F *x, const F *w, float first, float step, Line *best) {
    F high[A], sum_w[A], sum_x[A], best_error[A]{}, candidate[A];
    for (int a = 0; a < A; ++a) {
        const F *xa = x + a * N, *wa = w + a * N;
        F low = xa[0], top = xa[0], weights = wa[0], products = wa[0] * xa[0];
        for (int i = 1; i < N; ++i) {
            low = select(xa[i] < low, xa[i], low);
            top = select(xa[i] > top, xa[i], top);
            weights += wa[i];
            products += wa[i] * xa[i];
        }
        low = select(low > 0.f, F{}, low);
        F inverse = float(HIGHEST) / (top - low);
        best[a] = {1.f / inverse, low, inverse, low};
        for (int i = 0; i < N; ++i) {
            F difference = best[a].scale * level<HIGHEST>(best[a], xa[i]) + low - xa[i];
            best_error[a] += wa[i] * (ABSOLUTE ? magnitude(difference) : difference * difference);
        }
        high[a] = top, sum_w[a] = weights, sum_x[a] = products;
    }
    for (int trial = 0; trial <= STEPS; ++trial) {
        for (int a = 0; a < A; ++a) candidate[a] = (first + step * float(trial) + float(HIGHEST)) / (high[a] - best[a].min);
        try_lines<N, HIGHEST, ABSOLUTE, A>(best, best_error, candidate, x, w, sum_w, sum_x);
    }
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
// Four quarters at once: a comparison waits for the one before it.
template <int N>
LANE_FN F extreme(const F *x, F &largest) {
    constexpr int QUARTER = N / 4;
    F values[4]{}, magnitudes[4]{};
    for (int i = 0; i < QUARTER; ++i)
        for (int quarter = 0; quarter < 4; ++quarter) {
            F v = x[quarter * QUARTER + i], a = magnitude(v);
            I more = a > magnitudes[quarter];
            magnitudes[quarter] = select(more, a, magnitudes[quarter]);
            values[quarter] = select(more, v, values[quarter]);
        }
    for (int quarter = 1; quarter < 4; ++quarter) {
        I more = magnitudes[quarter] > magnitudes[0];
        magnitudes[0] = select(more, magnitudes[quarter], magnitudes[0]);
        values[0] = select(more, values[quarter], values[0]);
    }
    largest = magnitudes[0];
    return values[0];
}

// make_qx_quants with rmse_type 1: w is x * x or given.
template <int N, int HALF, int A>
LANE_FN void fit_symmetric(const F *x, const F *w, Symmetric *fits) {
    F wx[A * N], peak[A], best[A]{}, inverse[A];
    for (int i = 0; i < A * N; ++i) wx[i] = w[i] * x[i];
    for (int a = 0; a < A; ++a) {
        F largest;
        peak[a] = extreme<N>(x + a * N, largest);
        fits[a] = {F{}, F{}, largest < NEARLY_ZERO};
    }
    for (int trial = -10; trial <= 9; ++trial) {  // -10 stands for the unshifted scale, which the reference tries first
        if (trial == 0) continue;
        F sum_lx[A]{}, sum_l2[A]{};
        for (int a = 0; a < A; ++a) inverse[a] = -(float(HALF) + (trial == -10 ? 0.f : 0.1f * float(trial))) / peak[a];
        for (int i = 0; i < N; ++i)
            for (int a = 0; a < A; ++a) {
                F l = nearest_clamped(inverse[a] * x[a * N + i], -HALF, HALF - 1);
                sum_lx[a] += wx[a * N + i] * l;
                sum_l2[a] += w[a * N + i] * l * l;
            }
        for (int a = 0; a < A; ++a) {
            F scale = sum_lx[a] / sum_l2[a];
            I better = (sum_l2[a] > 0.f) & (sum_lx[a] * sum_lx[a] > best[a] * sum_l2[a]);
            if (trial == -10) {
                better = splat(-1);
                scale = select(sum_l2[a] != 0.f, scale, F{});
            }
            fits[a].level_scale = select(better, inverse[a], fits[a].level_scale);
            fits[a].scale = select(better, scale, fits[a].scale);
            best[a] = select(better, scale * sum_lx[a], best[a]);
        }
    }
    for (int a = 0; a < A; ++a) fits[a].scale = select(fits[a].nearly_zero, F{}, fits[a].scale);
}

// make_q3_quants with do_rmse: levels (0 .. 2 HALF - 1) improved one at a time, at most 5 rounds. Returns the scale.
// A lane that a round did not change is not changed by the next either, so no lane needs to remember that it has stopped.
template <int N, int HALF, int A>
LANE_FN void descend_symmetric(const F *x, F *levels, F *scales) {
    F w[A * N], wx[A * N], sum_lx[A]{}, sum_l2[A]{};
    I nearly_zero[A], changed = splat(-1);
    for (int a = 0; a < A; ++a) {
        F largest, inverse = float(-HALF) / extreme<N>(x + a * N, largest);
        nearly_zero[a] = largest < NEARLY_ZERO;
        for (int i = a * N; i < a * N + N; ++i) {
            F l = nearest_clamped(inverse * x[i], -HALF, HALF - 1);
            levels[i] = l;
            w[i] = x[i] * x[i];
            wx[i] = w[i] * x[i];
            sum_lx[a] += wx[i] * l;
            sum_l2[a] += w[i] * l * l;
        }
    }
    for (int round = 0; round < 5 && any(changed); ++round) {
        F before_lx[A], before_l2[A];
        memcpy(before_lx, sum_lx, sizeof sum_lx), memcpy(before_l2, sum_l2, sizeof sum_l2);
        for (int n = 0; n < N; ++n)
            for (int a = 0; a < A; ++a) {
                int i = a * N + n;
                F l = levels[i], lx = sum_lx[a] - wx[i] * l, l2 = sum_l2[a] - w[i] * l * l;
                F moved = nearest_clamped(x[i] * l2 / lx, -HALF, HALF - 1);
                I candidate = (lx > 0.f) & (moved != l);
                lx += wx[i] * moved;
                l2 += w[i] * moved * moved;
                I better = candidate & (l2 > 0.f) & (lx * lx * sum_l2[a] > sum_lx[a] * sum_lx[a] * l2);
                levels[i] = select(better, moved, l);
                sum_lx[a] = select(better, lx, sum_lx[a]);
                sum_l2[a] = select(better, l2, sum_l2[a]);
            }
        changed = I{};
        for (int a = 0; a < A; ++a) changed |= ((sum_lx[a] != before_lx[a]) | (sum_l2[a] != before_l2[a])) & ~nearly_zero[a];
    }
    for (int a = 0; a < A; ++a) {
        for (int i = a * N; i < a * N + N; ++i) levels[i] = select(nearly_zero[a], F{}, levels[i] + float(HALF));
        scales[a] = select(nearly_zero[a] | ~(sum_l2[a] > 0.f), F{}, sum_lx[a] / sum_l2[a]);
    }
}

// Does the descent surely keep the first levels `l` of this block? Its step at weight i tries nearest(x * l2 / lx), where lx and l2
// are the sums without i: that is l if x * l2 lies well within l -+ 1/2 times lx. Products of weights up to 1e8 are finite.
// Where the extreme weight is positive no sum lx is, as every x * l is 0 or less, and the reference then leaves the levels alone.
template <int N>
LANE_FN I keeps_levels(const F *x, const F *l, F peak, F sum_lx, F sum_l2) {
    constexpr float NEARLY_HALF = 0.49f, SMALL = 1e-30f, LARGE = 1e8f;
    F least = splat(1.f);
    for (int i = 0; i < N; ++i) {
        F w = x[i] * x[i], lx = sum_lx - w * x[i] * l[i], l2 = sum_l2 - w * l[i] * l[i];
        F room = NEARLY_HALF * lx - magnitude(x[i] * l2 - l[i] * lx);
        least = select(room < least, room, least);
    }
    return (peak > 0.f) | ((least > SMALL) & (peak > -LARGE));
}

// Copy N floats of one lane, which lie W apart. from, to: where the first one is, in floats.
template <int N>
LANE_FN void copy_lane(const F *x, int from, F *y, int to) {
    typedef float OfVector __attribute__((may_alias));
    const OfVector *source = (const OfVector *)x + from;
    OfVector *target = (OfVector *)y + to;
    for (int i = 0; i < N; ++i) target[i * W] = source[i * W];
}

// descend_symmetric for BLOCKS blocks per lane. Most blocks keep their first levels, so those that may not are brought together,
// A to a lane, and no block waits for a neighbour's rounds.
template <int N, int HALF, int BLOCKS, int A>
LANE_FN void descend_where_needed(const F *x, F *levels, F *scales) {
    int waiting[BLOCKS * W + 1], n_waiting = 0;
    for (int block = 0; block < BLOCKS; ++block) {
        const F *xb = x + block * N;
        F *l = levels + block * N, largest, peak = extreme<N>(xb, largest), inverse = float(-HALF) / peak, sum_lx{}, sum_l2{};
        I nearly_zero = largest < NEARLY_ZERO;
        for (int i = 0; i < N; ++i) {
            F w = xb[i] * xb[i];
            l[i] = nearest_clamped(inverse * xb[i], -HALF, HALF - 1);
            sum_lx += w * xb[i] * l[i];
            sum_l2 += w * l[i] * l[i];
        }
        I done = keeps_levels<N>(xb, l, peak, sum_lx, sum_l2) | nearly_zero;
        for (int i = 0; i < N; ++i) l[i] = select(nearly_zero, F{}, l[i] + float(HALF));
        scales[block] = select(nearly_zero | ~(sum_l2 > 0.f), F{}, sum_lx / sum_l2);
        int32_t lanes_done[W];
        memcpy(lanes_done, &done, sizeof done);
        for (int k = 0; k < W; ++k) {
            waiting[n_waiting] = block * N * W + k;
            n_waiting += !lanes_done[k];
        }
    }
    for (int first = 0; first < n_waiting; first += A * W) {
        F some_x[A * N], some_levels[A * N], some_scales[A];
        int n = n_waiting - first < A * W ? n_waiting - first : A * W;
        for (int s = 0; s < A * W; ++s)  // a place without a block repeats the first
            copy_lane<N>(x, waiting[s < n ? first + s : first], some_x, s / W * N * W + s % W);
        descend_symmetric<N, HALF, A>(some_x, some_levels, some_scales);
        for (int s = 0; s < n; ++s) {
            int to = waiting[first + s];
            copy_lane<N>(some_levels, s / W * N * W + s % W, levels, to);
            copy_lane<1>(some_scales, s, scales, to / (N * W) * W + to % W);
        }
    }
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

// Builds the lattices. For a code off the grid the candidates are all points at its `n_distances` smallest distances.
//
// Source: iq2xs_init_impl and iq3xs_init_impl in ggml/src/ggml-quants.c, which sort all points by (distance, index).

#include "iq_lattice.h"

#include <stddef.h>

#include <vector>

#include "iq_points.h"

namespace {

int squared_distance(int a, int b, int bits, int n_levels) {
    int sum = 0, mask = (1 << bits) - 1;
    for (int i = 0; i < n_levels; ++i) {
        int difference = 2 * (((a >> bits * i) & mask) - ((b >> bits * i) & mask));
        sum += difference * difference;
    }
    return sum;
}

// Levels of 2 bits take only three values; a code with a fourth is never asked for.
bool reachable(int code, int bits) { return bits == 3 || (code & (code >> 1) & 0x5555) == 0; }

// The points at the n_distances smallest distances from a code, distance by distance.
std::vector<uint16_t> nearest_points(int code, const std::vector<uint16_t> &points, int bits, int n_levels, int n_distances) {
    constexpr int LARGEST = 4 * 49 * 4;
    std::vector<uint16_t> by_distance[LARGEST + 1], found;
    for (uint16_t point : points) by_distance[squared_distance(code, point, bits, n_levels)].push_back(point);
    for (int d = 0; d <= LARGEST && n_distances > 0; ++d) {
        found.insert(found.end(), by_distance[d].begin(), by_distance[d].end());
        n_distances -= !by_distance[d].empty();
    }
    return found;
}

Lattice build(int bits, int n_levels, const std::vector<uint16_t> &points, int n_distances) {
    int n_codes = 1 << (bits * n_levels);
    auto &codes = *new std::vector<Code>(n_codes, Code{0, 0, -1});
    auto &candidates = *new std::vector<uint16_t>;
    for (size_t j = 0; j < points.size(); ++j) codes[points[j]].index = int16_t(j);
    for (int code = 0; code < n_codes; ++code) {
        if (codes[code].index >= 0 || !reachable(code, bits)) continue;
        std::vector<uint16_t> found = nearest_points(code, points, bits, n_levels, n_distances);
        while (found.size() % CANDIDATE_PADDING) found.push_back(found.back());
        codes[code].first = uint32_t(candidates.size());
        codes[code].n_candidates = uint16_t(found.size());
        candidates.insert(candidates.end(), found.begin(), found.end());
    }
    return {bits, n_levels, codes.data(), candidates.data()};
}

template <int N>
std::vector<uint16_t> all(const uint16_t (&points)[N]) {
    return {points, points + N};
}

}  // namespace

const Lattice &iq2_xxs_lattice() {
    static const Lattice lattice = build(2, 8, all(IQ2_XXS_POINTS), 2);
    return lattice;
}
const Lattice &iq2_xs_lattice() {
    static const Lattice lattice = build(2, 8, all(IQ2_XS_POINTS), 2);
    return lattice;
}
const Lattice &iq2_s_lattice() {
    static const Lattice lattice = build(2, 8, all(IQ2_S_POINTS), 1);
    return lattice;
}
const Lattice &iq3_xxs_lattice() {
    static const Lattice lattice = build(3, 4, all(IQ3_XXS_POINTS), 2);
    return lattice;
}
const Lattice &iq3_s_lattice() {
    static const Lattice lattice = build(3, 4, all(IQ3_S_POINTS), 3);
    return lattice;
}

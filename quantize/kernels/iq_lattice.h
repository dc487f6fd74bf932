// A lattice: the grid points of one type, and for every combination of levels the points that may stand for it.

#pragma once

#include <stdint.h>

// What is known of one combination of levels.
struct Code {
    uint32_t first;         // where its candidates start
    uint16_t n_candidates;  // filled up to a multiple of CANDIDATE_PADDING with the last one; 0 on the grid
    int16_t index;          // on the grid; -1 off it
};

struct Lattice {
    int bits, n_levels;          // bits per level, levels per point
    const Code *codes;           // by the levels' bits
    const uint16_t *candidates;  // codes on the grid, the nearest first, then by index
};

constexpr int CANDIDATE_PADDING = 16;

// The five lattices, each built on first use and kept. Safe to call from several threads.
const Lattice &iq2_xxs_lattice();
const Lattice &iq2_xs_lattice();
const Lattice &iq2_s_lattice();
const Lattice &iq3_xxs_lattice();
const Lattice &iq3_s_lattice();

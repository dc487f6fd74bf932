// Blocks in and out: W blocks of the source become columns of lanes; columns of 32-bit words become W packed blocks.

namespace MEDLITE_ISA {

// Where the W lanes read from. A lane past the end of the slab reads the last block again and its result is dropped.
struct Lanes {
    const uint8_t *from[W];
    int source_type;
};

template <typename T>
LANE_FN T load_as(const void *from) {
    T value;
    memcpy(&value, from, sizeof value);
    return value;
}

// W consecutive weights as float32. Exact for all three source types.
template <int SOURCE>
LANE_FN F load_weights(const uint8_t *from, int64_t index) {
    if constexpr (SOURCE == GGML_F32) return load_as<F>(from + 4 * index);
    I wide = (I)__builtin_convertvector(load_as<H>(from + 2 * index), U);
    if constexpr (SOURCE == GGML_BF16) return from_bits(wide << 16);
    else return from_half(wide);
}

// columns[i] = weight i of every lane's block, n a multiple of W. Returns the largest magnitude bits seen, lane by lane:
// a value of 0x7f800000 or more is an infinity or NaN.
template <int SOURCE>
static I load_columns_of(const uint8_t *const *from, int64_t n, F *columns) {
    I peak{};
    for (int64_t i = 0; i < n; i += W) {
        F tile[W];
        for (int k = 0; k < W; ++k) tile[k] = load_weights<SOURCE>(from[k], i);
        transpose(tile);
        for (int k = 0; k < W; ++k) {
            columns[i + k] = tile[k];
            peak = larger(peak, bits(tile[k]) & 0x7fffffff);
        }
    }
    return peak;
}

static I load_columns(const Lanes &lanes, int64_t n, F *columns) {
    switch (lanes.source_type) {
        case GGML_F32: return load_columns_of<GGML_F32>(lanes.from, n, columns);
        case GGML_F16: return load_columns_of<GGML_F16>(lanes.from, n, columns);
        default: return load_columns_of<GGML_BF16>(lanes.from, n, columns);
    }
}

// Write the first n_lanes blocks of BYTES bytes each; words[i] holds bytes 4i .. 4i+3 of every lane's block.
template <int BYTES>
static void store_blocks(const I *words, uint8_t *to, int n_lanes) {
    constexpr int N_WORDS = (BYTES + 3) / 4;
    for (int first = 0; first < N_WORDS; first += W) {
        F tile[W];
        for (int k = 0; k < W; ++k) tile[k] = first + k < N_WORDS ? from_bits(words[first + k]) : F{};
        transpose(tile);
        uint8_t *start = to + 4 * first;
        if (first + W <= BYTES / 4)
            for (int k = 0; k < n_lanes; ++k) memcpy(start + k * BYTES, &tile[k], 4 * W);
        else
            for (int k = 0; k < n_lanes; ++k) memcpy(start + k * BYTES, &tile[k], BYTES % (4 * W));
    }
}

// Two bytes in front of n words: the scale of the 32-weight blocks, which leaves what follows unaligned.
template <int N>
LANE_FN void prepend_half(I half, const I *words, I *to) {
    to[0] = half | (words[0] << 16);
    for (int i = 1; i < N; ++i) to[i] = (I)((U)words[i - 1] >> 16) | (words[i] << 16);
    to[N] = (I)((U)words[N - 1] >> 16);
}

// Four byte-sized columns as one column of words.
LANE_FN I join_bytes(I a, I b, I c, I d) { return a | (b << 8) | (c << 16) | (d << 24); }
LANE_FN I join_bytes(const I *bytes) { return join_bytes(bytes[0], bytes[1], bytes[2], bytes[3]); }

}  // namespace MEDLITE_ISA

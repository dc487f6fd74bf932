// From rows of weights to rows of blocks: the loop around one type's `encode`, and the plain conversions.

namespace MEDLITE_ISA {

// Mean squares of up to W rows, each summed from first weight to last as the reference sums it.
static F row_variances(const Task &task, int64_t first_row, int64_t n_rows) {
    constexpr int CHUNK = 256;
    F columns[CHUNK], sum{};
    int64_t row_bytes = task.n_per_row * task.source_bytes;
    for (int64_t start = 0; start < task.n_per_row; start += CHUNK) {
        int64_t n = task.n_per_row - start < CHUNK ? task.n_per_row - start : CHUNK;
        Lanes lanes = {{}, task.source_type};
        for (int k = 0; k < W; ++k) {
            int64_t row = first_row + (k < n_rows ? k : 0);
            lanes.from[k] = task.source + row * row_bytes + start * task.source_bytes;
        }
        load_columns(lanes, n, columns);
        for (int64_t i = 0; i < n; ++i) sum += columns[i] * columns[i];
    }
    return sum / float(task.n_per_row);
}

static int64_t first_lane(I mask) {
    for (int k = 0; k < W; ++k)
        if (mask[k]) return k;
    return 0;
}

// Blocks first .. first + n - 1 of the slab, n <= W. variances: of the rows from first_row on, or nullptr.
template <typename Type>
static Outcome encode_group(const Task &task, int64_t first, int n, const float *variances, int64_t first_row) {
    constexpr int N = Type::WEIGHTS;
    F x[N], q[N], variance{};
    I words[(Type::BYTES + 3) / 4];
    int64_t blocks_per_row = task.n_per_row / N;
    Lanes lanes = {{}, task.source_type}, importance = {{}, GGML_F32};
    for (int k = 0; k < W; ++k) {
        int64_t block = first + (k < n ? k : 0);
        lanes.from[k] = task.source + block * N * task.source_bytes;
        if (task.importance) {
            importance.from[k] = (const uint8_t *)(task.importance + block % blocks_per_row * N);
            if (variances) variance[k] = variances[block / blocks_per_row - first_row];
        }
    }
    I not_finite = load_columns(lanes, N, x) >= 0x7f800000;
    if (any(not_finite)) return {Problem::NOT_FINITE, (first + first_lane(not_finite)) / blocks_per_row};
    if (task.importance) load_columns(importance, N, q);
    I failed{};
    if constexpr (std::is_void_v<decltype(Type::encode(x, q, variance, words))>)
        Type::encode(x, task.importance ? q : nullptr, variance, words);
    else
        failed = Type::encode(x, task.importance ? q : nullptr, variance, words);
    if (any(failed)) return {Problem::OVERFLOW_IN_SEARCH, (first + first_lane(failed)) / blocks_per_row};
    store_blocks<Type::BYTES>(words, task.target + first * Type::BYTES, n);
    return {};
}

// W blocks without importance, of a type that can take them as they lie in memory; false if it cannot take these.
template <typename Type>
LANE_FN bool encode_contiguous(const Task &task, int64_t first) {
    const uint8_t *from = task.source + first * Type::WEIGHTS * task.source_bytes;
    uint8_t *to = task.target + first * Type::BYTES;
    switch (task.source_type) {
        case GGML_F32: return Type::Contiguous::template encode<GGML_F32>(from, to);
        case GGML_F16: return Type::Contiguous::template encode<GGML_F16>(from, to);
        default: return Type::Contiguous::template encode<GGML_BF16>(from, to);
    }
}

template <typename Type, typename = void>
constexpr bool HAS_CONTIGUOUS = false;
template <typename Type>
constexpr bool HAS_CONTIGUOUS<Type, std::void_t<typename Type::Contiguous>> = true;

template <typename Type>
static Outcome encode_range(const Task &task, int64_t first, int64_t end, const float *variances, int64_t first_row) {
    for (int64_t block = first; block < end; block += W) {
        int n = end - block < W ? int(end - block) : W;
        if constexpr (HAS_CONTIGUOUS<Type>)
            if (!task.importance && n == W && encode_contiguous<Type>(task, block)) continue;
        Outcome outcome = encode_group<Type>(task, block, n, variances, first_row);
        if (outcome.problem != Problem::NONE) return outcome;
    }
    return {};
}

template <typename Type>
static Outcome encode_rows(const Task &task) {
    int64_t blocks_per_row = task.n_per_row / Type::WEIGHTS;
    if (Type::WEIGHTS != 32 || !task.importance)
        return encode_range<Type>(task, 0, task.n_rows * blocks_per_row, nullptr, 0);
    for (int64_t row = 0; row < task.n_rows; row += W) {
        int64_t n = task.n_rows - row < W ? task.n_rows - row : W;
        F variance = row_variances(task, row, n);
        float variances[W];
        memcpy(variances, &variance, sizeof variances);
        Outcome outcome = encode_range<Type>(task, row * blocks_per_row, (row + n) * blocks_per_row, variances, row);
        if (outcome.problem != Problem::NONE) return outcome;
    }
    return {};
}

// ---- F32, F16, BF16 to each other, W weights at a time.

// Ties to even. The overflow of the largest float32 to infinity is the reference's.
LANE_FN I to_brain(F v) {
    I raw = bits(v);
    return (I)((U)(raw + 0x7fff + ((raw >> 16) & 1)) >> 16);
}

template <int SOURCE, int TARGET>
LANE_FN I convert_one(const uint8_t *from, int64_t index, uint8_t *to) {
    F v = load_weights<SOURCE>(from, index);
    if constexpr (TARGET == GGML_F32) {
        memcpy(to + 4 * index, &v, sizeof v);
    } else {
        H narrow = __builtin_convertvector((U)(TARGET == GGML_F16 ? to_half(v) : to_brain(v)), H);
        memcpy(to + 2 * index, &narrow, sizeof narrow);
    }
    return bits(v) & 0x7fffffff;
}

template <int SOURCE, int TARGET>
static Outcome convert_rows(const Task &task) {
    constexpr int FROM = SOURCE == GGML_F32 ? 4 : 2, TO = TARGET == GGML_F32 ? 4 : 2;
    for (int64_t row = 0; row < task.n_rows; ++row) {
        const uint8_t *from = task.source + row * task.n_per_row * FROM;
        uint8_t *to = task.target + row * task.n_per_row * TO;
        I peak{};
        int64_t i = 0;
        for (; i + W <= task.n_per_row; i += W) peak = larger(peak, convert_one<SOURCE, TARGET>(from, i, to));
        if (i < task.n_per_row) {
            uint8_t tail_in[4 * W] = {}, tail_out[4 * W];
            memcpy(tail_in, from + i * FROM, (task.n_per_row - i) * FROM);
            peak = larger(peak, convert_one<SOURCE, TARGET>(tail_in, 0, tail_out));
            memcpy(to + i * TO, tail_out, (task.n_per_row - i) * TO);
        }
        if (any(peak >= 0x7f800000)) return {Problem::NOT_FINITE, row};
    }
    return {};
}

template <int TARGET>
static Outcome convert_rows_to(const Task &task) {
    switch (task.source_type) {
        case GGML_F32: return convert_rows<GGML_F32, TARGET>(task);
        case GGML_F16: return convert_rows<GGML_F16, TARGET>(task);
        default: return convert_rows<GGML_BF16, TARGET>(task);
    }
}

}  // namespace MEDLITE_ISA

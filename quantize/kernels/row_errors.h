// How far encoded rows are from their source: ggml decodes a piece of a row into the cache, and the lanes sum the squares.

namespace MEDLITE_ISA {

LANE_FN double sum_of_lanes(F v) {
    double sum = 0;
    for (int k = 0; k < W; ++k) sum += double(v[k]);
    return sum;
}

// Sums over `n` weights, a multiple of 32: squared differences and squared weights. float32 within a piece, float64 across.
template <int SOURCE>
static void add_squares(const uint8_t *source, const float *decoded, int64_t n, double *error, double *weight) {
    F errors{}, weights{};
    for (int64_t i = 0; i < n; i += W) {
        F x = load_weights<SOURCE>(source, i), difference = load_as<F>(decoded + i) - x;
        errors += difference * difference;
        weights += x * x;
    }
    *error += sum_of_lanes(errors);
    *weight += sum_of_lanes(weights);
}

void measure_rows(const Measurement &what, RowErrors *rows) {
    constexpr int64_t PIECE = 2048;
    alignas(64) float decoded[PIECE];
    for (int64_t row = 0; row < what.n_rows; ++row) {
        RowErrors sums = {0, 0};
        const uint8_t *encoded = what.encoded + row * what.row_bytes;
        for (int64_t start = 0; start < what.n_per_row; start += PIECE) {
            int64_t n = what.n_per_row - start < PIECE ? what.n_per_row - start : PIECE;
            what.decode(encoded + start / what.block_weights * what.block_bytes, decoded, n);
            const uint8_t *source = what.source + (row * what.n_per_row + start) * what.source_bytes;
            switch (what.source_type) {
                case GGML_F32: add_squares<GGML_F32>(source, decoded, n, &sums.error, &sums.weight); break;
                case GGML_F16: add_squares<GGML_F16>(source, decoded, n, &sums.error, &sums.weight); break;
                default: add_squares<GGML_BF16>(source, decoded, n, &sums.error, &sums.weight);
            }
        }
        rows[row] = sums;
    }
}

}  // namespace MEDLITE_ISA

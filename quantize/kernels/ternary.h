// TQ1_0 and TQ2_0: weights -1, 0, 1 times the largest magnitude of 256. Importance is not used.
//
// Source: quantize_row_tq1_0_ref and quantize_row_tq2_0_ref in ggml/src/ggml-quants.c.

namespace MEDLITE_ISA {

// 0, 1 or 2 for every weight. Returns the scale.
LANE_FN F round_to_trits(const F *x, I *trits) {
    F largest = largest_magnitude<256>(x), inverse = inverse_or_zero(largest);
    for (int i = 0; i < 256; ++i) trits[i] = to_int(Q8_0::round_away(x[i] * inverse)) + 1;
    return largest;
}

struct TQ2_0 {
    static constexpr int WEIGHTS = 256, BYTES = 66;

    static void encode(const F *x, const F *, F, I *words) {
        I trits[256];
        words[16] = to_half(round_to_trits(x, trits));
        pack_two_bits(trits, words);
    }
};

// Five trits t as one byte: the ceiling of t * 256 / 243, so that a multiplication by 3 brings out the next trit.
struct TQ1_0 {
    static constexpr int WEIGHTS = 256, BYTES = 54;

    static void encode(const F *x, const F *, F, I *words) {
        I trits[256];
        words[13] = to_half(round_to_trits(x, trits));
        for (int k = 0; k < 8; ++k) words[k] = four_bytes<5>(trits + 4 * k, 32);
        for (int k = 0; k < 4; ++k) words[8 + k] = four_bytes<5>(trits + 160 + 4 * k, 16);
        words[12] = four_bytes<4>(trits + 240, 4);
    }

    template <int N>
    static LANE_INLINE I four_bytes(const I *trits, int stride) {
        I bytes[4];
        for (int b = 0; b < 4; ++b) {
            I sum{};
            for (int n = 0; n < 5; ++n) sum = 3 * sum + (n < N ? trits[b + n * stride] : I{});
            bytes[b] = (I)(((U)(sum & 255) * 256 + 242) / 243);
        }
        return join_bytes(bytes);
    }
};

}  // namespace MEDLITE_ISA

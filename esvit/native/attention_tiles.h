// Attention of a window and head in bfloat16, by tiles.
//
// Weights and scores are needed as rows and turned. What turns is their pairs, which are as few numbers
// as rows of half the length: turned, they are the rows of the turned matrix.

#pragma once

#include "attention.h"
#include "tiles.h"

namespace esvit {

class Tiles {
  public:
    // Whether these sizes may be worked on here.
    static bool take(const Shape& s) { return s.dim % 32 == 0 && may_use_tiles(); }

    explicit Tiles(const Shape& s)
        : s_(s), memory_(18 * s.padded * s.padded + 14 * s.padded * s.dim) {
        const int64_t small = s.padded * s.dim, area = s.padded * s.padded;
        for (float** piece : {&weights_, &scores_}) *piece = memory_.take<float>(area);
        result_ = memory_.take<float>(small);
        for (bfloat16** piece : {&weight_rows_, &score_rows_}) *piece = memory_.take<bfloat16>(area);
        for (Pair** piece : {&weight_pairs_, &score_pairs_}) *piece = memory_.take<Pair>(area / 2);
        for (bfloat16** piece : {&queries_, &keys_, &values_, &grads_})
            *piece = memory_.take<bfloat16>(small);
        pairs_ = memory_.take<Pair>(small / 2);
        turned_ = memory_.take<bfloat16>(area);
    }

    void forward(const bfloat16* qkv, const float* bias, bfloat16* out) {
        weigh(qkv, bias, nullptr);
        mix(out);
    }

    void backward(const bfloat16* qkv, const bfloat16* grad, const float* bias, bfloat16* grad_qkv,
                  bfloat16* mixed, float* bias_sum) {
        const int64_t C = s_.channels(), P = s_.padded, D = s_.dim;
        weigh(qkv, bias, weight_pairs_);
        if (mixed) mix(mixed);
        read(grad, C, grads_);
        turn_to_pairs(values_, pairs_, P, D);
        multiply_tiles(grads_, pairs_, scores_, P, P, D);
        each_two_rows(
            s_,
            [&](auto& row, int64_t t) {
                softmax_back(row, scores_ + t * P, weights_ + t * P, bias_sum + t * P);
            },
            [&](int64_t t, auto& first, auto& second) {
                round(t, first, second, score_rows_, score_pairs_);
            });
        rows_to_pairs(keys_, pairs_, P, D);
        multiply_tiles(score_rows_, pairs_, result_, P, D, P);
        write_rows(result_, s_.scale, grad_qkv, 3 * C, s_);
        write_turned(score_pairs_, queries_, s_.scale, grad_qkv + C);
        write_turned(weight_pairs_, grads_, 1.0f, grad_qkv + 2 * C);
    }

  private:
    // Makes the weights; their pairs, where there is a place for them, and then float32 as well.
    void weigh(const bfloat16* qkv, const float* bias, Pair* pairs) {
        const int64_t C = s_.channels();
        read(qkv, 3 * C, queries_);
        read(qkv + C, 3 * C, keys_);
        read(qkv + 2 * C, 3 * C, values_);
        turn_to_pairs(keys_, pairs_, s_.padded, s_.dim);
        multiply_tiles(queries_, pairs_, weights_, s_.padded, s_.padded, s_.dim);
        const int64_t P = s_.padded;
        each_two_rows(
            s_,
            [&](auto& row, int64_t t) {
                softmax(row, weights_ + t * P, bias + t * P, s_.scale);
                if (pairs)
                    each_vector(row, [&](int64_t j) {
                        store(weights_ + t * P + j * WIDTH, row.x[j]);
                    });
            },
            [&](int64_t t, auto& first, auto& second) {
                round(t, first, second, weight_rows_, pairs);
            });
    }

    void mix(bfloat16* out) {
        rows_to_pairs(values_, pairs_, s_.padded, s_.dim);
        multiply_tiles(weight_rows_, pairs_, result_, s_.padded, s_.dim, s_.padded);
        write_rows(result_, 1.0f, out, s_.channels(), s_);
    }

    // Writes factor * (what is in pairs (P / 2, P))^T times rows (P, D).
    void write_turned(const Pair* pairs, const bfloat16* rows, float factor, bfloat16* to) {
        const int64_t P = s_.padded, D = s_.dim;
        turn(pairs, reinterpret_cast<Pair*>(turned_), P / 2, P);
        rows_to_pairs(rows, pairs_, P, D);
        multiply_tiles(turned_, pairs_, result_, P, D, P);
        write_rows(result_, factor, to, 3 * s_.channels(), s_);
    }

    void read(const bfloat16* from, int64_t stride, bfloat16* to) const {
        const int64_t D = s_.dim, tokens = s_.tokens;
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t d = 0; d < D; d += 2 * WIDTH)  // a call for so few bytes would take longer
                std::memcpy(to + t * D + d, from + t * stride + d, sizeof(Ints));
    }

    // Writes two rows of (T, P) and, if there is a place for them, pairs.
    template <class R>
    void round(int64_t t, R& first, R& second, bfloat16* rows, Pair* pairs) const {
        const int64_t P = s_.padded;
        each_vector(first, [&](int64_t j) {
            const Halves low = rounded(first.x[j]), high = rounded(second.x[j]);
            std::memcpy(rows + t * P + j * WIDTH, &low, sizeof(Halves));
            std::memcpy(rows + (t + 1) * P + j * WIDTH, &high, sizeof(Halves));
            const Ints both = side_by_side(low, high);
            if (pairs) std::memcpy(pairs + t / 2 * P + j * WIDTH, &both, sizeof(Ints));
        });
    }

    const Shape& s_;
    TilesInUse in_use_;
    Memory memory_;
    float *weights_, *scores_, *result_;
    bfloat16 *queries_, *keys_, *values_, *grads_;  // (P, D), zero beyond T
    bfloat16 *weight_rows_, *score_rows_, *turned_;  // (P, P)
    Pair *weight_pairs_, *score_pairs_, *pairs_;
};

}  // namespace esvit

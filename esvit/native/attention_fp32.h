// Attention of a window and head in float32, whatever the values are kept in.

#pragma once

#include "attention.h"

namespace esvit {

// C (M, NV vectors) = A (M, K) times B (K, NV vectors), M rows of A at once, held in registers.
template <int M, int NV>
inline void block(const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_row,
                  float* c, int64_t c_row, int64_t K) {
    Floats sums[M][NV];
#pragma GCC unroll 16
    for (int i = 0; i < M; i++)
#pragma GCC unroll 16
        for (int j = 0; j < NV; j++) sums[i][j] = Floats{};
    for (int64_t k = 0; k < K; k++) {
        Floats row[NV];
#pragma GCC unroll 16
        for (int j = 0; j < NV; j++) row[j] = load(b + k * b_row + j * WIDTH);
#pragma GCC unroll 16
        for (int i = 0; i < M; i++) {
            const Floats x = all(a[i * a_row + k * a_k]);
#pragma GCC unroll 16
            for (int j = 0; j < NV; j++) sums[i][j] += x * row[j];
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < M; i++)
#pragma GCC unroll 16
        for (int j = 0; j < NV; j++) store(c + i * c_row + j * WIDTH, sums[i][j]);
}

template <int M, int NV>
inline void rows(const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_row,
                 float* c, int64_t c_row, int64_t count, int64_t K) {
    int64_t i = 0;
    for (; i + M <= count; i += M)
        block<M, NV>(a + i * a_row, a_row, a_k, b, b_row, c + i * c_row, c_row, K);
    for (; i + 3 <= count; i += 3)
        block<3, NV>(a + i * a_row, a_row, a_k, b, b_row, c + i * c_row, c_row, K);
    for (; i < count; i++)
        block<1, NV>(a + i * a_row, a_row, a_k, b, b_row, c + i * c_row, c_row, K);
}

// C (count, columns) = A (count, K) times B (K, columns); A may be turned, columns are whole vectors.
inline void multiply(const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t columns, float* c,
              int64_t count, int64_t K) {
    int64_t j = 0;
    for (; j + 4 * WIDTH <= columns; j += 4 * WIDTH)
        rows<6, 4>(a, a_row, a_k, b + j, columns, c + j, columns, count, K);
    for (; j + 2 * WIDTH <= columns; j += 2 * WIDTH)
        rows<12, 2>(a, a_row, a_k, b + j, columns, c + j, columns, count, K);
    for (; j < columns; j += WIDTH)
        rows<12, 1>(a, a_row, a_k, b + j, columns, c + j, columns, count, K);
}

template <class T>
class Vectors {
  public:
    explicit Vectors(const Shape& s)
        : s_(s), memory_(4 * (3 * s.padded * s.padded + 7 * s.padded * (s.dim + WIDTH))) {
        for (float** piece : {&weights_, &scores_}) *piece = memory_.take<float>(s.area());
        for (float** piece : {&turned_keys_, &turned_values_})
            *piece = memory_.take<float>(s.dim * s.padded);
        for (float** piece : {&queries_, &keys_, &values_, &grads_, &result_})
            *piece = memory_.take<float>(s.tokens * s.dim);
    }

    void forward(const T* qkv, const float* bias, T* out) {
        weigh(qkv, bias);
        mix(out);
    }

    void backward(const T* qkv, const T* grad, const float* bias, T* grad_qkv, T* mixed,
                  float* bias_sum) {
        weigh(qkv, bias);
        if (mixed) mix(mixed);
        read(grad, s_.channels(), grads_);
        turn(values_, turned_values_);
        const int64_t C = s_.channels(), P = s_.padded, T_ = s_.tokens, D = s_.dim;
        multiply(grads_, D, 1, turned_values_, P, scores_, T_, D);
        each_two_rows(
            s_,
            [&](auto& row, int64_t t) {
                softmax_back(row, scores_ + t * P, weights_ + t * P, bias_sum + t * P);
            },
            [&](int64_t t, auto& first, auto& second) { keep(t, first, second, scores_); });
        multiply(scores_, P, 1, keys_, D, result_, T_, T_);
        write_rows(result_, s_.scale, grad_qkv, 3 * C, s_);
        multiply(scores_, 1, P, queries_, D, result_, T_, T_);
        write_rows(result_, s_.scale, grad_qkv + C, 3 * C, s_);
        multiply(weights_, 1, P, grads_, D, result_, T_, T_);
        write_rows(result_, 1.0f, grad_qkv + 2 * C, 3 * C, s_);
    }

  private:
    void weigh(const T* qkv, const float* bias) {
        const int64_t C = s_.channels();
        read(qkv, 3 * C, queries_);
        read(qkv + C, 3 * C, keys_);
        read(qkv + 2 * C, 3 * C, values_);
        turn(keys_, turned_keys_);
        multiply(queries_, s_.dim, 1, turned_keys_, s_.padded, weights_, s_.tokens, s_.dim);
        const int64_t P = s_.padded;
        each_two_rows(
            s_,
            [&](auto& row, int64_t t) { softmax(row, weights_ + t * P, bias + t * P, s_.scale); },
            [&](int64_t t, auto& first, auto& second) { keep(t, first, second, weights_); });
    }

    // Stores two rows of (T, P), the second of which may not be there.
    template <class R>
    void keep(int64_t t, R& first, R& second, float* to) const {
        each_vector(first, [&](int64_t j) { store(to + t * s_.padded + j * WIDTH, first.x[j]); });
        if (t + 1 == s_.tokens) return;
        to += s_.padded;
        each_vector(second, [&](int64_t j) { store(to + t * s_.padded + j * WIDTH, second.x[j]); });
    }

    void mix(T* out) {
        multiply(weights_, s_.padded, 1, values_, s_.dim, result_, s_.tokens, s_.tokens);
        write_rows(result_, 1.0f, out, s_.channels(), s_);
    }

    // (T, D), rows of which lie `stride` apart.
    void read(const T* from, int64_t stride, float* to) const {
        for (int64_t t = 0; t < s_.tokens; t++)
            for (int64_t d = 0; d < s_.dim; d += WIDTH)
                store(to + t * s_.dim + d, load(from + t * stride + d));
    }

    // (T, D) to (D, P), which stays zero beyond T.
    void turn(const float* from, float* to) const {
        for (int64_t d = 0; d < s_.dim; d++)
            for (int64_t t = 0; t < s_.tokens; t++) to[d * s_.padded + t] = from[t * s_.dim + d];
    }

    const Shape& s_;
    Memory memory_;
    float *weights_, *scores_, *turned_keys_, *turned_values_;
    float *queries_, *keys_, *values_, *grads_, *result_;
};

}  // namespace esvit

// What every form of attention inside windows shares. Shape letters as in `attention.cpp`.

#pragma once

#include <cmath>
#include <initializer_list>

#include "vectors.h"

namespace esvit {

struct Shape {
    Shape(int64_t W, int64_t N, int64_t heads_, int64_t T, int64_t D)
        : windows(W), biases(N), heads(heads_), tokens(T), dim(D),
          padded((T + 2 * WIDTH - 1) / (2 * WIDTH) * (2 * WIDTH)), scale(1 / std::sqrt(float(D))) {}

    int64_t windows, biases, heads, tokens, dim, padded;
    float scale;

    int64_t channels() const { return heads * dim; }
    int64_t pairs() const { return biases * heads; }
    int64_t area() const { return tokens * padded; }
};

// Vectors of a row, `V` if the compiler is told, so that it keeps them in registers.
constexpr int64_t MOST_VECTORS = 64;

template <int V>
struct Row {
    explicit Row(const Shape& s) : count(V ? V : s.padded / WIDTH) {}

    int64_t count;
    Floats x[V ? V : MOST_VECTORS];
};

// `step(j)` for each vector of a row.
template <int V, class Step>
inline void each_vector(const Row<V>& row, Step step) {
    if constexpr (V > 0) {
#pragma GCC unroll 4
        for (int64_t j = 0; j < V; j++) step(j);
    } else {
        for (int64_t j = 0; j < row.count; j++) step(j);
    }
}

// The softmax of scale * scores + bias of one row.
template <int V>
inline void softmax(Row<V>& row, const float* scores, const float* bias, float scale) {
    Floats top = all(-INFINITY), total = {};
    each_vector(row, [&](int64_t j) {
        row.x[j] = load(scores + j * WIDTH) * scale + load(bias + j * WIDTH);
        top = larger(row.x[j], top);
    });
    const float most = largest(top);
    each_vector(row, [&](int64_t j) {
        row.x[j] = exponential(row.x[j] - most);
        total += row.x[j];
    });
    const float share = 1 / sum(total);
    each_vector(row, [&](int64_t j) { row.x[j] *= share; });
}

// The gradient of one row's scores from that of its weights; adds it to a sum.
template <int V>
inline void softmax_back(Row<V>& row, const float* grads, const float* weights, float* bias_sum) {
    Floats products = {};
    each_vector(row, [&](int64_t j) {
        row.x[j] = load(grads + j * WIDTH);
        products += row.x[j] * load(weights + j * WIDTH);
    });
    const float mean = sum(products);
    each_vector(row, [&](int64_t j) {
        row.x[j] = (row.x[j] - mean) * load(weights + j * WIDTH);
        store(bias_sum + j * WIDTH, load(bias_sum + j * WIDTH) + row.x[j]);
    });
}

// `make(row, t)` for each two rows, then `use(t, first, second)`, the second of which may be zero.
template <int V, class Make, class Use>
inline void each_two_rows(const Shape& s, Make make, Use use) {
    const int64_t tokens = s.tokens;
    Row<V> first(s), second(s);
    for (int64_t t = 0; t < tokens; t += 2) {
        make(first, t);
        if (t + 1 < tokens)
            make(second, t + 1);
        else
            each_vector(second, [&](int64_t j) { second.x[j] = Floats{}; });
        use(t, first, second);
    }
}

// The same with a number of vectors that the compiler knows, where it is a usual one.
template <class Make, class Use>
inline void each_two_rows(const Shape& s, Make make, Use use) {
    if (s.padded == 2 * WIDTH) return each_two_rows<2>(s, make, use);
    if (s.padded == 4 * WIDTH) return each_two_rows<4>(s, make, use);
    each_two_rows<0>(s, make, use);
}

// Writes (T, D) times a factor, rows `stride` apart.
template <class T>
inline void write_rows(const float* from, float factor, T* to, int64_t stride, const Shape& s) {
    const int64_t D = s.dim, tokens = s.tokens;
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t d = 0; d < D; d += WIDTH)
            store(to + t * stride + d, load(from + t * D + d) * factor);
}

// Zeroed memory in pieces, each of them aligned to vectors.
class Memory {
  public:
    explicit Memory(int64_t size) : bytes_(size) {
        next_ = static_cast<char*>(std::aligned_alloc(64, bytes_));
        if (!next_) std::abort();
        std::memset(next_, 0, bytes_);
        begin_ = next_;
    }
    ~Memory() { std::free(begin_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    template <class T>
    T* take(int64_t count) {
        T* piece = reinterpret_cast<T*>(next_);
        next_ += (count * sizeof(T) + 63) / 64 * 64;
        if (next_ > begin_ + bytes_) std::abort();
        return piece;
    }

  private:
    int64_t bytes_;
    char *begin_, *next_;
};

}  // namespace esvit

// Sixteen float32 at a time, by the compiler's own vectors: whatever the processor has, runs them.

#pragma once

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace esvit {

constexpr int64_t WIDTH = 16;

typedef float Floats __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(32), aligned(2), may_alias));

// The upper half of a float32.
struct bfloat16 {
    uint16_t bits;
};

inline Floats all(float x) { return Floats{} + x; }

inline Floats load(const float* from) { return *reinterpret_cast<const Floats*>(from); }

inline Floats load(const bfloat16* from) {
    const Ints wide = __builtin_convertvector(*reinterpret_cast<const Halves*>(from), Ints);
    return reinterpret_cast<Floats>(wide << 16);
}

inline void store(float* to, Floats x) { *reinterpret_cast<Floats*>(to) = x; }

// Rounds to the nearest, ties to even; what is not a number stays so.
inline Halves rounded(Floats x) {
#ifdef __AVX512BF16__
    return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(x)));
#else
    const Ints bits = reinterpret_cast<Ints>(x);
    const Ints nearest = bits + 0x7fff + ((bits >> 16) & 1);
    const Ints chosen = x == x ? nearest : Ints{} + 0x7fc00000;
    return __builtin_convertvector((chosen >> 16) & 0xffff, Halves);
#endif
}

inline void store(bfloat16* to, Floats x) { *reinterpret_cast<Halves*>(to) = rounded(x); }

// The first `count` of a vector; the rest is of no account when stored, and as told when loaded.
template <class T>
inline Floats load(const T* from, int64_t count, float others = 0) {
    if (count == WIDTH) return load(from);
    float few[WIDTH];
    T padded[WIDTH] = {};
    std::memcpy(padded, from, count * sizeof(T));
    store(few, load(padded));
    for (int64_t i = count; i < WIDTH; i++) few[i] = others;
    return load(few);
}

template <class T>
inline void store(T* to, Floats x, int64_t count) {
    if (count == WIDTH) return store(to, x);
    T few[WIDTH];
    store(few, x);
    std::memcpy(to, few, count * sizeof(T));
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// Folds a vector in halves, four times.
template <class Operation>
inline float fold(Floats x, Operation operation) {
    x = operation(x, __builtin_shuffle(x, Ints{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7}));
    x = operation(x, __builtin_shuffle(x, Ints{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11}));
    x = operation(x, __builtin_shuffle(x, Ints{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13}));
    x = operation(x, __builtin_shuffle(x, Ints{1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14}));
    return x[0];
}

inline float sum(Floats x) {
    return fold(x, [](Floats a, Floats b) { return a + b; });
}

inline float largest(Floats x) { return fold(x, larger); }

// e^x within three units in the last place for x <= 0; zero below e^-87, near the smallest normal
// number.
//
// x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 is taken off in two parts, the first of which has few
// digits, so that n times it is exact (Cody and Waite 1980, chapter 6).
inline Floats exponential(Floats x) {
    const Floats magic = all(12582912.0f);  // 1.5 * 2^23: what is added to it is rounded
    const Floats clamped = x < -87.0f ? all(-87.0f) : x;
    const Floats shifted = clamped * 1.44269504f + magic;
    const Floats n = shifted - magic;
    const Floats r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
    Floats p = all(1.0f / 720);
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const Ints exponent = reinterpret_cast<Ints>(shifted) << 23;
    const Floats result = reinterpret_cast<Floats>(reinterpret_cast<Ints>(p) + exponent);
    const Floats known = x == x ? result : x;
    return x < -87.0f ? Floats{} : known;
}

// Calls with whole vectors of [0, W), then with what is left as a vector of its own: `step(j, count)`.
template <class Step>
inline void each(int64_t W, Step step) {
    int64_t j = 0;
    for (; j + WIDTH <= W; j += WIDTH) step(j, WIDTH);
    if (j < W) step(j, W - j);
}

}  // namespace esvit

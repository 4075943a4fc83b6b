// Prototypes as direction and length, row by row: each is read once, whatever is made of it.
//
// Shape letters: K prototypes of D columns.

#include <cmath>

#include "vectors.h"

namespace esvit {
namespace {

inline float product(const float* a, const float* b, int64_t D) {
    Floats total = {};
    each(D, [&](int64_t j, int64_t count) { total += load(a + j, count) * load(b + j, count); });
    return sum(total);
}

// What a direction is multiplied with.
inline float scale_of(const float* direction, float length, int64_t D) {
    return length / std::sqrt(product(direction, direction, D));
}

template <class T>
void write(const float* directions, const float* lengths, T* out, int64_t K, int64_t D) {
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < K; k++) {
        const float* direction = directions + k * D;
        const float scale = scale_of(direction, lengths[k], D);
        each(D, [&](int64_t j, int64_t count) {
            store(out + k * D + j, load(direction + j, count) * scale, count);
        });
    }
}

}  // namespace
}  // namespace esvit

using namespace esvit;

extern "C" {

// Effective prototypes (K, D).
void esvit_write_prototypes(const float* directions, const float* lengths, void* out, int64_t K,
                            int64_t D, int is_bfloat16) {
    if (is_bfloat16)
        write(directions, lengths, static_cast<bfloat16*>(out), K, D);
    else
        write(directions, lengths, static_cast<float*>(out), K, D);
}

// Turns the gradient of effective prototypes, times a factor, into that of directions, in place, and
// that of lengths. With u = v / |v| and w = g u: dg = u . dw and dv = (g / |v|) (dw - u dg).
void esvit_through_weight_norm(float* gradient, const float* directions, const float* lengths,
                               float factor, float* grad_lengths, int64_t K, int64_t D) {
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < K; k++) {
        const float* v = directions + k * D;
        float* dw = gradient + k * D;
        const float norm = std::sqrt(product(v, v, D)), along = product(dw, v, D) / norm;
        const float back = along / norm, scale = factor * lengths[k] / norm;
        each(D, [&](int64_t j, int64_t count) {
            store(dw + j, (load(dw + j, count) - load(v + j, count) * back) * scale, count);
        });
        grad_lengths[k] = factor * along;
    }
}

// The products (K,) of effective prototypes with one row (D,).
void esvit_compare_prototypes(const float* row, const float* directions, const float* lengths,
                              float* out, int64_t K, int64_t D) {
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < K; k++) {
        const float* v = directions + k * D;
        out[k] = product(row, v, D) * scale_of(v, lengths[k], D);
    }
}
}

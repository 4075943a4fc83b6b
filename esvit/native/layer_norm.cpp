// Layer norm whose result is bfloat16, as the products behind it want it, of rows in either type.
//
// Shape letters: N rows, C channels.

#include <omp.h>

#include <cmath>

#include "vectors.h"

namespace esvit {
namespace {

// The mean of a row and one over its standard deviation.
struct Moments {
    float mean, scale;
};

template <class X>
inline Moments moments_of(const X* x, float eps, int64_t C) {
    Floats total = {}, squares = {};
    each(C, [&](int64_t j, int64_t count) { total += load(x + j, count); });
    const float mean = sum(total) / C;
    each(C, [&](int64_t j, int64_t count) {
        const Floats off = load(x + j, count, mean) - mean;
        squares += off * off;
    });
    return {mean, 1 / std::sqrt(sum(squares) / C + eps)};
}

template <class X>
void normalise(const X* x, const float* weight, const float* bias, float eps, bfloat16* out,
               int64_t N, int64_t C) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < N; i++) {
        const X* row = x + i * C;
        const Moments m = moments_of(row, eps, C);
        each(C, [&](int64_t j, int64_t count) {
            const Floats unit = (load(row + j, count) - m.mean) * m.scale;
            store(out + i * C + j, unit * load(weight + j, count) + load(bias + j, count), count);
        });
    }
}

template <class X>
void go_back(const bfloat16* grad, const X* x, const float* weight, float eps, X* grad_x,
             float* sums, int64_t N, int64_t C, int threads) {
#pragma omp parallel num_threads(threads)
    {
        float* of_weight = sums + omp_get_thread_num() * 2 * C;
        float* of_bias = of_weight + C;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < N; i++) {
            const X* row = x + i * C;
            const bfloat16* g = grad + i * C;
            const Moments m = moments_of(row, eps, C);
            Floats total = {}, products = {};
            each(C, [&](int64_t j, int64_t count) {
                const Floats unit = (load(row + j, count, m.mean) - m.mean) * m.scale;
                const Floats raw = load(g + j, count), weighted = raw * load(weight + j, count);
                total += weighted;
                products += weighted * unit;
                store(of_weight + j, load(of_weight + j, count) + raw * unit, count);
                store(of_bias + j, load(of_bias + j, count) + raw, count);
            });
            const float mean = sum(total) / C, along = sum(products) / C;
            each(C, [&](int64_t j, int64_t count) {
                const Floats unit = (load(row + j, count) - m.mean) * m.scale;
                const Floats weighted = load(g + j, count) * load(weight + j, count);
                store(grad_x + i * C + j, (weighted - mean - unit * along) * m.scale, count);
            });
        }
    }
}

}  // namespace
}  // namespace esvit

using namespace esvit;

extern "C" {

// Writes (N, C) bfloat16; x is that or float32.
void esvit_layer_norm(const void* x, const float* weight, const float* bias, float eps, void* out,
                      int64_t N, int64_t C, int is_bfloat16) {
    bfloat16* to = static_cast<bfloat16*>(out);
    if (is_bfloat16)
        normalise(static_cast<const bfloat16*>(x), weight, bias, eps, to, N, C);
    else
        normalise(static_cast<const float*>(x), weight, bias, eps, to, N, C);
}

// Writes the gradient (N, C) of x, in the type of x, from that of the result, in bfloat16; adds those
// of weight and bias to (threads, 2, C).
void esvit_layer_norm_back(const void* grad, const void* x, const float* weight, float eps,
                           void* grad_x, float* sums, int64_t N, int64_t C, int threads,
                           int is_bfloat16) {
    const bfloat16* from = static_cast<const bfloat16*>(grad);
    if (is_bfloat16)
        go_back(from, static_cast<const bfloat16*>(x), weight, eps, static_cast<bfloat16*>(grad_x),
                sums, N, C, threads);
    else
        go_back(from, static_cast<const float*>(x), weight, eps, static_cast<float*>(grad_x), sums,
                N, C, threads);
}
}

// Passes over the rows of an MLP that go back through it.
//
// Shape letters: N rows, H hidden channels, C channels.

#include <omp.h>

#include "vectors.h"

namespace esvit {
namespace {

struct Gelu {
    Floats value, slope;
};

// x Phi(x) and its derivative Phi(x) + x phi(x), by one exponential: with u = |x| / sqrt(2), e^-u^2
// is a factor of the density phi as well as of the tail of Phi (Abramowitz and Stegun 1964, 7.1.26,
// within 1.5e-7).
inline Gelu gelu(Floats x) {
    const Floats u = larger(x, -x) * 0.707106781f;
    const Floats t = 1 / (1 + 0.3275911f * u);
    const Floats bell = exponential(-u * u);
    Floats p = all(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const Floats tail = 0.5f * p * t * bell;
    const Floats area = x < 0 ? tail : 1 - tail;
    return {x * area, area + x * bell * 0.398942280f};
}

}  // namespace
}  // namespace esvit

using namespace esvit;

extern "C" {

// Writes gelu(hidden) and multiplies grads by its slope, both (N, H) bfloat16; sums over rows of the
// latter are added to (threads, H).
void esvit_gelu_back(const void* hidden, void* grads, void* activated, float* sums, int64_t N,
                     int64_t H, int threads) {
    const bfloat16* from = static_cast<const bfloat16*>(hidden);
    bfloat16 *grad = static_cast<bfloat16*>(grads), *to = static_cast<bfloat16*>(activated);
#pragma omp parallel num_threads(threads)
    {
        float* mine = sums + omp_get_thread_num() * H;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < N; i++)
            each(H, [&](int64_t j, int64_t count) {
                const int64_t at = i * H + j;
                const Gelu g = gelu(load(from + at, count));
                const Floats x = load(grad + at, count) * g.slope;
                store(to + at, g.value, count);
                store(grad + at, x, count);
                store(mine + j, load(mine + j, count) + x, count);
            });
    }
}

// Adds up the rows of (N, C) bfloat16: to (threads, C).
void esvit_sum_rows(const void* rows, float* sums, int64_t N, int64_t C, int threads) {
    const bfloat16* from = static_cast<const bfloat16*>(rows);
#pragma omp parallel num_threads(threads)
    {
        float* mine = sums + omp_get_thread_num() * C;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < N; i++)
            each(C, [&](int64_t j, int64_t count) {
                store(mine + j, load(mine + j, count) + load(from + i * C + j, count), count);
            });
    }
}
}

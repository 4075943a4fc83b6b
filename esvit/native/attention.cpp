// Softmax attention inside windows, one window and head at a time: all of it stays in a core's cache.
//
// Queries, keys and values of the windows are read where a common product has left them, (W, T, 3,
// heads, D), and their gradients are written likewise; results are (W, T, heads, D). Everything in
// between is float32, but for what tiles multiply. Window w has bias w % N.
//
// Shape letters: W windows, N biases, T tokens of a window, D channels of a head, P = T rounded up
// to pairs of vectors. What lies beyond T in a row of P has a bias of minus infinity.

#include <omp.h>

#include <algorithm>

#include "attention_fp32.h"
#ifdef __AMX_BF16__
#include "attention_tiles.h"
#endif

namespace esvit {
namespace {

// Where window w and head h begin among queries; and in what has the shape of the result.
int64_t in_common(int64_t w, int64_t h, const Shape& s) {
    return w * s.tokens * 3 * s.channels() + h * s.dim;
}

int64_t in_result(int64_t w, int64_t h, const Shape& s) {
    return w * s.tokens * s.channels() + h * s.dim;
}

template <class Worker, class T>
void forward(const T* qkv, const float* bias, T* out, const Shape& s) {
#pragma omp parallel
    {
        Worker worker(s);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < s.windows * s.heads; i++) {
            const int64_t w = i / s.heads, h = i % s.heads;
            const int64_t pair = w % s.biases * s.heads + h;
            worker.forward(qkv + in_common(w, h, s), bias + pair * s.area(),
                           out + in_result(w, h, s));
        }
    }
}

// Each thread has biases of its own, whose windows it goes through, so that no two add to one; where
// there are few biases, each thread has a part of the windows and sums of all biases, (threads, N,
// heads, T, P) in all. Heads of a window follow each other: they share lines of the cache.
template <class Worker, class T>
void backward(const T* qkv, const T* grad, const float* bias, T* grad_qkv, T* mixed, float* sums,
              bool is_shared, int threads, const Shape& s) {
#pragma omp parallel num_threads(threads)
    {
        Worker worker(s);
        const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
        const int64_t all = is_shared ? s.windows * s.heads : s.pairs();
        const int64_t begin = all * me / team, end = all * (me + 1) / team;
        float* mine = is_shared ? sums + me * s.pairs() * s.area() : sums;
        auto some = [&](int64_t w, int64_t first, int64_t last) {
            for (int64_t h = first; h < last; h++) {
                const int64_t at = (w % s.biases * s.heads + h) * s.area();
                worker.backward(qkv + in_common(w, h, s), grad + in_result(w, h, s), bias + at,
                                grad_qkv + in_common(w, h, s),
                                mixed ? mixed + in_result(w, h, s) : nullptr, mine + at);
            }
        };
        for (int64_t i = begin; i < end;) {
            const int64_t first = i % s.heads, last = std::min(s.heads, first + end - i);
            const int64_t step = is_shared ? s.windows : s.biases;
            for (int64_t w = i / s.heads; w < s.windows; w += step) some(w, first, last);
            i += last - first;
        }
    }
}

}  // namespace
}  // namespace esvit

using namespace esvit;

extern "C" {

// Biases are (N, heads, T, P).
void esvit_attend(const void* qkv, const float* bias, void* out, int64_t W, int64_t N, int64_t heads,
                  int64_t T, int64_t D, int is_bfloat16) {
    const Shape s(W, N, heads, T, D);
    if (!is_bfloat16)
        return forward<Vectors<float>>(static_cast<const float*>(qkv), bias,
                                       static_cast<float*>(out), s);
    const bfloat16* from = static_cast<const bfloat16*>(qkv);
    bfloat16* to = static_cast<bfloat16*>(out);
#ifdef __AMX_BF16__
    if (Tiles::take(s)) return forward<Tiles>(from, bias, to, s);
#endif
    forward<Vectors<bfloat16>>(from, bias, to, s);
}

// `mixed` may be null. Sums are zero before, (threads if shared or 1, N, heads, T, P).
void esvit_attend_back(const void* qkv, const void* grad, const float* bias, void* grad_qkv,
                       void* mixed, float* sums, int is_shared, int threads, int64_t W, int64_t N,
                       int64_t heads, int64_t T, int64_t D, int is_bfloat16) {
    const Shape s(W, N, heads, T, D);
    if (!is_bfloat16)
        return backward<Vectors<float>>(
            static_cast<const float*>(qkv), static_cast<const float*>(grad), bias,
            static_cast<float*>(grad_qkv), static_cast<float*>(mixed), sums, is_shared, threads, s);
    const bfloat16 *from = static_cast<const bfloat16*>(qkv),
                   *grads = static_cast<const bfloat16*>(grad);
    bfloat16 *to = static_cast<bfloat16*>(grad_qkv), *mixed_to = static_cast<bfloat16*>(mixed);
#ifdef __AMX_BF16__
    if (Tiles::take(s))
        return backward<Tiles>(from, grads, bias, to, mixed_to, sums, is_shared, threads, s);
#endif
    backward<Vectors<bfloat16>>(from, grads, bias, to, mixed_to, sums, is_shared, threads, s);
}
}

// What a sweep over the prototypes does between its products (`esvit/sweeps.py`): passes over rows of
// a block, which stay in a core's cache from the first to the last.
//
// Shape letters: N rows of W columns or D, M comparisons.

#include <cmath>

#include "vectors.h"

namespace esvit {
namespace {

// Writes the softmax of logits + bias; gives its logsumexp and the mean of the sums under it.
template <class T>
void softmax(const T* logits, const float* bias, T* out, float* logsumexp, float* mean, float* row,
             int64_t W) {
    Floats top = all(-INFINITY);
    each(W, [&](int64_t j, int64_t count) {
        Floats x = load(logits + j, count, -INFINITY);
        if (bias) x += load(bias + j, count);
        store(row + j, x);
        top = larger(x, top);
    });
    const float most = largest(top);
    Floats total = {}, moment = {};
    each(W, [&](int64_t j, int64_t) {
        const Floats below = load(row + j) - most;
        const Floats x = exponential(below);
        store(row + j, x);
        total += x;
        moment += x * larger(below, all(-1000));  // zero times minus infinity is none
    });
    const float sum_of_all = sum(total), share = 1 / sum_of_all;
    each(W, [&](int64_t j, int64_t count) { store(out + j, load(row + j) * share, count); });
    *logsumexp = most + std::log(sum_of_all);
    *mean = most + sum(moment) * share;
}

template <class T>
void softmax_rows(const T* logits, const float* bias, T* out, float* logsumexp, float* mean,
                  int64_t N, int64_t W) {
#pragma omp parallel
    {
        const int64_t padded = (W + WIDTH - 1) / WIDTH * WIDTH;
        float* row = static_cast<float*>(std::aligned_alloc(64, padded * sizeof(float)));
        if (!row) std::abort();
#pragma omp for schedule(static)
        for (int64_t i = 0; i < N; i++)
            softmax(logits + i * W, bias, out + i * W, logsumexp + i, mean + i, row, W);
        std::free(row);
    }
}

// Takes a student row's targets off it, in place; excess is the sum of what is left, rounded.
template <class T>
void reduce_rows(T* student, const T* teacher, const float* share, const int64_t* starts,
                 const int64_t* matches, const float* factors, float* excess, int64_t N, int64_t M,
                 int64_t W) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < N; i++) {
        T* row = student + i * W;
        const int64_t end = i + 1 < N ? starts[i + 1] : M;
        Floats total = {};
        each(W, [&](int64_t j, int64_t count) {
            Floats x = load(row + j, count) * share[i];
            for (int64_t m = starts[i]; m < end; m++)
                x -= load(teacher + matches[m] * W + j, count) * factors[m];
            store(row + j, x, count);
            total += load(row + j, count);
        });
        excess[i] = sum(total);
    }
}

}  // namespace
}  // namespace esvit

using namespace esvit;

extern "C" {

// Results may lie where the logits do; the bias may be null.
void esvit_softmax(const void* logits, const float* bias, void* out, float* logsumexp, float* mean,
                   int64_t N, int64_t W, int is_bfloat16) {
    if (is_bfloat16)
        softmax_rows(static_cast<const bfloat16*>(logits), bias, static_cast<bfloat16*>(out),
                     logsumexp, mean, N, W);
    else
        softmax_rows(static_cast<const float*>(logits), bias, static_cast<float*>(out), logsumexp,
                     mean, N, W);
}

// student[i] = share[i] * student[i] - sum over m of row i: factors[m] * teacher[matches[m]].
void esvit_reduce(void* student, const void* teacher, const float* share, const int64_t* starts,
                  const int64_t* matches, const float* factors, float* excess, int64_t N, int64_t M,
                  int64_t W, int is_bfloat16) {
    if (is_bfloat16)
        reduce_rows(static_cast<bfloat16*>(student), static_cast<const bfloat16*>(teacher), share,
                    starts, matches, factors, excess, N, M, W);
    else
        reduce_rows(static_cast<float*>(student), static_cast<const float*>(teacher), share, starts,
                    matches, factors, excess, N, M, W);
}

// (N, D) sums plus what is in bfloat16.
void esvit_add(float* sums, const void* added, int64_t N, int64_t D) {
    const bfloat16* from = static_cast<const bfloat16*>(added);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < N; i++)
        each(D, [&](int64_t j, int64_t count) {
            float* to = sums + i * D + j;
            store(to, load(to, count) + load(from + i * D + j, count), count);
        });
}
}

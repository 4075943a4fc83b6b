// left^T right by tiles, as the gradient of a linear layer's weight is of its result's and its input.
//
// Both factors have many rows, along which the product sums, and tiles want neither as it lies. Some
// rows at a time are packed into panels of 32 columns, the left ones turned and the right ones in
// pairs, and multiplied while they are near.
//
// Shape letters: N rows, D columns on the left and C on the right, multiples of 32.

#include <cstdlib>

#ifdef __AMX_BF16__
#include <omp.h>

#include <algorithm>

#include "tiles.h"

namespace esvit {
namespace {

constexpr int64_t SIDE = 32, BLOCK = SIDE * SIDE;
constexpr int64_t ROWS_AT_ONCE = 512;
constexpr int64_t SMALL = 1 << 18;  // a result of which each thread may have one

typedef uint16_t Shorts __attribute__((vector_size(64), aligned(2), may_alias));

inline Shorts choose(Shorts a, Shorts b, const Choice<uint16_t, 32>& which) {
    return __builtin_shuffle(a, b, *reinterpret_cast<const Shorts*>(which.elements));
}

// 32 rows and columns turned: (columns, rows).
inline void pack_turned(const bfloat16* from, int64_t stride, bfloat16* to) {
    static constexpr Choice<uint16_t, 32> even([](int j) { return 2 * j; });
    static constexpr Choice<uint16_t, 32> odd([](int j) { return 2 * j + 1; });
    Ints upper[16], lower[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        upper[i] = *reinterpret_cast<const Ints*>(from + i * stride);
    turn(upper);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        lower[i] = *reinterpret_cast<const Ints*>(from + (16 + i) * stride);
    turn(lower);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        const Shorts a = reinterpret_cast<Shorts>(upper[i]), b = reinterpret_cast<Shorts>(lower[i]);
        *reinterpret_cast<Shorts*>(to + 2 * i * SIDE) = choose(a, b, even);
        *reinterpret_cast<Shorts*>(to + (2 * i + 1) * SIDE) = choose(a, b, odd);
    }
}

// 32 rows and columns in pairs: (pairs of rows, columns).
inline void pack_pairs(const bfloat16* from, int64_t stride, bfloat16* to) {
    static constexpr Choice<uint16_t, 32> first([](int j) { return j / 2 + j % 2 * 32; });
    static constexpr Choice<uint16_t, 32> second([](int j) { return j / 2 + j % 2 * 32 + 16; });
    for (int i = 0; i < 16; i++) {
        const Shorts a = *reinterpret_cast<const Shorts*>(from + 2 * i * stride);
        const Shorts b = *reinterpret_cast<const Shorts*>(from + (2 * i + 1) * stride);
        *reinterpret_cast<Shorts*>(to + 2 * i * SIDE) = choose(a, b, first);
        *reinterpret_cast<Shorts*>(to + (2 * i + 1) * SIDE) = choose(a, b, second);
    }
}

// Packs rows of 32 columns, the last block of them filled up with zeros.
template <class Pack>
inline void pack_panel(const bfloat16* from, int64_t stride, int64_t rows, bfloat16* to, Pack pack) {
    for (; rows >= SIDE; rows -= SIDE, from += SIDE * stride, to += BLOCK) pack(from, stride, to);
    if (!rows) return;
    alignas(64) bfloat16 filled[BLOCK] = {};
    for (int64_t i = 0; i < rows; i++)
        std::memcpy(filled + i * SIDE, from + i * stride, SIDE * sizeof(bfloat16));
    pack(filled, SIDE, to);
}

// Adds `depth` blocks of two panels to 32 x 32 sums.
inline void multiply_panels(const bfloat16* left, const bfloat16* right, float* sums, int64_t stride,
                            int64_t depth, bool is_first) {
    settle_memory();
    if (is_first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, 4 * stride);
        _tile_loadd(1, sums + 16, 4 * stride);
        _tile_loadd(2, sums + 16 * stride, 4 * stride);
        _tile_loadd(3, sums + 16 * stride + 16, 4 * stride);
    }
    for (int64_t k = 0; k < depth; k++, left += BLOCK, right += BLOCK) {
        _tile_loadd(4, left, 64);
        _tile_loadd(5, left + BLOCK / 2, 64);
        _tile_loadd(6, right, 128);
        _tile_loadd(7, right + SIDE, 128);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, 4 * stride);
    _tile_stored(1, sums + 16, 4 * stride);
    _tile_stored(2, sums + 16 * stride, 4 * stride);
    _tile_stored(3, sums + 16 * stride + 16, 4 * stride);
    settle_memory();
}

struct Factors {
    const bfloat16 *left, *right;
    int64_t rows, D, C;
};

// Sums over all rows, for columns [begin, end) of the wider factor, in a thread's own memory. The
// narrower factor is packed whole and stays near, the other one panel by panel.
void sum_up(const Factors& f, int64_t begin, int64_t end, bool is_first, bfloat16* packed,
            float* out) {
    const bool is_tall = f.D >= f.C;
    for (int64_t n = 0; n < f.rows; n += ROWS_AT_ONCE) {
        const int64_t rows = std::min(ROWS_AT_ONCE, f.rows - n), depth = (rows + SIDE - 1) / SIDE;
        auto pack_left = [&](int64_t d, bfloat16* to) {
            pack_panel(f.left + n * f.D + d, f.D, rows, to, pack_turned);
        };
        auto pack_right = [&](int64_t c, bfloat16* to) {
            pack_panel(f.right + n * f.C + c, f.C, rows, to, pack_pairs);
        };
        bfloat16 *panel = packed, *near = packed + ROWS_AT_ONCE * SIDE;
        for (int64_t i = 0; i < std::min(f.C, f.D); i += SIDE)
            is_tall ? pack_right(i, near + i * depth * SIDE) : pack_left(i, near + i * depth * SIDE);
        for (int64_t o = begin; o < end; o += SIDE) {
            is_tall ? pack_left(o, panel) : pack_right(o, panel);
            for (int64_t i = 0; i < std::min(f.C, f.D); i += SIDE) {
                const bfloat16* other = near + i * depth * SIDE;
                float* sums = is_tall ? out + o * f.C + i : out + i * f.C + o;
                multiply_panels(is_tall ? panel : other, is_tall ? other : panel, sums, f.C, depth,
                                is_first && n == 0);
            }
        }
    }
}

// Threads share the rows where the result is small enough for one each, else the columns: what one
// has packed would come slowly to another.
void multiply_turned(const Factors& f, float* out, bool is_first) {
    const int64_t size = f.D * f.C, threads = omp_get_max_threads();
    if (!f.rows && is_first) std::memset(out, 0, size * sizeof(float));
    const int64_t most = size <= SMALL ? std::max<int64_t>(1, f.rows / ROWS_AT_ONCE) : 1;
    const int64_t row_parts = std::min(threads, most), column_parts = threads / row_parts;
    float* sums = static_cast<float*>(std::malloc((row_parts - 1) * size * sizeof(float)));
    if (!sums && row_parts > 1) std::abort();
    // All threads, though some may idle: a smaller team would end them, and the next call begin them.
#pragma omp parallel
    {
        const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
        const int64_t narrow = std::min(f.C, f.D), blocks = std::max(f.C, f.D) / SIDE;
        const int64_t bytes = ROWS_AT_ONCE * (narrow + SIDE) * sizeof(bfloat16);
        bfloat16* packed = static_cast<bfloat16*>(std::aligned_alloc(64, bytes));
        if (!packed) std::abort();
        TilesInUse in_use;
        for (int64_t i = me; i < row_parts * column_parts; i += all) {
            const int64_t r = i % row_parts, c = i / row_parts;
            const int64_t from = f.rows * r / row_parts, to = f.rows * (r + 1) / row_parts;
            sum_up({f.left + from * f.D, f.right + from * f.C, to - from, f.D, f.C},
                   blocks * c / column_parts * SIDE, blocks * (c + 1) / column_parts * SIDE,
                   is_first || r, packed, r ? sums + (r - 1) * size : out);
        }
        std::free(packed);
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t j = 0; j < size; j += WIDTH)
            for (int64_t r = 1; r < row_parts; r++)
                store(out + j, load(out + j) + load(sums + (r - 1) * size + j));
    }
    std::free(sums);
}

}  // namespace
}  // namespace esvit

using namespace esvit;

extern "C" {

int esvit_has_tiles() { return may_use_tiles(); }

// Adds left (N, D)^T times right (N, C) to (D, C), or writes it where it is the first. There must be
// tiles.
void esvit_multiply_turned(const void* left, const void* right, float* out, int is_first, int64_t N,
                           int64_t D, int64_t C) {
    if (!may_use_tiles()) std::abort();
    multiply_turned({static_cast<const bfloat16*>(left), static_cast<const bfloat16*>(right), N, D, C},
                    out, is_first);
}
}
#else
extern "C" int esvit_has_tiles() { return 0; }
extern "C" void esvit_multiply_turned() { std::abort(); }
#endif

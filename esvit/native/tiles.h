// Products of bfloat16 matrices by a processor's tiles (AMX): 16 rows of 64 bytes each.
//
// A left matrix lies row by row. A right one lies in pairs: two rows side by side, column by column,
// as one row of twice the length. Sums are float32. All sizes are multiples of 32.

#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vectors.h"

namespace esvit {

// Two bfloat16, the first of them in the lower half.
typedef uint32_t Pair __attribute__((may_alias));

// Asks the system for the use of tiles; tells whether it is granted, to all threads for good.
inline bool may_use_tiles() {
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

// Not every compiler knows that instructions of tiles read and write memory.
inline void settle_memory() { asm volatile("" ::: "memory"); }

// While it lives, this thread's tiles are all of full size; then they are what they were before.
class TilesInUse {
  public:
    TilesInUse() {
        _tile_storeconfig(before_);
        settle_memory();
        alignas(64) uint8_t mine[64] = {1};
        for (int i = 0; i < 8; i++) mine[16 + 2 * i] = 64, mine[48 + i] = 16;
        settle_memory();
        _tile_loadconfig(mine);
    }
    ~TilesInUse() {
        settle_memory();
        _tile_loadconfig(before_);
    }
    TilesInUse(const TilesInUse&) = delete;
    TilesInUse& operator=(const TilesInUse&) = delete;

  private:
    alignas(64) uint8_t before_[64];
};

// C (M, N) = A (M, K) times B (K, N), the latter in pairs (K / 2, N).
inline void multiply_tiles(const bfloat16* a, const Pair* b, float* c, int64_t M, int64_t N,
                           int64_t K) {
    settle_memory();
    for (int64_t m = 0; m < M; m += 32)
        for (int64_t n = 0; n < N; n += 32) {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (int64_t k = 0; k < K; k += 32) {
                const bfloat16* left = a + m * K + k;
                const Pair* right = b + k / 2 * N + n;
                _tile_loadd(4, left, 2 * K);
                _tile_loadd(5, left + 16 * K, 2 * K);
                _tile_loadd(6, right, 4 * N);
                _tile_loadd(7, right + 16, 4 * N);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            float* to = c + m * N + n;
            _tile_stored(0, to, 4 * N);
            _tile_stored(1, to + 16, 4 * N);
            _tile_stored(2, to + 16 * N, 4 * N);
            _tile_stored(3, to + 16 * N + 16, 4 * N);
        }
    settle_memory();
}

// Which elements of two vectors, counted through both, a shuffle takes.
template <class T, int COUNT>
struct Choice {
    template <class Which>
    constexpr explicit Choice(Which which) : elements{} {
        for (int i = 0; i < COUNT; i++) elements[i] = which(i);
    }

    alignas(64) T elements[COUNT];
};

// Exchanges halves of blocks of 2 S between vectors that lie S apart.
template <int S>
inline void turn_blocks(Ints* rows) {
    static constexpr Choice<int32_t, 16> lower([](int j) { return j & S ? 16 + j - S : j; });
    static constexpr Choice<int32_t, 16> upper([](int j) { return j & S ? 16 + j : j + S; });
    const Ints low = *reinterpret_cast<const Ints*>(lower.elements);
    const Ints high = *reinterpret_cast<const Ints*>(upper.elements);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        if (!(i & S)) {
            const Ints a = rows[i], b = rows[i + S];
            rows[i] = __builtin_shuffle(a, b, low);
            rows[i + S] = __builtin_shuffle(a, b, high);
        }
}

// Turns 16 vectors: vector i becomes the elements i of all.
inline void turn(Ints* rows) {
    turn_blocks<1>(rows);
    turn_blocks<2>(rows);
    turn_blocks<4>(rows);
    turn_blocks<8>(rows);
}

// Pairs (M, N) to (N, M), both of them multiples of 16.
inline void turn(const Pair* from, Pair* to, int64_t M, int64_t N) {
    for (int64_t m = 0; m < M; m += 16)
        for (int64_t n = 0; n < N; n += 16) {
            Ints block[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++)
                std::memcpy(block + i, from + (m + i) * N + n, sizeof(Ints));
            turn(block);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) std::memcpy(to + (n + i) * M + m, block + i, sizeof(Ints));
        }
}

// Rows (P, D) turned, in pairs (D / 2, P): as the right matrix of a product with rows (P', D).
inline void turn_to_pairs(const bfloat16* rows, Pair* to, int64_t P, int64_t D) {
    turn(reinterpret_cast<const Pair*>(rows), to, P, D / 2);
}

inline Ints side_by_side(Halves low, Halves high) {
    return __builtin_convertvector(low, Ints) | (__builtin_convertvector(high, Ints) << 16);
}

// Rows (P, D) to pairs (P / 2, D).
inline void rows_to_pairs(const bfloat16* rows, Pair* to, int64_t P, int64_t D) {
    for (int64_t p = 0; p < P; p += 2)
        for (int64_t d = 0; d < D; d += 16) {
            Halves low, high;
            std::memcpy(&low, rows + p * D + d, sizeof(Halves));
            std::memcpy(&high, rows + (p + 1) * D + d, sizeof(Halves));
            const Ints both = side_by_side(low, high);
            std::memcpy(to + p / 2 * D + d, &both, sizeof(Ints));
        }
}

}  // namespace esvit

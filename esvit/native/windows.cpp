// Rows moved into windows and back: what a map's shift, padding and cutting come to.

#include "vectors.h"

using namespace esvit;

extern "C" {

// Row j of each map's M rows becomes row index[j] of that map's L, or zero where that is L.
void esvit_take(const char* from, const int64_t* index, char* to, int64_t maps, int64_t L, int64_t M,
                int64_t bytes) {
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t b = 0; b < maps; b++)
        for (int64_t j = 0; j < M; j++) {
            char* out = to + (b * M + j) * bytes;
            if (index[j] == L) {
                std::memset(out, 0, bytes);
                continue;
            }
            const char* row = from + (b * L + index[j]) * bytes;
            int64_t i = 0;
            for (; i + 64 <= bytes; i += 64) std::memcpy(out + i, row + i, 64);
            std::memcpy(out + i, row + i, bytes - i);
        }
}
}

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif
#include <immintrin.h>

#define SET avx2
#define WIDTH 8
#define MAX_I32(a, b) ((I32)_mm256_max_epi32((__m256i)(a), (__m256i)(b)))
#define LARGEST_OF(v) largest_of_8((__m256i)(v))
static inline int largest_of_8(__m256i v)
{
    __m128i w = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    w = _mm_max_epi32(w, _mm_shuffle_epi32(w, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(w, _mm_shuffle_epi32(w, 0xB1)));
}
#include "kernels.inc"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

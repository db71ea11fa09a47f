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
#include "kernels.inc"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

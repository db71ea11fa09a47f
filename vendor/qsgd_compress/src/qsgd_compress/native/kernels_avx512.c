#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
#endif
#include <immintrin.h>

#define SET avx512
#define WIDTH 16
#define MAX_I32(a, b) ((I32)_mm512_max_epi32((__m512i)(a), (__m512i)(b)))
#include "kernels.inc"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

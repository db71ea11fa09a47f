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
#define LARGEST_OF(v) _mm512_reduce_max_epi32((__m512i)(v))
#define LOOK_UP(table, index) ((F32)_mm512_permutexvar_ps((__m512i)(index), (__m512)(table)))
/* One frame is as fast as memory, and memory is faster when lines are touched in halves. */
#define ADD_ONE kernels_avx2.add
#include "kernels.inc"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

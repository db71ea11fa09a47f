/* The arithmetic of the codec, compiled once for each instruction set (kernels.inc) and chosen when the module is
 * loaded. README.md specifies every result to the bit; none may depend on the instruction set or the compiler. */
#ifndef QSGD_KERNELS_H
#define QSGD_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum { LANES = 16, GROUP_BYTES = 64, BLOCK = 128 }; /* BLOCK: the values that frames of 4 and of 8 bits share a border at */

typedef struct {
    const unsigned char *scales; /* float32 each, at any alignment */
    const unsigned char *codes;
    int bits;        /* 4 or 8 */
    int log2_bucket; /* 7 to 16 */
    double weight;   /* of accumulate; decode has none */
} Frame;

typedef struct {
    const char *name;

    /* Buckets [first, last) of the `size` values x into `scales` and `codes`; the index of the first value that is not
     * finite, or -1. */
    int64_t (*quantise)(const float *x, int64_t size, int bits, int log2_bucket, int l2, uint64_t seed, int64_t first,
                        int64_t last, unsigned char *scales, unsigned char *codes);

    /* The first group of [first, last) that holds the reserved code, or -1. */
    int64_t (*find_reserved)(const unsigned char *codes, int bits, int64_t first, int64_t last);

    /* Values [start, stop) of the frame into out + start; `start` is a multiple of BLOCK, `stop` too or the end. */
    void (*decode)(const Frame *frame, float *out, int64_t start, int64_t stop);

    /* acc + start += the frames' weighted values [start, stop), frame after frame. */
    void (*add)(const Frame *frames, int count, float *acc, int64_t start, int64_t stop);
} Kernels;

extern const Kernels kernels_baseline;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

#endif

/* Three streams at once, because the processor's instruction takes three cycles and can be started in each; they are
 * put together by multiplication with x^(8 * length) modulo the polynomial, tabulated for the one length in use. */
#include "crc32c.h"

#include <string.h>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

enum { STREAM_BYTES = CRC32C_STRIDE / 3 };

static const uint32_t polynomial = 0x82F63B78; /* reflected: bit 31 is x^0 */
static uint32_t slices[8][256];                /* [s][b]: the byte b followed by s zero bytes */
static uint32_t shifts[4][256];                /* [i][b]: b as byte i of a CRC, followed by STREAM_BYTES zero bytes */
static int has_instruction;

/* a * b modulo the polynomial. */
static uint32_t multiply(uint32_t a, uint32_t b)
{
    uint32_t product = 0;
    for (uint32_t bit = 0x80000000; bit; bit >>= 1) {
        if (a & bit) product ^= b;
        b = b & 1 ? b >> 1 ^ polynomial : b >> 1;
    }
    return product;
}

/* x^bits modulo the polynomial. */
static uint32_t power(uint64_t bits)
{
    uint32_t result = 0x80000000, square = 0x40000000; /* 1, and x */
    for (; bits; bits >>= 1) {
        if (bits & 1) result = multiply(result, square);
        square = multiply(square, square);
    }
    return result;
}

uint32_t crc32c_combine(uint32_t first, uint32_t second, uint64_t second_length)
{
    return multiply(first, power(8 * second_length)) ^ second;
}

static uint64_t load64(const unsigned char *at)
{
    uint64_t v;
    memcpy(&v, at, 8);
    return v;
}

/* Without the inversions at both ends. */
static uint32_t update_tables(uint32_t crc, const unsigned char *data, size_t length)
{
    for (; length >= 8; length -= 8, data += 8) {
        const uint64_t v = load64(data) ^ crc;
        crc = 0;
        for (int s = 0; s < 8; s++) crc ^= slices[7 - s][v >> (8 * s) & 0xFF];
    }
    for (; length; length--) crc = crc >> 8 ^ slices[0][(crc ^ *data++) & 0xFF];
    return crc;
}

#if defined(__x86_64__)
#define WITH_INSTRUCTION __attribute__((target("sse4.2")))
#define STEP(crc, v) ((uint32_t)__builtin_ia32_crc32di((crc), (v)))
#elif defined(__aarch64__) && defined(__clang__)
/* arm_acle.h of Clang 14 declares __crc32cd only where the whole file is compiled for processors that have it. */
#define WITH_INSTRUCTION __attribute__((target("crc")))
#define STEP(crc, v) __builtin_arm_crc32cd((crc), (v))
#elif defined(__aarch64__)
#include <arm_acle.h>
#define WITH_INSTRUCTION __attribute__((target("+crc")))
#define STEP(crc, v) __crc32cd((crc), (v))
#endif

#if defined(STEP)
static uint32_t shift(uint32_t crc)
{
    return shifts[0][crc & 0xFF] ^ shifts[1][crc >> 8 & 0xFF] ^ shifts[2][crc >> 16 & 0xFF] ^ shifts[3][crc >> 24];
}

WITH_INSTRUCTION static uint32_t update(uint32_t crc, const unsigned char *data, size_t length)
{
    for (; length >= 3 * STREAM_BYTES; length -= 3 * STREAM_BYTES, data += 3 * STREAM_BYTES) {
        uint32_t second = 0, third = 0;
        for (int i = 0; i < STREAM_BYTES; i += 8) {
            crc = STEP(crc, load64(data + i));
            second = STEP(second, load64(data + STREAM_BYTES + i));
            third = STEP(third, load64(data + 2 * STREAM_BYTES + i));
        }
        crc = shift(shift(crc) ^ second) ^ third;
    }
    for (; length >= 8; length -= 8, data += 8) crc = STEP(crc, load64(data));
    return update_tables(crc, data, length);
}
#endif

#if defined(__x86_64__)
#include <immintrin.h>

/* By carry-less multiplication (V. Gopal et al. 2009): a quarter kilobyte is multiplied by x^2048 and added to the next
 * one, which leaves the remainder as it is. The last one is left to the instruction above. */
enum { FOLD_BYTES = 256, AHEAD_BYTES = 6144 };
static uint64_t fold_low, fold_high; /* factors of the lower and the upper half of sixteen bytes */
static int has_folding;

__attribute__((target("avx512f,pclmul,vpclmulqdq"))) static __m512i fold(__m512i v, __m512i next, __m512i by)
{
    const __m512i low = _mm512_clmulepi64_epi128(v, by, 0x00), high = _mm512_clmulepi64_epi128(v, by, 0x11);
    return _mm512_ternarylogic_epi64(low, high, next, 0x96);
}

/* The lowest bit of every field of `bits` bits that is all ones, among others for 8. */
__attribute__((target("avx512f,pclmul,vpclmulqdq"))) static inline __m512i ones_of(__m512i word, const int bits)
{
    __m512i ones = _mm512_and_si512(word, _mm512_srli_epi32(word, 1));
    ones = _mm512_and_si512(ones, _mm512_srli_epi32(ones, 2));
    return bits == 4 ? ones : _mm512_and_si512(ones, _mm512_srli_epi32(ones, 4));
}

/* With `bits` of 4 or 8 it also looks for fields that are all ones. */
__attribute__((target("avx512f,pclmul,vpclmulqdq"), always_inline)) static inline uint32_t update_folding(
    uint32_t crc, const unsigned char *data, size_t length, const int bits, int *has_ones)
{
    __m512i ones = _mm512_setzero_si512();
    if (length >= 2 * FOLD_BYTES) {
        const __m512i by = _mm512_set_epi64((long long)fold_high, (long long)fold_low, (long long)fold_high,
                                            (long long)fold_low, (long long)fold_high, (long long)fold_low,
                                            (long long)fold_high, (long long)fold_low);
        __m512i v[4];
        for (int i = 0; i < 4; i++) {
            v[i] = _mm512_loadu_si512(data + 64 * i);
            if (bits) ones = _mm512_or_si512(ones, ones_of(v[i], bits));
        }
        v[0] = _mm512_xor_si512(v[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
        for (; length >= 2 * FOLD_BYTES; length -= FOLD_BYTES) {
            data += FOLD_BYTES;
            for (int i = 0; i < 4; i++) {
                const __m512i next = _mm512_loadu_si512(data + 64 * i);
                __builtin_prefetch(data + 64 * i + AHEAD_BYTES);
                if (bits) ones = _mm512_or_si512(ones, ones_of(next, bits));
                v[i] = fold(v[i], next, by);
            }
        }
        unsigned char last[FOLD_BYTES];
        for (int i = 0; i < 4; i++) _mm512_storeu_si512(last + 64 * i, v[i]);
        crc = update(0, last, FOLD_BYTES);
        data += FOLD_BYTES;
        length -= FOLD_BYTES;
    }
    if (bits) {
        for (size_t at = 0; at < length; at += 64)
            ones = _mm512_or_si512(ones, ones_of(_mm512_loadu_si512(data + at), bits));
        *has_ones = _mm512_test_epi32_mask(ones, _mm512_set1_epi32(bits == 4 ? 0x11111111 : 0x01010101)) != 0;
    }
    return update(crc, data, length);
}

__attribute__((target("avx512f,pclmul,vpclmulqdq"))) static uint32_t fold_all(uint32_t crc, const unsigned char *data,
                                                                             size_t length, int bits, int *has_ones)
{
    if (bits == 4) return update_folding(crc, data, length, 4, has_ones);
    if (bits == 8) return update_folding(crc, data, length, 8, has_ones);
    return update_folding(crc, data, length, 0, has_ones);
}
#endif

int crc32c_can_look(void)
{
#if defined(__x86_64__)
    return has_folding;
#else
    return 0;
#endif
}

uint32_t crc32c_look(uint32_t crc, const unsigned char *data, size_t length, int bits, int *has_ones)
{
#if defined(__x86_64__)
    return ~fold_all(~crc, data, length, bits, has_ones);
#else
    (void)bits;
    *has_ones = 1;
    return crc32c(crc, data, length);
#endif
}

uint32_t crc32c_form(int form, uint32_t crc, const unsigned char *data, size_t length)
{
#if defined(__x86_64__)
    if (form <= CRC32C_FOLDING && has_folding) return ~fold_all(~crc, data, length, 0, NULL);
#endif
#if defined(STEP)
    if (form <= CRC32C_INSTRUCTION && has_instruction) return ~update(~crc, data, length);
#endif
    return ~update_tables(~crc, data, length);
}

uint32_t crc32c(uint32_t crc, const unsigned char *data, size_t length)
{
    return crc32c_form(CRC32C_FOLDING, crc, data, length);
}

void crc32c_prepare(void)
{
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t crc = b;
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ polynomial : crc >> 1;
        slices[0][b] = crc;
    }
    for (int s = 1; s < 8; s++)
        for (int b = 0; b < 256; b++) slices[s][b] = slices[s - 1][b] >> 8 ^ slices[0][slices[s - 1][b] & 0xFF];
    const uint32_t far = power(8 * STREAM_BYTES);
    for (int i = 0; i < 4; i++)
        for (uint32_t b = 1; b < 256; b++) {
            const uint32_t lowest = b & -b;
            shifts[i][b] = b == lowest ? multiply(b << (8 * i), far) : shifts[i][lowest] ^ shifts[i][b ^ lowest];
        }
#if defined(__x86_64__)
    has_instruction = __builtin_cpu_supports("sse4.2");
    has_folding = has_instruction && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq");
    /* The product of two reflected polynomials comes out shifted by one bit, hence one power less. */
    fold_low = (uint64_t)power(8 * FOLD_BYTES + 63) << 32;
    fold_high = (uint64_t)power(8 * FOLD_BYTES - 1) << 32;
#elif defined(__aarch64__) && defined(__linux__)
    has_instruction = (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
    has_instruction = 1;
#endif
}

/* zstd frames that hold Huffman-coded literals and no matches: in gradients' codes there is nothing to match, and looking
 * for it costs more than half the time and some of the ratio. Any zstd decoder reads them; huffman.py writes the same bytes.
 * Section numbers are those of RFC 8878. */
#include "huffman.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    SYMBOLS = 256,
    LONGEST = 11,   /* bits of a code; section 4.2.1 */
    STREAMS = 4,
    WEIGHT_LOG = 6, /* accuracy of the weights' own table; section 4.2.1.2 */
    WEIGHT_STATES = 1 << WEIGHT_LOG,
    LITERALS_HEADER = 5,
    JUMP_TABLE = 6,
    LARGEST_TREE = 128,
};

/* ---- order of the codes ---- */

typedef uint64_t U64x8 __attribute__((vector_size(64)));
typedef uint64_t U64x8Memory __attribute__((vector_size(64), aligned(1), may_alias));

#define SWAP(v, shift, mask)                      \
    do {                                          \
        const U64x8 t = ((v) ^ (v) >> (shift)) & (mask); \
        (v) ^= t ^ t << (shift);                  \
    } while (0)

void interleave(const unsigned char *from, unsigned char *to, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += sizeof(U64x8)) {
        U64x8 v = *(const U64x8Memory *)(from + at);
        SWAP(v, 16, 0x00000000FFFF0000u);
        SWAP(v, 8, 0x0000FF000000FF00u);
        SWAP(v, 4, 0x00F000F000F000F0u);
        *(U64x8Memory *)(to + at) = v;
    }
}

void separate(unsigned char *codes, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += sizeof(U64x8)) {
        U64x8 v = *(U64x8Memory *)(codes + at);
        SWAP(v, 4, 0x00F000F000F000F0u);
        SWAP(v, 8, 0x0000FF000000FF00u);
        SWAP(v, 16, 0x00000000FFFF0000u);
        *(U64x8Memory *)(codes + at) = v;
    }
}

/* ---- bits, from the lowest up ---- */

typedef struct {
    uint64_t bits;
    unsigned count; /* bits not yet written, fewer than 8 after `flush` */
    unsigned char *at;
} BitWriter;

static inline void put(BitWriter *w, uint64_t bits, unsigned count)
{
    w->bits |= bits << w->count;
    w->count += count;
}

/* Writes eight bytes, of which the whole ones count. */
static inline void flush(BitWriter *w)
{
    memcpy(w->at, &w->bits, 8);
    w->at += w->count / 8;
    w->bits >>= w->count & ~7u;
    w->count &= 7;
}

/* The bits that are left, filled up with zeros. */
static unsigned char *finish(BitWriter *w)
{
    flush(w);
    return w->at + (w->count != 0);
}

/* ---- lengths of the codes ---- */

static void count_symbols(const unsigned char *from, size_t bytes, uint32_t *count)
{
    enum { TABLES = 8 }; /* the same symbol twice in a row must not wait for the first addition */
    uint32_t part[TABLES][SYMBOLS] = {{0}};
    size_t i = 0;
    for (; i + TABLES <= bytes; i += TABLES) {
        uint64_t v;
        memcpy(&v, from + i, TABLES);
#pragma GCC unroll 8
        for (unsigned k = 0; k < TABLES; k++) part[k][v >> (8 * k) & 0xFF]++;
    }
    for (; i < bytes; i++) part[0][from[i]]++;
    for (int s = 0; s < SYMBOLS; s++) {
        count[s] = 0;
        for (int k = 0; k < TABLES; k++) count[s] += part[k][s];
    }
}

static int ascending(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Lengths of an optimal prefix code of at most LONGEST bits, by the package-merge algorithm (Larmore and Hirschberg 1990):
 * symbols in ascending order of (count, symbol), leaves before packages of the same weight. At least two symbols occur. */
static void code_lengths(const uint32_t *count, unsigned char *length)
{
    uint64_t leaf[SYMBOLS], row[2 * SYMBOLS], next[2 * SYMBOLS];
    unsigned char is_leaf[LONGEST][2 * SYMBOLS];
    size_t leaves = 0;
    for (unsigned s = 0; s < SYMBOLS; s++)
        if (count[s]) leaf[leaves++] = (uint64_t)count[s] << 8 | s;
    qsort(leaf, leaves, sizeof *leaf, ascending);

    size_t items = leaves;
    for (size_t i = 0; i < leaves; i++) row[i] = leaf[i] >> 8;
    memset(is_leaf[0], 1, sizeof is_leaf[0]);
    for (int level = 1; level < LONGEST; level++) {
        const size_t packages = items / 2;
        size_t l = 0, p = 0;
        for (items = 0; items < leaves + packages; items++) {
            const int from_leaves = p == packages || (l < leaves && leaf[l] >> 8 <= row[2 * p] + row[2 * p + 1]);
            is_leaf[level][items] = (unsigned char)from_leaves;
            if (from_leaves) {
                next[items] = leaf[l++] >> 8;
            } else {
                next[items] = row[2 * p] + row[2 * p + 1];
                p++;
            }
        }
        memcpy(row, next, items * sizeof *row);
    }
    memset(length, 0, SYMBOLS);
    size_t taken = 2 * leaves - 2;
    for (int level = LONGEST - 1; level >= 0; level--) {
        size_t of_leaves = 0;
        for (size_t i = 0; i < taken; i++) of_leaves += is_leaf[level][i];
        for (size_t i = 0; i < of_leaves; i++) length[leaf[i] & 0xFF]++;
        taken = 2 * (taken - of_leaves);
    }
}

/* ---- the tree's description: weights by finite state entropy, section 4.1 ---- */

static unsigned log2_of(unsigned v) { return 31 - (unsigned)__builtin_clz(v); }

/* Shares of WEIGHT_STATES: rounded down but at least one; what is missing or too much goes to or from the largest. */
static void normalise(const unsigned *count, unsigned total, int *share)
{
    int sum = 0, largest = 0;
    for (int w = 0; w <= LONGEST; w++) {
        share[w] = (int)(count[w] * WEIGHT_STATES / total);
        if (count[w] && !share[w]) share[w] = 1;
        sum += share[w];
        if (share[w] > share[largest]) largest = w;
    }
    share[largest] += WEIGHT_STATES - sum;
}

static unsigned char *write_shares(const int *share, unsigned char *to)
{
    BitWriter w = {.at = to};
    int left = WEIGHT_STATES + 1, threshold = WEIGHT_STATES, bits = WEIGHT_LOG + 1;
    put(&w, WEIGHT_LOG - 5, 4);
    for (int symbol = 0; left > 1;) {
        const int value = share[symbol++];
        const int spare = 2 * threshold - 1 - left;
        const int coded = value + 1 >= threshold ? value + 1 + spare : value + 1;
        put(&w, (uint64_t)coded, (unsigned)(bits - (coded < spare)));
        left -= value;
        while (left < threshold && threshold > 1) {
            bits--;
            threshold >>= 1;
        }
        if (!value) { /* how many more zeros follow, three at a time */
            int zeros = 0;
            while (!share[symbol]) {
                symbol++;
                zeros++;
            }
            for (; zeros >= 3; zeros -= 3) put(&w, 3, 2);
            put(&w, (uint64_t)zeros, 2);
        }
        flush(&w);
    }
    return finish(&w);
}

typedef struct {
    int32_t bits_delta[LONGEST + 1], state_delta[LONGEST + 1];
    uint16_t state[WEIGHT_STATES];
} WeightTable;

static void build_table(const int *share, WeightTable *table)
{
    unsigned char spread[WEIGHT_STATES];
    unsigned position = 0;
    int start[LONGEST + 2] = {0}, total = 0;
    for (int w = 0; w <= LONGEST; w++) {
        for (int i = 0; i < share[w]; i++) {
            spread[position] = (unsigned char)w;
            position = (position + (WEIGHT_STATES >> 1) + (WEIGHT_STATES >> 3) + 3) % WEIGHT_STATES;
        }
        start[w] = total;
        const int bits = share[w] > 1 ? WEIGHT_LOG - (int)log2_of((unsigned)share[w] - 1) : WEIGHT_LOG;
        table->bits_delta[w] = bits * 65536 - share[w] * (1 << bits);
        table->state_delta[w] = total - share[w];
        total += share[w];
    }
    for (int i = 0; i < WEIGHT_STATES; i++) table->state[start[spread[i]]++] = (uint16_t)(WEIGHT_STATES + i);
}

static unsigned first_state(const WeightTable *t, int w)
{
    const int bits = (t->bits_delta[w] + (1 << 15)) >> 16;
    return t->state[((bits * 65536 - t->bits_delta[w]) >> bits) + t->state_delta[w]];
}

static unsigned next_state(const WeightTable *t, unsigned state, int w, BitWriter *writer)
{
    const int bits = ((int)state + t->bits_delta[w]) >> 16;
    put(writer, state & ((1u << bits) - 1), (unsigned)bits);
    flush(writer);
    return t->state[(int)(state >> bits) + t->state_delta[w]];
}

/* The description of the tree for symbols up to `last`, whose weight goes without saying; NULL where it cannot be told. */
static unsigned char *write_tree(const unsigned char *length, int longest, int last, unsigned char *to)
{
    unsigned char weight[SYMBOLS];
    unsigned count[LONGEST + 1] = {0}, most = 0;
    for (int s = 0; s < last; s++) {
        weight[s] = (unsigned char)(length[s] ? longest + 1 - length[s] : 0);
        count[weight[s]]++;
    }
    for (int w = 0; w <= LONGEST; w++)
        if (count[w] > most) most = count[w];
    if (last > 2 && most < (unsigned)last) {
        int share[LONGEST + 1];
        WeightTable table;
        normalise(count, (unsigned)last, share);
        build_table(share, &table);
        BitWriter w = {.at = write_shares(share, to + 1)};
        /* Two states take turns, from the last weight to the first; an even one belongs to the first state. */
        unsigned state[2];
        int i = last - 1;
        state[i % 2] = first_state(&table, weight[i]);
        i--;
        state[i % 2] = first_state(&table, weight[i]);
        for (i--; i >= 0; i--) state[i % 2] = next_state(&table, state[i % 2], weight[i], &w);
        put(&w, state[1] - WEIGHT_STATES, WEIGHT_LOG);
        put(&w, state[0] - WEIGHT_STATES, WEIGHT_LOG);
        put(&w, 1, 1);
        unsigned char *end = finish(&w);
        const long bytes = end - to - 1;
        if (bytes < LARGEST_TREE && (last > 128 || bytes < (last + 1) / 2)) {
            to[0] = (unsigned char)bytes;
            return end;
        }
    }
    if (last > 128) return NULL;
    to[0] = (unsigned char)(127 + last);
    memset(to + 1, 0, (size_t)(last + 1) / 2);
    for (int s = 0; s < last; s++) to[1 + s / 2] |= (unsigned char)(weight[s] << (s % 2 ? 0 : 4));
    return to + 1 + (last + 1) / 2;
}

/* ---- blocks ---- */

/* Symbols from the last to the first, as decoders read backwards. */
static unsigned char *write_stream(const unsigned char *from, size_t bytes, const uint32_t *code, unsigned char *to)
{
    BitWriter w = {.at = to};
    size_t i = bytes;
    for (; i % 5; i--) put(&w, code[from[i - 1]] >> 8, code[from[i - 1]] & 0xFF);
    flush(&w);
    for (; i; i -= 5) { /* five codes and the seven bits that may be left fit into 64 */
#pragma GCC unroll 5
        for (int k = 1; k <= 5; k++) put(&w, code[from[i - k]] >> 8, code[from[i - k]] & 0xFF);
        flush(&w);
    }
    put(&w, 1, 1);
    return finish(&w);
}

static void put_le(unsigned char *to, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++) to[i] = (unsigned char)(v >> (8 * i));
}

/* A block's content as Huffman-coded literals and no sequences (sections 3.1.1.3.1, 3.1.1.3.2); 0 where that is no smaller.
 * `to` has room for twice the bytes and a kilobyte. */
static size_t write_literals(const unsigned char *from, size_t bytes, const uint32_t *count, unsigned char *to)
{
    unsigned char length[SYMBOLS];
    code_lengths(count, length);
    int longest = 0, last = 0;
    uint64_t bits = 0;
    for (int s = 0; s < SYMBOLS; s++) {
        if (length[s]) last = s;
        if (length[s] > longest) longest = length[s];
        bits += (uint64_t)length[s] * count[s];
    }
    if (bits / 8 >= bytes) return 0;
    uint32_t first[LONGEST + 1] = {0}, code[SYMBOLS], of_length[LONGEST + 1] = {0}, following = 0;
    for (int s = 0; s < SYMBOLS; s++) of_length[length[s]]++;
    for (int l = longest; l > 0; l--) {
        first[l] = following;
        following = (following + of_length[l]) >> 1;
    }
    for (int s = 0; s < SYMBOLS; s++) code[s] = length[s] ? first[length[s]]++ << 8 | length[s] : 0;

    unsigned char *at = write_tree(length, longest, last, to + LITERALS_HEADER);
    if (!at) return 0;
    unsigned char *jumps = at;
    at += JUMP_TABLE;
    const size_t share = (bytes + STREAMS - 1) / STREAMS;
    for (int s = 0; s < STREAMS; s++) {
        unsigned char *end = write_stream(from + s * share, s < STREAMS - 1 ? share : bytes - s * share, code, at);
        if (s < STREAMS - 1) put_le(jumps + 2 * s, (uint64_t)(end - at), 2);
        at = end;
    }
    const uint64_t compressed = (uint64_t)(at - to - LITERALS_HEADER);
    put_le(to, 2 | 3 << 2 | (uint64_t)bytes << 4 | compressed << 22, LITERALS_HEADER);
    *at++ = 0; /* no sequences */
    return (size_t)(at - to) < bytes ? (size_t)(at - to) : 0;
}

size_t zstd_bound(size_t bytes)
{
    return FRAME_HEADER_BYTES + bytes + BLOCK_HEADER_BYTES * (bytes / BLOCK_BYTES + 1);
}

size_t zstd_frame(const unsigned char *from, size_t bytes, int interleaved, unsigned char *to)
{
    enum { RAW, RLE, COMPRESSED };
    static const unsigned char start[5] = {0x28, 0xB5, 0x2F, 0xFD, 0xA0}; /* single segment, content size in four bytes */
    unsigned char *at = to, pairs[BLOCK_BYTES], packed[2 * BLOCK_BYTES + 1024];
    memcpy(at, start, sizeof start);
    put_le(at + sizeof start, bytes, 4);
    at += FRAME_HEADER_BYTES;
    for (size_t done = 0; done < bytes;) {
        const size_t size = bytes - done < BLOCK_BYTES ? bytes - done : BLOCK_BYTES;
        const unsigned char *block = from + done;
        if (interleaved) {
            interleave(block, pairs, size);
            block = pairs;
        }
        done += size;
        uint32_t count[SYMBOLS];
        count_symbols(block, size, count);
        const int alone = count[block[0]] == size;
        const size_t literals = alone ? 0 : write_literals(block, size, count, packed);
        const int kind = alone ? RLE : literals ? COMPRESSED : RAW;
        const size_t content = alone ? 1 : literals ? literals : size;
        put_le(at, (uint64_t)(done == bytes) | (uint64_t)kind << 1 | (uint64_t)(alone ? size : content) << 3, BLOCK_HEADER_BYTES);
        memcpy(at + BLOCK_HEADER_BYTES, kind == COMPRESSED ? packed : block, content);
        at += BLOCK_HEADER_BYTES + content;
    }
    return (size_t)(at - to);
}

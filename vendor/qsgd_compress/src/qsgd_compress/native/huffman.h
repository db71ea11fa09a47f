/* Entropy coding of a frame's codes: zstd frames (RFC 8878) of Huffman-coded literals and nothing else. */
#ifndef QSGD_HUFFMAN_H
#define QSGD_HUFFMAN_H

#include <stddef.h>

enum { FRAME_HEADER_BYTES = 9, BLOCK_HEADER_BYTES = 3, BLOCK_BYTES = 1 << 17 };

/* Codes of 4 bits, whole groups of 64 bytes, in the order in which they are coded: of words 2 j and 2 j + 1 the nibbles in
 * turn, so that a byte holds two neighbours, which are alike. */
void interleave(const unsigned char *from, unsigned char *to, size_t bytes);
void separate(unsigned char *codes, size_t bytes); /* and back, in place */

/* Room that the zstd frame of so many bytes takes at most. */
size_t zstd_bound(size_t bytes);

/* One zstd frame of `bytes` bytes, fewer than 2**32; its length. */
size_t zstd_frame(const unsigned char *from, size_t bytes, int interleaved, unsigned char *to);

#endif

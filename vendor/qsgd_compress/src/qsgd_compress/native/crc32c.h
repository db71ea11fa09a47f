/* CRC-32C (Castagnoli; RFC 3720, appendix B.4), as the frame's checksums use it. */
#ifndef QSGD_CRC32C_H
#define QSGD_CRC32C_H

#include <stddef.h>
#include <stdint.h>

enum { CRC32C_STRIDE = 6144 }; /* bytes: multiples of it take the least time */

void crc32c_prepare(void); /* before anything else; once */

/* Forms of the same sum, best first; one that the processor lacks is replaced by the next. */
enum { CRC32C_FOLDING, CRC32C_INSTRUCTION, CRC32C_TABLES };
uint32_t crc32c(uint32_t crc, const unsigned char *data, size_t length); /* crc: of what stands before, 0 for nothing */
uint32_t crc32c_form(int form, uint32_t crc, const unsigned char *data, size_t length);
/* Sums `data`, a multiple of 64 bytes, and tells whether any of its fields of `bits` bits (4 or 8) is all ones; only
 * where crc32c_can_look says so. Both in one pass take as long as reading the memory does. */
int crc32c_can_look(void);
uint32_t crc32c_look(uint32_t crc, const unsigned char *data, size_t length, int bits, int *has_ones);
uint32_t crc32c_combine(uint32_t first, uint32_t second, uint64_t second_length); /* of two pieces in a row */

#endif

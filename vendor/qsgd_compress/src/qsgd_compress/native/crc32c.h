/* CRC-32C (Castagnoli; RFC 3720, appendix B.4), as the frame's checksums use it. */
#ifndef QSGD_CRC32C_H
#define QSGD_CRC32C_H

#include <stddef.h>
#include <stdint.h>

enum { CRC32C_STRIDE = 6144 }; /* bytes: multiples of it take the least time */

void crc32c_prepare(void); /* before anything else; once */
uint32_t crc32c(uint32_t crc, const unsigned char *data, size_t length); /* crc: of what stands before, 0 for nothing */
uint32_t crc32c_portable(uint32_t crc, const unsigned char *data, size_t length); /* the same without the processor's own instruction */
uint32_t crc32c_combine(uint32_t first, uint32_t second, uint64_t second_length);  /* of two pieces in a row */

#endif

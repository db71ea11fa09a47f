/* What every processor of the architecture has: SSE2 on x86-64, NEON on aarch64. */
#define SET baseline
#define WIDTH 4
#include "kernels.inc"

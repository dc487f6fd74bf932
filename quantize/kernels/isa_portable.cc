// The encoder with 4 lanes, for the compiler's default target: SSE2 on x86-64, NEON on aarch64.
#include "task.h"

#define MEDLITE_ISA portable
#define MEDLITE_LANES 4
#include "all_types.h"

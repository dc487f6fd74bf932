// The encoder with 8 lanes. System headers come before the pragma, so that no shared inline function is compiled for it.
#include "task.h"

#ifdef MEDLITE_X86
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif
#define MEDLITE_ISA avx2
#define MEDLITE_LANES 8
#include "all_types.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif

// The encoder with 16 lanes. System headers come before the pragma, so that no shared inline function is compiled for it.
#include "task.h"

#ifdef MEDLITE_X86
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
#endif
#define MEDLITE_ISA avx512
#define MEDLITE_LANES 16
#include "all_types.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif

// CUDA C++ for the host compiler: what the sources in kernels/cuda use of the language's device side, on threads.cpp.
//
// It is included before every source, which is compiled unchanged inside an anonymous namespace (see programs.py): there
// `static` variables are plain ones, not shared between translation units, so that a section can hold them.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <cmath>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_types.h>

// host_defines.h spells these for compilers that know CUDA's attributes, or insists on inlining, which costs build time.
#undef __forceinline__
#undef __global__
#undef __launch_bounds__
#undef __shared__
#define __forceinline__ inline
#define __global__
#define __launch_bounds__(...)

// A block's static shared memory: all variables of a program lie in one section, which launch() overwrites before each
// block, so that nothing is zero at its start and nothing is left from the block before.
#define __shared__ static __attribute__((section("cuda_shared")))
#define SHARED_MEMORY(type, name) type* name = static_cast<type*>(emulator::dynamic_shared())

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
static const int warpSize = 32;

namespace emulator {

// Where in the sources a thread waits.
struct Place {
    const char* file;
    int line;
};

// What the lanes of a warp can do together; they wait until all that the mask names are there.
enum Operation { SYNC, BALLOT, SHUFFLE, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR };

// Wait for all threads of the block; the number of them whose `predicate` holds.
int barrier(bool predicate, Place place);
// Take part in a warp's operation: the bits that this lane receives. `value` is what it gives (at most 8 bytes).
uint64_t together(Operation operation, unsigned mask, uint64_t value, int operand, int width, Place place);
void* dynamic_shared();

template <typename T> T shuffle(Operation operation, unsigned mask, T value, int operand, int width, Place place) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "a shuffle moves 2, 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    bits = together(operation, mask, bits, operand, width, place);
    T received;
    memcpy(&received, &bits, sizeof(T));
    return received;
}

template <typename To, typename From> To same_bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "one size");
    To y;
    memcpy(&y, &x, sizeof(To));
    return y;
}

}  // namespace emulator

// --- barriers, votes, shuffles: the place of the call comes in as a default argument -------------------

#define EMULATOR_FILE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMULATOR_PLACE (emulator::Place{file, line})

inline void __syncthreads(EMULATOR_FILE) { emulator::barrier(false, EMULATOR_PLACE); }
inline int __syncthreads_count(int p, EMULATOR_FILE) { return emulator::barrier(p != 0, EMULATOR_PLACE); }
inline int __syncthreads_or(int p, EMULATOR_FILE) { return emulator::barrier(p != 0, EMULATOR_PLACE) > 0; }
inline int __syncthreads_and(int p, EMULATOR_FILE) { return emulator::barrier(p == 0, EMULATOR_PLACE) == 0; }

inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_FILE) {
    emulator::together(emulator::SYNC, mask, 0, 0, 32, EMULATOR_PLACE);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_FILE) {
    return static_cast<unsigned>(emulator::together(emulator::BALLOT, mask, predicate != 0, 0, 32, EMULATOR_PLACE));
}
inline int __any_sync(unsigned mask, int predicate, EMULATOR_FILE) {
    return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMULATOR_FILE) {
    return __ballot_sync(mask, !predicate, file, line) == 0;
}

template <typename T> T __shfl_sync(unsigned mask, T value, int lane, int width = 32, EMULATOR_FILE) {
    return emulator::shuffle(emulator::SHUFFLE, mask, value, lane, width, EMULATOR_PLACE);
}
template <typename T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_FILE) {
    return emulator::shuffle(emulator::SHUFFLE_UP, mask, value, static_cast<int>(delta), width, EMULATOR_PLACE);
}
template <typename T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_FILE) {
    return emulator::shuffle(emulator::SHUFFLE_DOWN, mask, value, static_cast<int>(delta), width, EMULATOR_PLACE);
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMULATOR_FILE) {
    return emulator::shuffle(emulator::SHUFFLE_XOR, mask, value, lanes, width, EMULATOR_PLACE);
}

// --- memory: threads run one at a time, so a plain access is atomic ------------------------------------

inline void __threadfence() {}
inline void __threadfence_block() {}
template <typename T> T __ldg(const T* p) { return *p; }

template <typename T, typename F> T emulator_update(T* p, F f) {
    const T old = *p;
    *p = f(old);
    return old;
}
template <typename T> T atomicAdd(T* p, std::common_type_t<T> x) {
    return emulator_update(p, [=](T old) { return old + x; });
}
template <typename T> T atomicMax(T* p, std::common_type_t<T> x) {
    return emulator_update(p, [=](T old) { return old < x ? x : old; });
}
template <typename T> T atomicMin(T* p, std::common_type_t<T> x) {
    return emulator_update(p, [=](T old) { return x < old ? x : old; });
}
template <typename T> T atomicExch(T* p, std::common_type_t<T> x) {
    return emulator_update(p, [=](T) { return x; });
}
template <typename T> T atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> x) {
    return emulator_update(p, [=](T old) { return old == expected ? x : old; });
}

// --- arithmetic ---------------------------------------------------------------------------------------

using std::isfinite;
using std::isinf;
using std::isnan;

// As in CUDA: of a NaN and a number, the number.
template <typename A, typename B> std::common_type_t<A, B> min(A a, B b) {
    if constexpr (std::is_floating_point<std::common_type_t<A, B>>::value) return std::fmin(a, b);
    else return static_cast<std::common_type_t<A, B>>(a) < static_cast<std::common_type_t<A, B>>(b) ? a : b;
}
template <typename A, typename B> std::common_type_t<A, B> max(A a, B b) {
    if constexpr (std::is_floating_point<std::common_type_t<A, B>>::value) return std::fmax(a, b);
    else return static_cast<std::common_type_t<A, B>>(a) < static_cast<std::common_type_t<A, B>>(b) ? b : a;
}

inline float __int_as_float(int x) { return emulator::same_bits<float>(x); }
inline int __float_as_int(float x) { return emulator::same_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return emulator::same_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return emulator::same_bits<unsigned>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }

inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

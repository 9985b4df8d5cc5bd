// The shim by which a host compiler builds kernels.cu: the threads of a launch run one after another.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "arguments.h"

#define DEVICE static inline
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)

struct Index {
    unsigned x, y, z;
};
static thread_local Index gridDim, blockDim, blockIdx, threadIdx;

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) ushort4 {
    unsigned short x, y, z, w;
};

// Built with -ffp-contract=off, these are what the GPU's intrinsics of the same names are.
DEVICE float __fmul_rn(float a, float b) { return a * b; }
DEVICE float __fadd_rn(float a, float b) { return a + b; }
DEVICE float __fsub_rn(float a, float b) { return a - b; }

template <class To, class From>
static inline To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "of one size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
DEVICE unsigned bits_of(float value) { return same_bits<unsigned>(value); }
DEVICE float float_of(unsigned bits) { return same_bits<float>(bits); }
DEVICE float float_of_half(unsigned short bits) { return same_bits<_Float16>(bits); }
DEVICE unsigned short half_of_float(float value) {
    return same_bits<unsigned short>(static_cast<_Float16>(value));
}

template <class T>
DEVICE T &object(Address address) {
    if (address % alignof(T) != 0) {  // a host forgives what ends a GPU's context
        std::fprintf(stderr, "kernels: access of %zu bytes at the misaligned address %#llx\n", sizeof(T), address);
        std::abort();
    }
    return *reinterpret_cast<T *>(address);
}

template <class Arguments>
static void run_threads(void (*kernel)(Arguments), const unsigned grid[3], const unsigned block[3], void **params) {
    const auto &arguments = *static_cast<const Arguments *>(params[0]);
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
                for (threadIdx.z = 0; threadIdx.z < block[2]; ++threadIdx.z)
                    for (threadIdx.y = 0; threadIdx.y < block[1]; ++threadIdx.y)
                        for (threadIdx.x = 0; threadIdx.x < block[0]; ++threadIdx.x) kernel(arguments);
}

// What only a GPU's compiler knows; host.h has the same for the host. No header of CUDA is used,
// so that NVRTC needs none.
#pragma once

#define DEVICE static __device__ __forceinline__

DEVICE unsigned bits_of(float value) { return __float_as_uint(value); }
DEVICE float float_of(unsigned bits) { return __uint_as_float(bits); }

DEVICE float float_of_half(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

DEVICE unsigned short half_of_float(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// The object of type T at an address.
template <class T>
DEVICE T &object(Address address) {
    return *reinterpret_cast<T *>(address);
}

// Kernels to test the simulator with, in the form that the host build of csrc/kernels.cu has. A kernel takes
// one struct by value, and exports
//     NAME_host     which runs the whole grid,
//     NAME_ranges   which reports every range that a launch may touch,
//     NAME_bytes    which is the size of the struct.
#include <cstddef>

using Report = void (*)(void *context, const void *address, size_t bytes, int is_write);

struct Scale {  // y[i] = a * x[i] + b, for i < n
    const float *x;
    float *y;
    float a, b;
    int n;
};

struct Overrun {  // writes one float past the n that it reports
    float *y;
    int n;
};

extern "C" {

void scale_host(const unsigned *, const unsigned *, void **params) {
    auto &k = *static_cast<const Scale *>(params[0]);
    for (int i = 0; i < k.n; ++i) k.y[i] = k.a * k.x[i] + k.b;
}

void scale_ranges(const unsigned *, const unsigned *, void **params, Report report, void *context) {
    auto &k = *static_cast<const Scale *>(params[0]);
    report(context, k.x, sizeof(float) * static_cast<size_t>(k.n), 0);
    report(context, k.y, sizeof(float) * static_cast<size_t>(k.n), 1);
}

unsigned scale_bytes() { return sizeof(Scale); }

void overrun_host(const unsigned *, const unsigned *, void **params) {
    auto &k = *static_cast<const Overrun *>(params[0]);
    for (int i = 0; i <= k.n; ++i) k.y[i] = 0;
}

void overrun_ranges(const unsigned *, const unsigned *, void **params, Report report, void *context) {
    auto &k = *static_cast<const Overrun *>(params[0]);
    report(context, k.y, sizeof(float) * static_cast<size_t>(k.n), 1);
}

unsigned overrun_bytes() { return sizeof(Overrun); }

unsigned partial_bytes() { return 8; }  // no kernel: the rest is missing

}  // extern "C"

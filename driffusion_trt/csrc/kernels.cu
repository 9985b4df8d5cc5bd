// The kernels of the GPU lanes: everything between two network calls, the finite check, the pixels.
//
// They have no barriers, shuffles, shared memory or atomics: a thread's work depends on its elements
// alone, so that bits repeat on every run and for every grid, and a host compiler can build the same
// file (host.cpp). Every product and sum of float32 is rounded by itself: the results are numpy's.
//
// All are bound by memory. "Moved" below is the least number of bytes that a launch must read and
// write: n elements of a picture, B pictures, s(x) the size of an element of x.
#include "arguments.h"

#ifdef __CUDACC__
#include "device.h"
#endif

#include "values.h"

DEVICE long long thread_x() { return static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; }
DEVICE long long threads_x() { return static_cast<long long>(gridDim.x) * blockDim.x; }
DEVICE int width_of(long long elements, long long group) {
    const long long left = elements - 4 * group;
    return left < 4 ? static_cast<int>(left) : 4;
}

// targets[r] = row r of the forms: drafts, refinement, input scaling, guidance, conversion.
// A target may be one of the columns, at the same address and of the same kind, and must not overlap
// one in any other way. Rows with a message also write its header.
// Moved: B n (sum of s(column), twice if guided, + sum of s(target)); each once.
extern "C" __global__ void __launch_bounds__(128) linear(const __grid_constant__ LinearArguments a) {
    const Forms &forms = a.forms;
    if (thread_x() == 0 && blockIdx.y == 0) {
        for (int r = 0; r < forms.rows; ++r) {
            if (a.messages[r] == 0) continue;
            object<float>(a.messages[r] + 4 * a.slots[r]) = a.timesteps[r];
            object<float>(a.messages[r] + MESSAGE_GUIDANCE_OFFSET) = forms.guidance;
            object<int>(a.messages[r] + MESSAGE_ROUND_OFFSET) = a.round;
        }
    }
    const long long groups = (forms.elements + 3) / 4;
    for (int picture = blockIdx.y; picture < forms.batch; picture += gridDim.y) {
        for (long long group = thread_x(); group < groups; group += threads_x()) {
            const long long at = picture * forms.elements + 4 * group;
            const int width = width_of(forms.elements, group);
            float sums[MAX_ROWS][4];
            evaluate<MAX_ROWS>(sums, forms, picture, at, width);
#pragma unroll
            for (int r = 0; r < MAX_ROWS; ++r)
                if (r < forms.rows) store(sums[r], a.targets[r], a.kinds[r], at, width, forms.aligned);
        }
    }
}

// First stage of the inner products of rows (norms, the sums of a regression): strand s of a picture
// adds up the products of its groups s, s + STRANDS, ... in double. The rows are rounded to float32
// first, as on the CPU; the product of two of them is exact, so that fusing it changes nothing.
// Moved: B (n * sum of s(column) + 4 rows (rows + 1) STRANDS).
// Four blocks on a multiprocessor: at the five that ptxas aims for unasked, some architectures spill.
extern "C" __global__ void __launch_bounds__(128, 4) gram_partial(const __grid_constant__ GramPartialArguments a) {
    const Forms &forms = a.forms;
    const long long groups = (forms.elements + 3) / 4;
    const int pairs = forms.rows * (forms.rows + 1) / 2;
    for (int picture = blockIdx.y; picture < forms.batch; picture += gridDim.y) {
        for (long long strand = thread_x(); strand < STRANDS; strand += threads_x()) {
            double sums[GRAM_ROWS * (GRAM_ROWS + 1) / 2] = {};
            for (long long group = strand; group < groups; group += STRANDS) {
                const long long at = picture * forms.elements + 4 * group;
                const int width = width_of(forms.elements, group);
                float rows[GRAM_ROWS][4];
                evaluate<GRAM_ROWS>(rows, forms, picture, at, width);  // zeros beyond the last element
#pragma unroll
                for (int r = 0; r < GRAM_ROWS; ++r)
#pragma unroll
                    for (int q = 0; q <= r; ++q)
#pragma unroll
                        for (int e = 0; e < 4; ++e)
                            sums[r * (r + 1) / 2 + q] += static_cast<double>(rows[r][e]) * rows[q][e];
            }
#pragma unroll
            for (int pair = 0; pair < GRAM_ROWS * (GRAM_ROWS + 1) / 2; ++pair) {
                const long long place = (static_cast<long long>(picture) * pairs + pair) * STRANDS + strand;
                if (pair < pairs) object<double>(a.partials + 8 * place) = sums[pair];
            }
        }
    }
}

// Recursive and not a loop, so that the values stay in registers.
template <int COUNT>
DEVICE double sum_in_pairs(const double *values) {
    if constexpr (COUNT == 1)
        return values[0];
    else
        return sum_in_pairs<COUNT / 2>(values) + sum_in_pairs<COUNT / 2>(values + COUNT / 2);
}

// Second stage: one thread for each picture and pair of rows. It keeps 32 sums, so that as many
// loads are on their way, and adds those in pairs.
// Moved: 4 B rows (rows + 1) STRANDS + 8 B rows^2.
extern "C" __global__ void __launch_bounds__(128) gram_total(const __grid_constant__ GramTotalArguments a) {
    constexpr int SUMS = 32;
    const int pairs = a.rows * (a.rows + 1) / 2;
    for (long long task = thread_x(); task < static_cast<long long>(a.batch) * pairs; task += threads_x()) {
        const Address partials = a.partials + 8 * task * STRANDS;
        double sums[SUMS];
#pragma unroll
        for (int k = 0; k < SUMS; ++k) sums[k] = object<const double>(partials + 8 * k);
        for (int strand = SUMS; strand < STRANDS; strand += SUMS)
#pragma unroll
            for (int k = 0; k < SUMS; ++k) sums[k] += object<const double>(partials + 8 * (strand + k));
        const double sum = sum_in_pairs<SUMS>(sums);
        const long long picture = task / pairs;
        const int pair = static_cast<int>(task % pairs);
        int row = 0;
        while ((row + 1) * (row + 2) / 2 <= pair) ++row;
        const int column = pair - row * (row + 1) / 2;
        const Address matrix = a.target + 8 * picture * a.rows * a.rows;
        object<double>(matrix + 8 * (row * a.rows + column)) = sum;
        object<double>(matrix + 8 * (column * a.rows + row)) = sum;
    }
}

// flags[picture] becomes the mark where any value is infinite or NaN and the flag is 0: it keeps the
// first mark, the round for instance. All threads that write it write the same.
// Moved: B n s(values), and 8 B at most.
extern "C" __global__ void __launch_bounds__(128) nonfinite(const __grid_constant__ NonfiniteArguments a) {
    const long long groups = (a.elements + 3) / 4;
    for (int picture = blockIdx.y; picture < a.batch; picture += gridDim.y) {
        for (long long group = thread_x(); group < groups; group += threads_x()) {
            float values[4];
            load(values, a.values, a.kind, picture * a.elements + 4 * group, width_of(a.elements, group), a.aligned);
            bool found = false;
#pragma unroll
            for (int e = 0; e < 4; ++e) found |= (bits_of(values[e]) & 0x7f800000u) == 0x7f800000u;
            int &flag = object<int>(a.flags + 4 * picture);
            if (found && flag == 0) flag = a.mark ? object<const int>(a.mark) : 1;
        }
    }
}

// rint((clip(x, -1, 1) + 1) * 127.5), as pictures.py does it; NaN becomes 0.
DEVICE unsigned pixel_of(float value) {
    const float clipped = fminf(fmaxf(value, -1.0f), 1.0f);
    return static_cast<unsigned>(rintf(__fmul_rn(__fadd_rn(clipped, 1.0f), 127.5f)));
}

// Decoded pictures (batch, 3, plane) in [-1, 1] to pixels (batch, plane, 3) of 8 bits.
// Moved: B plane (3 s(decoded) + 3).
extern "C" __global__ void __launch_bounds__(128) to_pixels(const __grid_constant__ ToPixelsArguments a) {
    const long long groups = (a.plane + 3) / 4;
    for (int picture = blockIdx.y; picture < a.batch; picture += gridDim.y) {
        for (long long group = thread_x(); group < groups; group += threads_x()) {
            const int width = width_of(a.plane, group);
            unsigned bytes[12];
#pragma unroll
            for (int channel = 0; channel < 3; ++channel) {
                float values[4];
                const long long at = (3LL * picture + channel) * a.plane + 4 * group;
                load(values, a.decoded, a.kind, at, width, a.aligned);
#pragma unroll
                for (int e = 0; e < 4; ++e) bytes[3 * e + channel] = pixel_of(values[e]);
            }
            const Address out = a.pixels + 3 * (picture * a.plane + 4 * group);
            if (a.aligned && width == 4) {
#pragma unroll
                for (int word = 0; word < 3; ++word)
                    object<unsigned>(out + 4 * word) = bytes[4 * word] | bytes[4 * word + 1] << 8 |
                                                       bytes[4 * word + 2] << 16 | bytes[4 * word + 3] << 24;
            } else {
#pragma unroll
                for (int k = 0; k < 12; ++k)
                    if (k < 3 * width) object<unsigned char>(out + k) = static_cast<unsigned char>(bytes[k]);
            }
        }
    }
}

// Inpainting: targets[r] = a[r] latents + s[r] noise where `repaint` is 0, as sampling/known.py does it.
// Moved: 4 n (3 + 2 rows).
extern "C" __global__ void __launch_bounds__(128) keep(const __grid_constant__ KeepArguments a) {
    const long long groups = (a.elements + 3) / 4;
    for (long long group = thread_x(); group < groups; group += threads_x()) {
        const long long at = 4 * group;
        const int width = width_of(a.elements, group);
        float latents[4], noise[4], repaint[4];
        load(latents, a.latents, FLOAT32, at, width, a.aligned);
        load(noise, a.noise, FLOAT32, at, width, a.aligned);
        load(repaint, a.repaint, FLOAT32, at, width, a.aligned);
        for (int r = 0; r < a.rows; ++r) {
            float values[4];
            load(values, a.targets[r], FLOAT32, at, width, a.aligned);
#pragma unroll
            for (int e = 0; e < 4; ++e)
                if (repaint[e] == 0.0f)
                    values[e] = __fadd_rn(__fmul_rn(a.a[r], latents[e]), __fmul_rn(a.s[r], noise[e]));
            store(values, a.targets[r], FLOAT32, at, width, a.aligned);
        }
    }
}

// timesteps (branches, drafts, pictures): draft d of every branch and picture gets the message's d-th.
// Moved: 4 drafts + 4 branches drafts pictures.
extern "C" __global__ void __launch_bounds__(128) fill_timestep(const __grid_constant__ FillTimestepArguments a) {
    const int count = a.branches * a.drafts * a.pictures;
    for (long long k = thread_x(); k < count; k += threads_x())
        object<float>(a.timesteps + 4 * k) = object<const float>(a.message + 4 * (k / a.pictures % a.drafts));
}

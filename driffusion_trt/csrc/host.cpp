// The host build of the kernels, for the simulated driver and for tests. For every kernel NAME it exports
//   NAME_host    runs a launch,
//   NAME_ranges  reports every range of bytes that a launch may read or write, exactly,
//   NAME_bytes   is the size of its arguments, one struct.
#include "host.h"
#include "kernels.cu"

struct Reporter {
    void (*report)(void *, const void *, size_t, int);
    void *context;

    void operator()(Address address, long long bytes, bool written) const {
        if (bytes > 0) report(context, reinterpret_cast<const void *>(address), static_cast<size_t>(bytes), written);
    }
    void reads(Address address, long long bytes) const { (*this)(address, bytes, false); }
    void writes(Address address, long long bytes) const { (*this)(address, bytes, true); }
};

static long long size_of(int kind) { return kind == FLOAT32 ? 4 : 2; }

static void ranges(const Forms &forms, const Reporter &report) {
    const long long count = forms.batch * forms.elements;
    bool any = false;
    for (int c = 0; c < forms.column_count; ++c) {
        if (!forms.terms[c]) continue;
        any = true;
        report.reads(forms.columns[c], count * size_of(forms.kinds[c]));
        if (forms.conditional[c]) report.reads(forms.conditional[c], count * size_of(forms.kinds[c]));
        if (forms.conditional[c] && forms.guidance_at) report.reads(forms.guidance_at, 4);
    }
    if (forms.per_picture && any)
        report.reads(forms.per_picture, 4LL * forms.batch * forms.rows * forms.column_count);
}

static void ranges(const LinearArguments &a, const Reporter &report) {
    ranges(a.forms, report);
    for (int r = 0; r < a.forms.rows; ++r) {
        report.writes(a.targets[r], a.forms.batch * a.forms.elements * size_of(a.kinds[r]));
        if (a.messages[r] == 0) continue;
        report.writes(a.messages[r] + 4 * a.slots[r], 4);
        report.writes(a.messages[r] + MESSAGE_GUIDANCE_OFFSET, 4);
        report.writes(a.messages[r] + MESSAGE_ROUND_OFFSET, 4);
    }
}

static long long partial_bytes(int batch, int rows) { return 4LL * batch * rows * (rows + 1) * STRANDS; }

static void ranges(const GramPartialArguments &a, const Reporter &report) {
    ranges(a.forms, report);
    report.writes(a.partials, partial_bytes(a.forms.batch, a.forms.rows));
}

static void ranges(const GramTotalArguments &a, const Reporter &report) {
    report.reads(a.partials, partial_bytes(a.batch, a.rows));
    report.writes(a.target, 8LL * a.batch * a.rows * a.rows);
}

static void ranges(const NonfiniteArguments &a, const Reporter &report) {
    report.reads(a.values, a.batch * a.elements * size_of(a.kind));
    report.reads(a.flags, 4LL * a.batch);
    report.writes(a.flags, 4LL * a.batch);
    if (a.mark) report.reads(a.mark, 4);
}

static void ranges(const ToPixelsArguments &a, const Reporter &report) {
    report.reads(a.decoded, 3 * a.batch * a.plane * size_of(a.kind));
    report.writes(a.pixels, 3 * a.batch * a.plane);
}

static void ranges(const KeepArguments &a, const Reporter &report) {
    report.reads(a.latents, 4 * a.elements);
    report.reads(a.noise, 4 * a.elements);
    report.reads(a.repaint, 4 * a.elements);
    for (int r = 0; r < a.rows; ++r) {
        report.reads(a.targets[r], 4 * a.elements);
        report.writes(a.targets[r], 4 * a.elements);
    }
}

static void ranges(const FillTimestepArguments &a, const Reporter &report) {
    report.reads(a.message, 4LL * a.drafts);
    report.writes(a.timesteps, 4LL * a.branches * a.drafts * a.pictures);
}

#define EXPORT extern "C" __attribute__((visibility("default")))
#define KERNEL(NAME, Arguments)                                                                                \
    EXPORT void NAME##_host(const unsigned grid[3], const unsigned block[3], void **params) {                  \
        run_threads<Arguments>(NAME, grid, block, params);                                                     \
    }                                                                                                          \
    EXPORT void NAME##_ranges(const unsigned *, const unsigned *, void **params,                               \
                              void (*report)(void *, const void *, size_t, int), void *context) {              \
        ranges(*static_cast<const Arguments *>(params[0]), Reporter{report, context});                         \
    }                                                                                                          \
    EXPORT unsigned NAME##_bytes() { return sizeof(Arguments); }

KERNEL(linear, LinearArguments)
KERNEL(gram_partial, GramPartialArguments)
KERNEL(gram_total, GramTotalArguments)
KERNEL(nonfinite, NonfiniteArguments)
KERNEL(to_pixels, ToPixelsArguments)
KERNEL(keep, KeepArguments)
KERNEL(fill_timestep, FillTimestepArguments)

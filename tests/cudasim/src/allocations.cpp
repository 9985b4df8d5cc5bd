// Entry points that make and free memory.
#include <algorithm>

#include "simulator.h"

using namespace sim;

namespace {

// Freed by the host: like a write of the host to all of it.
void forget(Call &call, const std::shared_ptr<Allocation> &block) {
    Simulator &s = sim::sim();
    if (!block->guards_intact()) s.violation("something wrote outside the bounds of " + block->name());
    host_touch(block->address, block->bytes, true, call.point.name);
    s.races.forget(block->address, block->bytes);
    s.memory.release(block);
}

CUresult allocate_pinned(Call &call, void **out, size_t bytes) {
    if (CUresult error = call.in_context()) return error;
    if (CUresult error = call.unless_capturing()) return error;
    if (!out || !bytes) return INVALID_VALUE;
    auto block = sim::sim().memory.allocate(bytes, call.context->device, true);
    if (!block) return OUT_OF_MEMORY;
    *out = reinterpret_cast<void *>(block->address);
    return OK;
}

}  // namespace

SIM_API CUresult cuMemGetInfo_v2(size_t *available, size_t *total) {
    SIM_CALL("cuMemGetInfo");
    if (CUresult error = call.in_context()) return error;
    if (!available || !total) return INVALID_VALUE;
    const Device &device = sim::sim().devices[call.context->device];
    *total = device.memory;
    *available = device.memory - device.used;
    return OK;
}

SIM_API CUresult cuMemAlloc_v2(CUdeviceptr *out, size_t bytes) {
    SIM_CALL("cuMemAlloc");
    if (CUresult error = call.in_context()) return error;
    if (CUresult error = call.unless_capturing()) return error;
    if (!out || !bytes) return INVALID_VALUE;
    Device &device = sim::sim().devices[call.context->device];
    if (bytes > device.memory - device.used) return OUT_OF_MEMORY;
    auto block = sim::sim().memory.allocate(bytes, call.context->device, false);
    if (!block) return OUT_OF_MEMORY;
    device.used += bytes;
    device.peak = std::max(device.peak, device.used);
    *out = block->address;
    return OK;
}

SIM_API CUresult cuMemFree_v2(CUdeviceptr address) {
    SIM_CALL("cuMemFree");
    CUresult sticky = call.in_context();
    if (sticky && !is_sticky(sticky)) return sticky;
    if (CUresult error = call.unless_capturing()) return error;
    if (!address) return sticky;
    auto block = sim::sim().memory.starting_at(address);
    if (!block || block->pinned) {
        sim::sim().violation("cuMemFree of an address that cuMemAlloc did not give, or twice");
        return INVALID_VALUE;
    }
    // As the real one, it returns only when the device has done all that was enqueued.
    std::vector<std::shared_ptr<Stream>> own;
    for (auto &entry : sim::sim().streams)
        if (entry.second->context->device == block->device) own.push_back(entry.second);
    CUresult error = call.wait(
        [&] { return std::all_of(own.begin(), own.end(), [](auto &stream) { return stream->idle(); }); },
        call.context.get());
    if (error == LAUNCH_TIMEOUT && !sticky) return error;
    sim::sim().devices[block->device].used -= block->bytes;
    forget(call, block);
    return error;
}

SIM_API CUresult cuMemHostAlloc(void **out, size_t bytes, unsigned flags) {
    SIM_CALL("cuMemHostAlloc");
    if (flags > 7) return INVALID_VALUE;  // portable, mapped, write-combined
    return allocate_pinned(call, out, bytes);
}

SIM_API CUresult cuMemAllocHost_v2(void **out, size_t bytes) {
    SIM_CALL("cuMemAllocHost");
    return allocate_pinned(call, out, bytes);
}

SIM_API CUresult cuMemFreeHost(void *address) {
    SIM_CALL("cuMemFreeHost");
    CUresult sticky = call.in_context();
    if (sticky && !is_sticky(sticky)) return sticky;
    if (CUresult error = call.unless_capturing()) return error;
    auto block = sim::sim().memory.starting_at(reinterpret_cast<uintptr_t>(address));
    if (!block || !block->pinned) {
        sim::sim().violation("cuMemFreeHost of an address that cuMemHostAlloc did not give, or twice");
        return INVALID_VALUE;
    }
    forget(call, block);
    return sticky;
}

SIM_API CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *out, void *address, unsigned flags) {
    SIM_CALL("cuMemHostGetDevicePointer");
    if (CUresult error = call.in_context()) return error;
    auto block = sim::sim().memory.holding(reinterpret_cast<uintptr_t>(address));
    if (!out || flags || !block || !block->pinned) return INVALID_VALUE;
    *out = reinterpret_cast<uintptr_t>(address);
    return OK;
}

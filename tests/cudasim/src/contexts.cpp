// Primary contexts, the stack of current ones, and access to peers.
#include <algorithm>

#include "simulator.h"

namespace sim {

namespace {

// A thread's stack of current contexts.
thread_local std::vector<std::shared_ptr<Context>> current;
thread_local uint64_t generation = 0;

template <class T>
size_t take_along(Table<T> &table, const Context *context) {
    size_t taken = 0;
    for (auto entry = table.begin(); entry != table.end();) {
        bool own = entry->second->context.get() == context;
        taken += own;
        entry = own ? table.erase(entry) : std::next(entry);
    }
    return taken;
}

bool exists(CUdevice device) { return device >= 0 && static_cast<size_t>(device) < sim().devices.size(); }

}  // namespace

std::shared_ptr<Context> current_context() {
    if (std::exchange(generation, sim().generation) != sim().generation) current.clear();
    return current.empty() ? nullptr : current.back();
}

// After these the real driver's context is of no more use.
bool is_sticky(CUresult error) {
    return error == ECC_UNCORRECTABLE || error == NVLINK_UNCORRECTABLE || error == ILLEGAL_ADDRESS ||
           error == LAUNCH_TIMEOUT || (error >= HARDWARE_STACK_ERROR && error <= LAUNCH_FAILED);
}

void destroy_context(std::unique_lock<std::mutex> &lock, std::shared_ptr<Context> context) {
    Simulator &s = sim();
    context->dead = true;  // work that is left in its queues is dropped
    std::vector<std::shared_ptr<Stream>> own;
    for (auto &entry : s.streams)
        if (entry.second->context == context) own.push_back(entry.second);
    for (auto &stream : own) close_stream(stream);
    s.progress.wait(lock, [&] {
        return std::none_of(own.begin(), own.end(), [](auto &stream) { return stream->running; });
    });
    s.abandoned += own.size() + take_along(s.events, context.get());
    take_along(s.functions, context.get());
    s.abandoned += take_along(s.modules, context.get());
    auto blocks = s.memory.live;
    for (auto &[address, block] : blocks) {
        if (block->device != context->device) continue;
        if (!block->pinned) s.devices[block->device].used -= block->bytes;
        s.races.forget(address, block->bytes);
        s.memory.release(block);
        ++s.abandoned;
    }
    s.contexts.erase(context->handle);
}

}  // namespace sim

using namespace sim;

SIM_API CUresult cuDevicePrimaryCtxRetain(CUcontext *out, CUdevice number) {
    SIM_CALL("cuDevicePrimaryCtxRetain");
    if (CUresult error = call.start()) return error;
    if (!out) return INVALID_VALUE;
    if (!exists(number)) return INVALID_DEVICE;
    Device &device = sim::sim().devices[number];
    if (!device.primary) {
        device.primary = std::make_shared<Context>();
        device.primary->handle = sim::sim().new_handle();
        device.primary->device = number;
        sim::sim().contexts[device.primary->handle] = device.primary;
    }
    ++device.retained;
    *out = reinterpret_cast<CUcontext>(device.primary->handle);
    return OK;
}

SIM_API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice number) {
    SIM_CALL("cuDevicePrimaryCtxRelease");
    if (CUresult error = call.start()) return error;
    if (!exists(number)) return INVALID_DEVICE;
    Device &device = sim::sim().devices[number];
    if (!device.retained) return INVALID_CONTEXT;
    if (--device.retained) return OK;
    destroy_context(call.lock, std::exchange(device.primary, nullptr));
    return OK;
}

SIM_API CUresult cuDevicePrimaryCtxReset_v2(CUdevice number) {
    SIM_CALL("cuDevicePrimaryCtxReset");
    if (CUresult error = call.start()) return error;
    if (!exists(number)) return INVALID_DEVICE;
    Device &device = sim::sim().devices[number];
    device.retained = 0;
    if (device.primary) destroy_context(call.lock, std::exchange(device.primary, nullptr));
    return OK;
}

SIM_API CUresult cuDevicePrimaryCtxGetState(CUdevice number, unsigned *flags, int *active) {
    SIM_CALL("cuDevicePrimaryCtxGetState");
    if (CUresult error = call.start()) return error;
    if (!flags || !active) return INVALID_VALUE;
    if (!exists(number)) return INVALID_DEVICE;
    *flags = 0;
    *active = sim::sim().devices[number].primary != nullptr;
    return OK;
}

SIM_API CUresult cuCtxSetCurrent(CUcontext handle) {
    SIM_CALL("cuCtxSetCurrent");
    if (CUresult error = call.start()) return error;
    std::shared_ptr<Context> context;
    if (handle && !(context = call.find(sim::sim().contexts, handle, "context"))) return INVALID_CONTEXT;
    if (!current.empty()) current.pop_back();
    if (context) current.push_back(context);
    return OK;
}

SIM_API CUresult cuCtxGetCurrent(CUcontext *handle) {
    SIM_CALL("cuCtxGetCurrent");
    if (CUresult error = call.start()) return error;
    if (!handle) return INVALID_VALUE;
    *handle = call.context ? reinterpret_cast<CUcontext>(call.context->handle) : nullptr;
    return OK;
}

SIM_API CUresult cuCtxPushCurrent_v2(CUcontext handle) {
    SIM_CALL("cuCtxPushCurrent");
    if (CUresult error = call.start()) return error;
    auto context = call.find(sim::sim().contexts, handle, "context");
    if (!context) return INVALID_CONTEXT;
    current.push_back(context);
    return OK;
}

SIM_API CUresult cuCtxPopCurrent_v2(CUcontext *handle) {
    SIM_CALL("cuCtxPopCurrent");
    if (CUresult error = call.start()) return error;
    if (current.empty()) return INVALID_CONTEXT;
    if (handle) *handle = reinterpret_cast<CUcontext>(current.back()->handle);
    current.pop_back();
    return OK;
}

SIM_API CUresult cuCtxGetDevice(CUdevice *device) {
    SIM_CALL("cuCtxGetDevice");
    if (CUresult error = call.in_context()) return error;
    if (!device) return INVALID_VALUE;
    *device = call.context->device;
    return OK;
}

SIM_API CUresult cuCtxSynchronize(void) {
    SIM_CALL("cuCtxSynchronize");
    if (CUresult error = call.in_context()) return error;
    if (CUresult error = call.unless_capturing()) return error;
    std::vector<std::shared_ptr<Stream>> own;
    for (auto &entry : sim::sim().streams)
        if (entry.second->context == call.context) own.push_back(entry.second);
    for (auto &weak : sim::sim().draining)
        if (auto stream = weak.lock(); stream && stream->context == call.context) own.push_back(stream);
    for (auto &stream : own)
        if (stream->capture) return spoil(*stream->capture), STREAM_CAPTURE_UNSUPPORTED;
    CUresult error = call.wait(
        [&] { return std::all_of(own.begin(), own.end(), [](auto &stream) { return stream->idle(); }); },
        call.context.get());
    if (error != LAUNCH_TIMEOUT)
        for (auto &stream : own) join(sim::sim().host(), stream->clock);
    return error;
}

SIM_API CUresult cuCtxEnablePeerAccess(CUcontext handle, unsigned flags) {
    SIM_CALL("cuCtxEnablePeerAccess");
    if (CUresult error = call.in_context()) return error;
    auto peer = call.find(sim::sim().contexts, handle, "context");
    if (!peer) return INVALID_CONTEXT;
    if (flags) return INVALID_VALUE;
    int own = call.context->device;
    if (own == peer->device) return INVALID_DEVICE;
    bool denied = sim::sim().faults.denied_peers.count({own, peer->device}) > 0;
    if (denied || !sim::sim().devices[own].peers[peer->device]) return PEER_ACCESS_UNSUPPORTED;
    return call.context->peers.insert(peer->device).second ? OK : PEER_ACCESS_ALREADY_ENABLED;
}

SIM_API CUresult cuCtxDisablePeerAccess(CUcontext handle) {
    SIM_CALL("cuCtxDisablePeerAccess");
    if (CUresult error = call.in_context()) return error;
    auto peer = call.find(sim::sim().contexts, handle, "context");
    if (!peer) return INVALID_CONTEXT;
    return call.context->peers.erase(peer->device) ? OK : PEER_ACCESS_NOT_ENABLED;
}

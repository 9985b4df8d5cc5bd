// Copies and fills.
#include <cstring>

#include "simulator.h"

using namespace sim;

namespace {

void *at(uintptr_t address) { return reinterpret_cast<void *>(address); }
uintptr_t at(const void *address) { return reinterpret_cast<uintptr_t>(address); }

int device_of(uintptr_t address) {
    auto block = sim::sim().memory.holding(address);
    return block && !block->pinned ? block->device : -1;
}

std::string pair(int source, int target) { return std::to_string(source) + "->" + std::to_string(target); }

std::shared_ptr<Work> copy(const char *label, uintptr_t target, uintptr_t source, size_t bytes) {
    auto work = std::make_shared<Work>();
    work->label = label;
    work->type = NODE_MEMCPY;
    work->body = [=] { return std::memmove(at(target), at(source), bytes), OK; };
    work->ranges = {{source, bytes, false}, {target, bytes, true}};
    work->source = device_of(source);
    work->target = device_of(target);
    work->copy_kind = "DtoD";
    work->copy_bytes = bytes;
    return work;
}

// What the host side of a copy is: pinned, or ordinary memory that the driver stages.
CUresult host_side(Call &call, uintptr_t address, bool &pageable) {
    auto block = sim::sim().memory.holding(address);
    pageable = !block;
    if ((block && !block->pinned) || (!block && sim::sim().memory.was_freed(address)) || !address) {
        sim::sim().violation(std::string(call.point.name) +
                             ": the host address is device memory, or was freed");
        return INVALID_VALUE;
    }
    return OK;
}

CUresult capture_refused(const std::shared_ptr<Stream> &stream) {
    if (!stream->capture) return OK;
    spoil(*stream->capture);
    return STREAM_CAPTURE_UNSUPPORTED;
}

CUresult fill(CUstream handle, Call &call, CUdeviceptr target, size_t bytes, std::function<void()> set) {
    std::shared_ptr<Stream> stream;
    if (CUresult error = call.on_stream(handle, stream)) return error;
    if (!bytes) return OK;
    auto work = std::make_shared<Work>();
    work->label = call.point.name;
    work->type = NODE_MEMSET;
    work->body = [set = std::move(set)] { return set(), OK; };
    work->ranges = {{target, bytes, true}};
    return submit(stream, work);
}

// A copy that the host makes itself, of a kind like "HtoD".
CUresult now(Call &call, uintptr_t target, uintptr_t source, size_t bytes, const char *kind) {
    if (CUresult error = call.in_context()) return error;
    if (CUresult error = call.unless_capturing()) return error;
    auto &s = sim::sim();
    bool from_host = kind[0] == 'H', to_host = kind[3] == 'H';
    for (bool write : {false, true}) {
        uintptr_t address = write ? target : source;
        bool pageable = false;
        if (write ? to_host : from_host)
            if (CUresult error = host_side(call, address, pageable)) return error;
        if (pageable) continue;
        std::string refusal = s.memory.refusal(call.context.get(), address, bytes);
        if (!refusal.empty()) {
            s.violation(std::string(call.point.name) + (write ? " writes " : " reads ") + refusal);
            return INVALID_VALUE;
        }
        host_touch(address, bytes, write, call.point.name);
    }
    std::memmove(at(target), at(source), bytes);
    s.copied[kind] += bytes;
    return OK;
}

}  // namespace

SIM_API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void *source, size_t bytes, CUstream handle) {
    SIM_CALL("cuMemcpyHtoDAsync");
    std::shared_ptr<Stream> stream;
    if (CUresult error = call.on_stream(handle, stream)) return error;
    if (!bytes) return OK;
    bool pageable;
    if (CUresult error = host_side(call, at(source), pageable)) return error;
    auto work = copy("cuMemcpyHtoDAsync", target, at(source), bytes);
    work->copy_kind = "HtoD";
    if (pageable) {  // read before the call returns
        if (CUresult error = capture_refused(stream)) return error;
        auto *begin = static_cast<const char *>(source);
        auto kept = std::make_shared<std::vector<char>>(begin, begin + bytes);
        work->body = [=] { return std::memcpy(at(target), kept->data(), bytes), OK; };
        work->ranges = {{target, bytes, true}};
        work->copy_kind = "HtoD pageable";
    }
    return submit(stream, work);
}

SIM_API CUresult cuMemcpyDtoHAsync_v2(void *target, CUdeviceptr source, size_t bytes, CUstream handle) {
    SIM_CALL("cuMemcpyDtoHAsync");
    std::shared_ptr<Stream> stream;
    if (CUresult error = call.on_stream(handle, stream)) return error;
    if (!bytes) return OK;
    bool pageable;
    if (CUresult error = host_side(call, at(target), pageable)) return error;
    auto work = copy("cuMemcpyDtoHAsync", at(target), source, bytes);
    work->copy_kind = "DtoH";
    if (!pageable) return submit(stream, work);
    if (CUresult error = capture_refused(stream)) return error;
    work->ranges.pop_back();
    work->copy_kind = "DtoH pageable";
    submit(stream, work);
    auto token = record(stream);  // the call returns when the copy is done
    CUresult error = call.wait([&] { return token->done; }, stream->context.get());
    if (error != LAUNCH_TIMEOUT) join(sim::sim().host(), token->clock);
    return error;
}

SIM_API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr target, CUdeviceptr source, size_t bytes, CUstream handle) {
    SIM_CALL("cuMemcpyDtoDAsync");
    std::shared_ptr<Stream> stream;
    if (CUresult error = call.on_stream(handle, stream)) return error;
    if (!bytes) return OK;
    auto work = copy("cuMemcpyDtoDAsync", target, source, bytes);
    if (work->source != work->target) work->copy_kind = "peer " + pair(work->source, work->target);
    return submit(stream, work);
}

SIM_API CUresult cuMemcpyPeerAsync(CUdeviceptr target, CUcontext target_handle, CUdeviceptr source,
                                   CUcontext source_handle, size_t bytes, CUstream handle) {
    SIM_CALL("cuMemcpyPeerAsync");
    std::shared_ptr<Stream> stream;
    if (CUresult error = call.on_stream(handle, stream)) return error;
    auto to = call.find(sim::sim().contexts, target_handle, "context");
    auto from = call.find(sim::sim().contexts, source_handle, "context");
    if (!to || !from) return INVALID_CONTEXT;
    if (!sim::sim().options.capture_peer_copies)
        if (CUresult error = capture_refused(stream)) return error;
    if (!bytes) return OK;
    auto work = copy("cuMemcpyPeerAsync", target, source, bytes);
    if ((work->target >= 0 && work->target != to->device) ||
        (work->source >= 0 && work->source != from->device)) {
        sim::sim().violation("cuMemcpyPeerAsync: a context is not that of its pointer's device");
        return INVALID_VALUE;
    }
    work->any_device = true;  // without access the driver goes through the host, which is slow but right
    bool access = to->peers.count(from->device) || from->peers.count(to->device);
    if (to != from) work->copy_kind = (access ? "peer " : "staged ") + pair(from->device, to->device);
    return submit(stream, work);
}

SIM_API CUresult cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t count, CUstream stream) {
    SIM_CALL("cuMemsetD8Async");
    return fill(stream, call, target, count, [=] { std::memset(at(target), value, count); });
}

SIM_API CUresult cuMemsetD32Async(CUdeviceptr target, unsigned value, size_t count, CUstream stream) {
    SIM_CALL("cuMemsetD32Async");
    if (target % 4) return INVALID_VALUE;
    return fill(stream, call, target, count * 4, [=] {
        for (size_t i = 0; i < count; ++i) static_cast<unsigned *>(at(target))[i] = value;
    });
}

SIM_API CUresult cuMemcpyHtoD_v2(CUdeviceptr target, const void *source, size_t bytes) {
    SIM_CALL("cuMemcpyHtoD");
    return now(call, target, at(source), bytes, "HtoD");
}

SIM_API CUresult cuMemcpyDtoH_v2(void *target, CUdeviceptr source, size_t bytes) {
    SIM_CALL("cuMemcpyDtoH");
    return now(call, at(target), source, bytes, "DtoH");
}

SIM_API CUresult cuMemcpyDtoD_v2(CUdeviceptr target, CUdeviceptr source, size_t bytes) {
    SIM_CALL("cuMemcpyDtoD");
    return now(call, target, source, bytes, "DtoD");
}

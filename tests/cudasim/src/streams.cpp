// Streams as the host sees them: what is enqueued is checked, counted and clocked here, at once.
#include "simulator.h"

namespace sim {

std::string name_of(const Stream &stream) {
    std::string device = " (device " + std::to_string(stream.context->device) + ")";
    return (stream.name.empty() ? "stream #" + std::to_string(stream.timeline) : stream.name) + device;
}

// A step of the stream's timeline, which knows all that the host knows.
void advance(const std::shared_ptr<Stream> &stream) {
    join(stream->clock, sim().host());
    auto own = static_cast<size_t>(stream->timeline);
    if (stream->clock.size() <= own) stream->clock.resize(own + 1);
    ++stream->clock[own];
}

// What is enqueued later comes after it by itself, so the host's timeline needs no steps.
void host_touch(uintptr_t begin, size_t bytes, bool write, const std::string &label) {
    auto name = std::make_shared<std::string>(label + " on the host");
    sim().races.touch(begin, bytes, write, sim().host(), {0, 0, name});
}

Step prepare(const Stream &stream, const std::shared_ptr<const Work> &work, const char *prefix) {
    auto &s = sim();
    Step step{work, s.faults.late, s.faults.corrupt_pairs.count({work->source, work->target}) > 0};
    auto label = std::make_shared<std::string>(prefix + work->label + " on " + name_of(stream));
    Access access{stream.timeline, stream.clock[static_cast<size_t>(stream.timeline)], label};
    for (auto &range : work->ranges) {
        const Context *reached_from = work->any_device ? nullptr : work->context.get();
        std::string refusal = s.memory.refusal(reached_from, range.begin, range.bytes);
        if (!refusal.empty()) {
            s.violation(*label + (range.write ? " writes " : " reads ") + refusal);
            step.error = ILLEGAL_ADDRESS;
        } else {
            s.races.touch(range.begin, range.bytes, range.write, stream.clock, access);
        }
    }
    if (!work->copy_kind.empty()) s.copied[work->copy_kind] += work->copy_bytes;
    return step;
}

CUresult submit(const std::shared_ptr<Stream> &stream, std::shared_ptr<Work> work) {
    work->context = stream->context;
    if (stream->capture) return capture_work(stream, std::move(work));
    advance(stream);
    push(stream, {nullptr, {prepare(*stream, std::move(work), "")}, nullptr});
    return OK;
}

std::shared_ptr<Token> record(const std::shared_ptr<Stream> &stream) {
    advance(stream);
    auto token = std::make_shared<Token>();
    token->clock = stream->clock;
    push(stream, {nullptr, {}, token});
    return token;
}

}  // namespace sim

using namespace sim;

namespace {

CUresult create(Call &call, CUstream *out, unsigned flags) {
    if (CUresult error = call.in_context()) return error;
    if (!out || flags > 1) return INVALID_VALUE;
    auto stream = std::make_shared<Stream>();
    stream->handle = sim::sim().new_handle();
    stream->timeline = sim::sim().timelines++;
    stream->context = call.context;
    stream->flags = flags;
    sim::sim().streams[stream->handle] = stream;
    start_worker(stream);
    *out = reinterpret_cast<CUstream>(stream->handle);
    return OK;
}

CUresult refuse_capturing(const std::shared_ptr<Stream> &stream) {
    if (!stream->capture) return OK;
    spoil(*stream->capture);
    return STREAM_CAPTURE_UNSUPPORTED;
}

}  // namespace

SIM_API CUresult cuStreamCreate(CUstream *out, unsigned flags) {
    SIM_CALL("cuStreamCreate");
    return create(call, out, flags);
}

SIM_API CUresult cuStreamCreateWithPriority(CUstream *out, unsigned flags, int) {
    SIM_CALL("cuStreamCreateWithPriority");
    return create(call, out, flags);
}

SIM_API CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    SIM_CALL("cuCtxGetStreamPriorityRange");
    if (CUresult error = call.in_context()) return error;
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return OK;
}

SIM_API CUresult cuStreamDestroy_v2(CUstream handle) {
    SIM_CALL("cuStreamDestroy");
    std::shared_ptr<Stream> stream;
    CUresult error = call.on_stream(handle, stream);
    if (stream && (!error || is_sticky(error))) close_stream(stream);
    return error;
}

SIM_API CUresult cuStreamSynchronize(CUstream handle) {
    SIM_CALL("cuStreamSynchronize");
    std::shared_ptr<Stream> stream;
    if (CUresult error = call.on_stream(handle, stream)) return error;
    if (CUresult error = refuse_capturing(stream)) return error;
    if (CUresult error = call.unless_capturing()) return error;
    Clock reached = stream->clock;
    CUresult error = call.wait([&] { return stream->idle(); }, stream->context.get());
    if (error != LAUNCH_TIMEOUT) join(sim::sim().host(), reached);
    return error;
}

SIM_API CUresult cuStreamQuery(CUstream handle) {
    SIM_CALL("cuStreamQuery");
    std::shared_ptr<Stream> stream;
    if (CUresult error = call.on_stream(handle, stream)) {
        // A real device tells of it when its whole context has stopped, and then runs no more of it.
        if (stream && error == stream->context->sticky) {
            call.wait([&] { return !stream->running; }, nullptr);
            join(sim::sim().host(), stream->clock);
        }
        return error;
    }
    if (CUresult error = refuse_capturing(stream)) return error;
    if (CUresult error = call.unless_capturing()) return error;
    if (!stream->idle()) return NOT_READY;
    join(sim::sim().host(), stream->clock);
    return OK;
}

SIM_API CUresult cuStreamGetCtx(CUstream handle, CUcontext *context) {
    SIM_CALL("cuStreamGetCtx");
    std::shared_ptr<Stream> stream;
    if (CUresult error = call.on_stream(handle, stream)) return error;
    if (!context) return INVALID_VALUE;
    *context = reinterpret_cast<CUcontext>(stream->context->handle);
    return OK;
}

SIM_API CUresult cuStreamGetFlags(CUstream handle, unsigned *flags) {
    SIM_CALL("cuStreamGetFlags");
    std::shared_ptr<Stream> stream;
    if (CUresult error = call.on_stream(handle, stream)) return error;
    if (!flags) return INVALID_VALUE;
    *flags = stream->flags;
    return OK;
}

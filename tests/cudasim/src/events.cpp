// Events: a record is a token, and a wait holds the token that was the latest when it was enqueued.
#include "simulator.h"

using namespace sim;

namespace {

// For calls about an event from the host: it must be one that is not part of a capture.
CUresult uncaptured(Call &call, CUevent handle, std::shared_ptr<Event> &event) {
    if (CUresult error = call.in_context()) return error;
    event = call.find(sim::sim().events, handle, "event");
    if (!event) return INVALID_HANDLE;
    if (event->context->sticky) return event->context->sticky;
    if (event->capture) return spoil(*event->capture), CAPTURED_EVENT;
    return call.unless_capturing();
}

CUresult record_event(Call &call, CUevent handle, CUstream stream_handle) {
    std::shared_ptr<Stream> stream;
    if (CUresult error = call.on_stream(stream_handle, stream)) return error;
    auto event = call.find(sim::sim().events, handle, "event");
    if (!event || event->context != stream->context) return INVALID_HANDLE;
    if (stream->capture) return capture_record(stream, event);
    event->capture = nullptr;
    event->token = record(stream);
    return OK;
}

}  // namespace

SIM_API CUresult cuEventCreate(CUevent *out, unsigned flags) {
    SIM_CALL("cuEventCreate");
    if (CUresult error = call.in_context()) return error;
    if (!out || flags > 7) return INVALID_VALUE;
    if ((flags & EVENT_INTERPROCESS) && !(flags & EVENT_DISABLE_TIMING)) return INVALID_VALUE;
    auto event = std::make_shared<Event>();
    event->handle = sim::sim().new_handle();
    event->context = call.context;
    event->flags = flags;
    sim::sim().events[event->handle] = event;
    *out = reinterpret_cast<CUevent>(event->handle);
    return OK;
}

SIM_API CUresult cuEventDestroy_v2(CUevent handle) {
    SIM_CALL("cuEventDestroy");
    CUresult error = call.in_context();
    if (error && !is_sticky(error)) return error;
    auto event = call.find(sim::sim().events, handle, "event");
    if (!event) return INVALID_HANDLE;
    sim::sim().events.erase(event->handle);
    return error;
}

SIM_API CUresult cuEventRecord(CUevent event, CUstream stream) {
    SIM_CALL("cuEventRecord");
    return record_event(call, event, stream);
}

SIM_API CUresult cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned flags) {
    SIM_CALL("cuEventRecordWithFlags");
    return flags ? INVALID_VALUE : record_event(call, event, stream);
}

SIM_API CUresult cuStreamWaitEvent(CUstream stream_handle, CUevent handle, unsigned flags) {
    SIM_CALL("cuStreamWaitEvent");
    std::shared_ptr<Stream> stream;
    if (CUresult error = call.on_stream(stream_handle, stream)) return error;
    auto event = call.find(sim::sim().events, handle, "event");
    if (!event) return INVALID_HANDLE;
    if (flags) return INVALID_VALUE;
    if (stream->capture || event->capture) return capture_wait(stream, event);
    if (!event->token) return OK;  // never recorded: nothing to wait for
    join(stream->clock, event->token->clock);
    push(stream, {event->token, {}, nullptr});
    return OK;
}

SIM_API CUresult cuEventQuery(CUevent handle) {
    SIM_CALL("cuEventQuery");
    std::shared_ptr<Event> event;
    if (CUresult error = uncaptured(call, handle, event)) return error;
    if (!event->token) return OK;
    if (!event->token->done) return NOT_READY;
    join(sim::sim().host(), event->token->clock);
    return OK;
}

SIM_API CUresult cuEventSynchronize(CUevent handle) {
    SIM_CALL("cuEventSynchronize");
    std::shared_ptr<Event> event;
    if (CUresult error = uncaptured(call, handle, event)) return error;
    auto token = event->token;
    if (!token) return OK;
    CUresult error = call.wait([&] { return token->done; }, event->context.get());
    if (error != LAUNCH_TIMEOUT) join(sim::sim().host(), token->clock);
    return error;
}

SIM_API CUresult cuEventElapsedTime(float *ms, CUevent first_handle, CUevent last_handle) {
    SIM_CALL("cuEventElapsedTime");
    std::shared_ptr<Event> first, last;
    if (CUresult error = uncaptured(call, first_handle, first)) return error;
    last = call.find(sim::sim().events, last_handle, "event");
    if (!last || first->context != last->context) return INVALID_HANDLE;
    if (!ms) return INVALID_VALUE;
    if ((first->flags | last->flags) & EVENT_DISABLE_TIMING || !first->token || !last->token)
        return INVALID_HANDLE;
    if (!first->token->done || !last->token->done) return NOT_READY;
    *ms = std::chrono::duration<float, std::milli>(last->token->when - first->token->when).count();
    return OK;
}

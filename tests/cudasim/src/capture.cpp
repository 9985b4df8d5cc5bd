// Stream capture: forks and joins by events of the same capture, and all that spoils one.
#include <algorithm>

#include "simulator.h"

namespace sim {

namespace {

void merge(std::vector<size_t> &nodes, const std::vector<size_t> &more) {
    for (size_t node : more)
        if (std::find(nodes.begin(), nodes.end(), node) == nodes.end()) nodes.push_back(node);
}

// Whether everything that forked off has come back into the origin's stream.
bool joined(const Capture &capture, const Stream &origin) {
    auto &nodes = capture.graph->nodes;
    std::vector<bool> before(nodes.size());
    for (size_t node : origin.tail) before[node] = true;
    for (size_t i = nodes.size(); i-- > 0;)  // a node comes after those it depends on
        if (before[i])
            for (size_t earlier : nodes[i].after) before[earlier] = true;
    return std::all_of(before.begin(), before.end(), [](bool reached) { return reached; });
}

void finish(Capture &capture) {
    capture.ended = true;
    for (auto &weak : capture.streams)
        if (auto stream = weak.lock(); stream && stream->capture.get() == &capture) {
            stream->tail.clear();
            stream->capture = nullptr;
        }
    auto &all = sim().captures;
    all.erase(std::remove_if(all.begin(), all.end(), [&](auto &other) { return other.get() == &capture; }),
              all.end());
}

}  // namespace

void spoil(Capture &capture) { capture.invalid = true; }

// The captures that forbid the calling thread what could wait for the device or change memory.
bool thread_captures(std::vector<std::shared_ptr<Capture>> &found) {
    for (auto &capture : sim().captures)
        if (capture->mode == CAPTURE_GLOBAL ||
            (capture->mode == CAPTURE_THREAD_LOCAL && capture->thread == std::this_thread::get_id()))
            found.push_back(capture);
    return !found.empty();
}

CUresult capture_work(const std::shared_ptr<Stream> &stream, std::shared_ptr<Work> work) {
    Capture &capture = *stream->capture;
    if (capture.invalid) return STREAM_CAPTURE_INVALIDATED;
    capture.graph->nodes.push_back({sim().new_handle(), std::move(work), stream->tail});
    stream->tail = {capture.graph->nodes.size() - 1};
    return OK;
}

CUresult capture_record(const std::shared_ptr<Stream> &stream, const std::shared_ptr<Event> &event) {
    if (stream->capture->invalid) return STREAM_CAPTURE_INVALIDATED;
    event->token = nullptr;
    event->capture = stream->capture;
    event->captured = stream->tail;
    return OK;
}

CUresult capture_wait(const std::shared_ptr<Stream> &stream, const std::shared_ptr<Event> &event) {
    auto own = stream->capture, other = event->capture;
    if (own && own->invalid) return STREAM_CAPTURE_INVALIDATED;
    if (!other) return spoil(*own), STREAM_CAPTURE_ISOLATION;
    if (other->ended) return CAPTURED_EVENT;
    if (other->invalid) return STREAM_CAPTURE_INVALIDATED;
    if (own && own != other) return spoil(*own), spoil(*other), STREAM_CAPTURE_MERGE;
    if (!own) {  // a fork
        stream->capture = other;
        stream->tail.clear();
        other->streams.push_back(stream);
    }
    merge(stream->tail, event->captured);
    return OK;
}

CUresult begin(const std::shared_ptr<Stream> &stream, int mode) {
    if (mode < CAPTURE_GLOBAL || mode > CAPTURE_RELAXED) return INVALID_VALUE;
    if (stream->capture) return ILLEGAL_STATE;
    auto capture = std::make_shared<Capture>();
    capture->id = ++sim().capture_ids;
    capture->mode = static_cast<CaptureMode>(mode);
    capture->thread = std::this_thread::get_id();
    capture->graph = std::make_shared<Graph>();
    capture->graph->handle = sim().new_handle();
    capture->origin = stream;
    capture->streams = {stream};
    stream->capture = capture;
    stream->tail.clear();
    sim().captures.push_back(capture);
    return OK;
}

CUresult end(const std::shared_ptr<Stream> &stream, CUgraph *out) {
    *out = nullptr;
    auto capture = stream->capture;
    if (!capture) return ILLEGAL_STATE;
    if (capture->origin.lock() != stream) return spoil(*capture), STREAM_CAPTURE_UNMATCHED;
    if (capture->mode != CAPTURE_RELAXED && capture->thread != std::this_thread::get_id())
        return spoil(*capture), STREAM_CAPTURE_WRONG_THREAD;
    bool whole = joined(*capture, *stream);
    finish(*capture);
    if (capture->invalid) return STREAM_CAPTURE_INVALIDATED;
    if (!whole) return STREAM_CAPTURE_UNJOINED;
    sim().graphs[capture->graph->handle] = capture->graph;
    *out = reinterpret_cast<CUgraph>(capture->graph->handle);
    return OK;
}

struct InfoOut {
    int *status;
    uint64_t *id;
    CUgraph *graph;
    const CUgraphNode **nodes;
    const CUgraphEdgeData **edges;
    size_t *count;
};

CUresult info(const std::shared_ptr<Stream> &stream, const InfoOut &out) {
    if (!out.status) return INVALID_VALUE;
    auto capture = stream->capture;
    *out.status = !capture ? CAPTURE_NONE : capture->invalid ? CAPTURE_INVALIDATED : CAPTURE_ACTIVE;
    if (*out.status != CAPTURE_ACTIVE) return OK;
    capture->lent.clear();
    for (size_t node : stream->tail)
        capture->lent.push_back(reinterpret_cast<CUgraphNode>(capture->graph->nodes[node].handle));
    capture->lent_edges.assign(capture->lent.size() + 1, CUgraphEdgeData{});  // never null, also when empty
    if (out.id) *out.id = capture->id;
    if (out.graph) *out.graph = reinterpret_cast<CUgraph>(capture->graph->handle);
    if (out.nodes) *out.nodes = capture->lent.data();
    if (out.edges) *out.edges = capture->lent_edges.data();
    if (out.count) *out.count = capture->lent.size();
    return OK;
}

}  // namespace sim

using namespace sim;

SIM_API CUresult cuStreamBeginCapture_v2(CUstream handle, int mode) {
    SIM_CALL("cuStreamBeginCapture");
    std::shared_ptr<Stream> stream;
    if (CUresult error = call.on_stream(handle, stream)) return error;
    return begin(stream, mode);
}

SIM_API CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph) {
    SIM_CALL("cuStreamEndCapture");
    std::shared_ptr<Stream> stream;
    if (CUresult error = call.on_stream(handle, stream)) return error;
    return graph ? end(stream, graph) : INVALID_VALUE;
}

SIM_API CUresult cuStreamIsCapturing(CUstream handle, int *status) {
    SIM_CALL("cuStreamIsCapturing");
    std::shared_ptr<Stream> stream;
    if (CUresult error = call.on_stream(handle, stream)) return error;
    return info(stream, {status, nullptr, nullptr, nullptr, nullptr, nullptr});
}

SIM_API CUresult cuStreamGetCaptureInfo_v2(CUstream handle, int *status, uint64_t *id, CUgraph *graph,
                                           const CUgraphNode **nodes, size_t *count) {
    SIM_CALL("cuStreamGetCaptureInfo");
    std::shared_ptr<Stream> stream;
    if (CUresult error = call.on_stream(handle, stream)) return error;
    return info(stream, {status, id, graph, nodes, nullptr, count});
}

SIM_API CUresult cuStreamGetCaptureInfo_v3(CUstream handle, int *status, uint64_t *id, CUgraph *graph,
                                           const CUgraphNode **nodes, const CUgraphEdgeData **edges,
                                           size_t *count) {
    SIM_CALL("cuStreamGetCaptureInfo");
    std::shared_ptr<Stream> stream;
    if (CUresult error = call.on_stream(handle, stream)) return error;
    return info(stream, {status, id, graph, nodes, edges, count});
}

// The state itself and what every entry point does before its own work.
#include "simulator.h"

namespace sim {

// Never destroyed: detached workers may still look at it while the process ends.
Simulator &sim() {
    static Simulator *simulator = new Simulator;
    return *simulator;
}

void Simulator::violation(const std::string &text) {
    if (violations.size() < 1000) violations.push_back(text);
}

std::vector<EntryPoint *> &EntryPoint::all() {
    static auto *points = new std::vector<EntryPoint *>;
    return *points;
}

EntryPoint::EntryPoint(const char *name) : name(name) {
    std::lock_guard<std::mutex> lock(sim().mutex);
    all().push_back(this);
}

Call::Call(EntryPoint &point) : lock(sim().mutex), point(point) {
    ++point.calls;
    sim().faults.late = OK;
    context = current_context();
}

Call::~Call() { sim().spent += Time::now() - begun_ - waited_; }

CUresult Call::fault(Context *on) {
    CUresult error = sim().faults.strike(point.name, on ? on->device : -1);
    if (is_sticky(error) && on) on->sticky = error;
    return error;
}

CUresult Call::begin() { return fault(context.get()); }

CUresult Call::start() {
    if (CUresult error = begin()) return error;
    return sim().initialised ? OK : NOT_INITIALIZED;
}

CUresult Call::in_context() {
    if (!sim().initialised) return NOT_INITIALIZED;
    if (!context) return INVALID_CONTEXT;
    if (context->dead) return CONTEXT_IS_DESTROYED;
    if (CUresult error = fault(context.get())) return error;
    return context->sticky;
}

CUresult Call::on_stream(CUstream handle, std::shared_ptr<Stream> &out) {
    if (!sim().initialised) return NOT_INITIALIZED;
    if (!context) return INVALID_CONTEXT;
    if (context->dead) return CONTEXT_IS_DESTROYED;
    if (reinterpret_cast<uintptr_t>(handle) <= 2) {  // null, CU_STREAM_LEGACY, CU_STREAM_PER_THREAD
        sim().violation(std::string(point.name) + " was given a default stream, which is not simulated");
        return NOT_SUPPORTED;
    }
    out = find(sim().streams, handle, "stream");
    if (!out) return INVALID_HANDLE;
    if (CUresult error = fault(out->context.get())) return error;
    return out->context->sticky;
}

CUresult Call::wait(const std::function<bool()> &done, Context *waited) {
    const auto limit = std::chrono::milliseconds(sim().options.hang_limit_ms);
    auto from = Time::now();
    bool ended = sim().progress.wait_for(lock, limit, done);
    waited_ += Time::now() - from;
    if (!ended) {
        sim().violation(std::string(point.name) + " waited for work that does not end: with a real driver " +
                        "it would not have returned");
        return LAUNCH_TIMEOUT;
    }
    return waited ? waited->sticky : OK;
}

CUresult Call::unless_capturing() {
    std::vector<std::shared_ptr<Capture>> found;
    if (!thread_captures(found)) return OK;
    for (auto &capture : found) spoil(*capture);
    return STREAM_CAPTURE_UNSUPPORTED;
}

void Call::stale(const void *handle, const char *kind) {
    auto value = reinterpret_cast<uintptr_t>(handle);
    const uintptr_t first = 0x51D000000000;
    bool once = value > first && value <= first + 16 * sim().handles;
    std::string what = once ? "a destroyed handle, or one of another kind, as " : "what is no handle as ";
    sim().violation(std::string(point.name) + " was given " + what + kind);
}

Clock &Simulator::host() {
    return hosts[options.threads_apart ? std::this_thread::get_id() : std::thread::id()];
}

void join(Clock &clock, const Clock &other) {
    if (clock.size() < other.size()) clock.resize(other.size());
    for (size_t i = 0; i < other.size(); ++i)
        if (other[i] > clock[i]) clock[i] = other[i];
}

}  // namespace sim

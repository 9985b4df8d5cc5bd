// What tests ask and tell the simulator; tests/cudasim/__init__.py declares the same functions.
#include <algorithm>
#include <cstdio>

#include "simulator.h"

using namespace sim;

namespace {

struct DeviceSpec {
    const char *name;
    int major, minor;
    size_t memory;
};

// Python's callables that no work refers to any more; it drops them when it next looks.
struct Released {
    std::mutex mutex;
    std::vector<uint64_t> keys;
};

Released &released() {
    static auto *keys = new Released;
    return *keys;
}

struct Key {
    uint64_t value;
    explicit Key(uint64_t value) : value(value) {}
    ~Key() {
        std::lock_guard<std::mutex> lock(released().mutex);
        released().keys.push_back(value);
    }
};

size_t live_objects(Simulator &s) {
    return s.contexts.size() + s.streams.size() + s.events.size() + s.memory.live.size() + s.modules.size() +
           s.graphs.size() + s.execs.size();
}

void add(std::string &text, const std::string &key, size_t value) {
    text += key + "\t" + std::to_string(value) + "\n";
}

void write_live(Simulator &s, std::string &text) {
    size_t pinned = 0;
    for (auto &entry : s.memory.live) pinned += entry.second->pinned;
    add(text, "contexts", s.contexts.size());
    add(text, "streams", s.streams.size());
    add(text, "events", s.events.size());
    add(text, "allocations", s.memory.live.size() - pinned);
    add(text, "pinned", pinned);
    add(text, "modules", s.modules.size());
    add(text, "graphs", s.graphs.size());
    add(text, "graph_execs", s.execs.size());
    add(text, "abandoned", s.abandoned);
}

void write_memory(Simulator &s, std::string &text) {
    for (size_t i = 0; i < s.devices.size(); ++i) {
        add(text, "device " + std::to_string(i), s.devices[i].used);
        add(text, "device " + std::to_string(i) + " peak", s.devices[i].peak);
    }
    add(text, "pinned", s.memory.pinned_bytes);
    add(text, "pinned peak", s.memory.pinned_peak);
}

bool all_idle(Simulator &s) {
    auto idle = [](const std::shared_ptr<Stream> &stream) { return !stream || stream->idle(); };
    return std::all_of(s.streams.begin(), s.streams.end(), [&](auto &entry) { return idle(entry.second); }) &&
           std::all_of(s.draining.begin(), s.draining.end(), [&](auto &weak) { return idle(weak.lock()); });
}

void wake_all(Simulator &s) {
    for (auto &entry : s.streams) entry.second->wake.notify_one();
    for (auto &weak : s.draining)
        if (auto stream = weak.lock()) stream->wake.notify_one();
}

void let_go(Simulator &s) {
    s.faults.held_devices.clear();
    for (auto &entry : s.streams) entry.second->held = false;
    for (auto &weak : s.draining)
        if (auto stream = weak.lock()) stream->held = false;
    wake_all(s);
}

void check_guards(Simulator &s) {
    for (auto &entry : s.memory.live)
        if (!entry.second->guards_intact())
            s.violation("something wrote outside the bounds of " + entry.second->name());
}

}  // namespace

SIM_API int cudasim_configure(const DeviceSpec *specs, size_t count, const unsigned char *peers) {
    auto &s = sim::sim();
    std::lock_guard<std::mutex> lock(s.mutex);
    if (live_objects(s)) return 1;
    s.devices.clear();
    for (size_t i = 0; i < count; ++i) {
        Device device;
        device.name = specs[i].name;
        device.major = specs[i].major;
        device.minor = specs[i].minor;
        device.memory = specs[i].memory;
        device.peers.assign(peers + i * count, peers + (i + 1) * count);
        s.devices.push_back(device);
    }
    s.faults.slow_us.assign(count, 0);
    return 0;
}

SIM_API int cudasim_option(const char *name, uint64_t value) {
    auto &s = sim::sim();
    std::lock_guard<std::mutex> lock(s.mutex);
    std::string option = name;
    if (option == "delay_seed")
        s.options.delay_seed = value;
    else if (option == "delay_us")
        s.options.delay_us = static_cast<unsigned>(value);
    else if (option == "hang_limit_ms")
        s.options.hang_limit_ms = static_cast<unsigned>(value);
    else if (option == "capture_peer_copies")
        s.options.capture_peer_copies = value != 0;
    else if (option == "threads_apart")
        s.options.threads_apart = value != 0;
    else if (option == "driver_version")
        s.options.driver_version = static_cast<int>(value);
    else if (option == "initialised")
        s.initialised = value != 0;
    else if (option == "races")
        s.races.enabled = value != 0;
    else
        return 1;
    return 0;
}

SIM_API int cudasim_reset() {
    auto &s = sim::sim();
    std::unique_lock<std::mutex> lock(s.mutex);
    let_go(s);
    s.faults.clear();
    s.faults.slow_us.assign(s.devices.size(), 0);
    bool drained = s.progress.wait_for(lock, std::chrono::seconds(30), [&] { return all_idle(s); });
    for (auto &device : s.devices) {
        if (device.primary) destroy_context(lock, std::exchange(device.primary, nullptr));
        device.retained = 0;
        device.used = device.peak = 0;
    }
    s.graphs.clear();
    s.execs.clear();
    s.captures.clear();
    s.memory.forget();
    s.races.clear();
    s.hosts.clear();
    s.handed_over.clear();
    s.timelines = 1;
    s.abandoned = 0;
    s.copied.clear();
    s.violations.clear();
    s.unknown_calls.clear();
    s.options = Options();
    s.spent = {};
    ++s.generation;
    for (auto *point : EntryPoint::all()) point->calls = 0;
    return drained ? 0 : 1;
}

SIM_API void cudasim_fail(const char *entry, int error, size_t which, size_t times, int device,
                          int asynchronous) {
    std::lock_guard<std::mutex> lock(sim::sim().mutex);
    sim::sim().faults.add({entry, error, which, times, device, asynchronous != 0});
}

SIM_API int cudasim_hold_stream(CUstream handle) {
    auto &s = sim::sim();
    std::lock_guard<std::mutex> lock(s.mutex);
    auto stream = s.streams.find(reinterpret_cast<uintptr_t>(handle));
    if (stream == s.streams.end()) return 1;
    stream->second->held = true;
    return 0;
}

SIM_API void cudasim_hold_device(int device) {
    std::lock_guard<std::mutex> lock(sim::sim().mutex);
    sim::sim().faults.held_devices.insert(device);
}

SIM_API void cudasim_let_go() {
    std::lock_guard<std::mutex> lock(sim::sim().mutex);
    let_go(sim::sim());
}

SIM_API void cudasim_slow(int device, unsigned us) {
    std::lock_guard<std::mutex> lock(sim::sim().mutex);
    sim::sim().faults.slow_us.at(static_cast<size_t>(device)) = us;
}

SIM_API void cudasim_deny_peer(int device, int peer) {
    std::lock_guard<std::mutex> lock(sim::sim().mutex);
    sim::sim().faults.denied_peers.insert({device, peer});
}

SIM_API void cudasim_corrupt(int source, int target) {
    std::lock_guard<std::mutex> lock(sim::sim().mutex);
    sim::sim().faults.corrupt_pairs.insert({source, target});
}

SIM_API int cudasim_name_stream(CUstream handle, const char *name) {
    auto &s = sim::sim();
    std::lock_guard<std::mutex> lock(s.mutex);
    auto stream = s.streams.find(reinterpret_cast<uintptr_t>(handle));
    if (stream == s.streams.end()) return 1;
    stream->second->name = name;
    return 0;
}

SIM_API void cudasim_host_access(uintptr_t address, size_t bytes, int is_write) {
    auto &s = sim::sim();
    std::lock_guard<std::mutex> lock(s.mutex);
    std::string refusal = s.memory.refusal(nullptr, address, bytes);
    if (!refusal.empty())
        s.violation("the host touches " + refusal);
    else
        host_touch(address, bytes, is_write != 0, is_write ? "a store" : "a load");
}

// With `threads_apart`: what this thread knows is there for others that get this lock, or is taken over.
SIM_API void cudasim_hand_over(uint64_t key, int take) {
    auto &s = sim::sim();
    std::lock_guard<std::mutex> lock(s.mutex);
    if (take)
        join(s.host(), s.handed_over[key]);
    else
        join(s.handed_over[key], s.host());
}

// Puts a host function on a stream, or into its capture, as device work that touches what `ranges` says.
// `run` gets `key`, and gives 0 or the CUresult that the work is to fail with.
SIM_API CUresult cudasim_enqueue(CUstream handle, const char *label, CUresult (*run)(uint64_t), uint64_t key,
                                 const Range *ranges, size_t count) {
    SIM_CALL("cudasim_enqueue");
    auto kept = std::make_shared<Key>(key);
    std::shared_ptr<Stream> stream;
    if (CUresult error = call.on_stream(handle, stream)) return error;
    auto work = std::make_shared<Work>();
    work->label = label;
    work->ranges.assign(ranges, ranges + count);
    work->body = [run, kept] { return run(kept->value); };
    return submit(stream, work);
}

SIM_API size_t cudasim_released(uint64_t *keys, size_t room) {
    std::lock_guard<std::mutex> lock(released().mutex);
    auto &all = released().keys;
    size_t given = std::min(room, all.size());
    std::copy(all.end() - static_cast<std::ptrdiff_t>(given), all.end(), keys);
    all.resize(all.size() - given);
    return given;
}

SIM_API void cudasim_note(const char *violation) {
    std::lock_guard<std::mutex> lock(sim::sim().mutex);
    sim::sim().violation(violation);
}

SIM_API double cudasim_spent_seconds() {
    std::lock_guard<std::mutex> lock(sim::sim().mutex);
    return std::chrono::duration<double>(sim::sim().spent).count();
}

// A report by its name, in lines; valid until the thread's next call of this.
SIM_API const char *cudasim_text(const char *which) {
    static thread_local std::string text;
    auto &s = sim::sim();
    std::lock_guard<std::mutex> lock(s.mutex);
    std::string name = which;
    text.clear();
    if (name == "races")
        for (auto &line : s.races.lines()) text += line + "\n";
    if (name == "violations") {
        check_guards(s);
        for (auto &line : s.violations) text += line + "\n";
    }
    if (name == "unknown")
        for (auto &[entry, count] : s.unknown_calls) add(text, entry, count);
    if (name == "calls")
        for (auto *point : EntryPoint::all())
            if (point->calls) add(text, point->name, point->calls);
    if (name == "copied")
        for (auto &[kind, bytes] : s.copied) add(text, kind, bytes);
    if (name == "live") write_live(s, text);
    if (name == "memory") write_memory(s, text);
    return text.c_str();
}

// The simulator's whole state, and what its rooms offer one another.
#pragma once

#include <mutex>

#include "faults.h"
#include "memory.h"
#include "objects.h"
#include "races.h"

namespace sim {

struct Device {
    std::string name;
    int major = 0, minor = 0;
    size_t memory = 0;
    std::vector<bool> peers;  // [d]: this device can reach the memory of device d
    size_t used = 0, peak = 0;
    unsigned retained = 0;
    std::shared_ptr<Context> primary;
};

struct Options {
    uint64_t delay_seed = 0;  // 0: no delays
    unsigned delay_us = 200;  // at most
    unsigned hang_limit_ms = 20000;
    bool capture_peer_copies = false;
    bool threads_apart = false;
    int driver_version = 13000;
};

struct Simulator {
    std::mutex mutex;
    std::condition_variable progress;  // an operation has completed
    bool initialised = false;
    std::vector<Device> devices;
    Options options;

    Table<Context> contexts;
    Table<Stream> streams;
    Table<Event> events;
    Table<Module> modules;
    Table<Function> functions;
    Table<Graph> graphs;
    Table<GraphExec> execs;
    std::vector<std::weak_ptr<Stream>> draining;  // destroyed, but with work left
    std::vector<std::shared_ptr<Capture>> captures;
    size_t abandoned = 0;  // objects that their context took along
    int timelines = 1;
    uint64_t handles = 0, capture_ids = 0;

    Memory memory;
    Races races;
    Faults faults;
    std::map<std::thread::id, Clock> hosts;  // what host threads know; one for all unless `threads_apart`
    std::map<uint64_t, Clock> handed_over;  // by the lock
    Time::duration spent{};   // in entry points, but for their waits
    uint64_t generation = 0;  // of objects: a reset begins another
    std::map<std::string, size_t> copied;
    std::vector<std::string> violations;
    std::map<std::string, size_t> unknown_calls;

    Clock &host();  // of this thread
    uintptr_t new_handle() { return 0x51D000000000 + 16 * ++handles; }
    void violation(const std::string &text);
};

Simulator &sim();

struct EntryPoint {
    const char *name;
    size_t calls = 0;
    explicit EntryPoint(const char *name);
    static std::vector<EntryPoint *> &all();
};

// One call of an entry point: counts it, holds the lock, and gives the error that comes before any work.
class Call {
  public:
    explicit Call(EntryPoint &point);
    ~Call();
    CUresult begin();       // none but an injected one
    CUresult start();       // or that the driver is not initialised
    CUresult in_context();  // or that no context is current, or a ruined one
    CUresult on_stream(CUstream handle, std::shared_ptr<Stream> &out);  // or that the stream is not there
    CUresult wait(const std::function<bool()> &done, Context *context);
    // Refuses what may not be called by a thread that captures, and spoils the capture.
    CUresult unless_capturing();

    template <class T>
    std::shared_ptr<T> find(const Table<T> &table, const void *handle, const char *kind) {
        auto found = table.find(reinterpret_cast<uintptr_t>(handle));
        if (found != table.end()) return found->second;
        stale(handle, kind);
        return nullptr;
    }

  private:
    Time::time_point begun_ = Time::now();
    Time::duration waited_{};

  public:
    std::unique_lock<std::mutex> lock;
    std::shared_ptr<Context> context;
    EntryPoint &point;

  private:
    CUresult fault(Context *on);
    void stale(const void *handle, const char *kind);
};

// Contexts (context.cpp).
std::shared_ptr<Context> current_context();
void destroy_context(std::unique_lock<std::mutex> &lock, std::shared_ptr<Context> context);
bool is_sticky(CUresult error);

// Streams (worker.cpp, streams.cpp).
void start_worker(const std::shared_ptr<Stream> &stream);
void push(const std::shared_ptr<Stream> &stream, Operation operation);
void close_stream(const std::shared_ptr<Stream> &stream);
CUresult submit(const std::shared_ptr<Stream> &stream, std::shared_ptr<Work> work);
Step prepare(const Stream &stream, const std::shared_ptr<const Work> &work, const char *prefix);
void advance(const std::shared_ptr<Stream> &stream);
std::shared_ptr<Token> record(const std::shared_ptr<Stream> &stream);
std::string name_of(const Stream &stream);
void host_touch(uintptr_t begin, size_t bytes, bool write, const std::string &label);

// Captures and graphs (capture.cpp, graphs.cpp).
void spoil(Capture &capture);
bool thread_captures(std::vector<std::shared_ptr<Capture>> &found);
CUresult capture_work(const std::shared_ptr<Stream> &stream, std::shared_ptr<Work> work);
CUresult capture_record(const std::shared_ptr<Stream> &stream, const std::shared_ptr<Event> &event);
CUresult capture_wait(const std::shared_ptr<Stream> &stream, const std::shared_ptr<Event> &event);

}  // namespace sim

#define SIM_CALL(name)                  \
    static sim::EntryPoint point(name); \
    sim::Call call(point)

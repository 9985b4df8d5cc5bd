// What the driver's handles stand for. Every field is guarded by Simulator::mutex.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "abi.h"

namespace sim {

using Time = std::chrono::steady_clock;
// How far every timeline (0: the host, then the streams) was known to have come.
using Clock = std::vector<uint64_t>;

void join(Clock &clock, const Clock &other);

struct Range {
    uintptr_t begin;
    size_t bytes;
    bool write;
};

struct Stream;
struct Capture;

struct Context {
    uintptr_t handle = 0;
    int device = 0;
    CUresult sticky = OK;  // the asynchronous error that every later call returns
    bool dead = false;
    std::set<int> peers;  // devices whose memory this context may reach
};

// One record of an event: what a wait that is enqueued later waits for.
struct Token {
    bool done = false;
    Clock clock;
    Time::time_point when;
    std::vector<std::weak_ptr<Stream>> waiters;
};

struct Event {
    uintptr_t handle = 0;
    std::shared_ptr<Context> context;
    unsigned flags = 0;
    std::shared_ptr<Token> token;      // of the latest record; none before the first
    std::shared_ptr<Capture> capture;  // set when the latest record was inside a capture
    std::vector<size_t> captured;      // and the nodes it stands for
};

// A piece of device work: what a stream runs, or a node of a graph.
struct Work {
    std::string label;
    NodeType type = NODE_KERNEL;
    std::shared_ptr<Context> context;
    std::function<CUresult()> body;
    std::vector<Range> ranges;
    std::string copy_kind;  // for the byte counters; empty for what copies nothing
    size_t copy_bytes = 0;
    int source = -1, target = -1;  // devices of a copy
    bool any_device = false;       // a peer copy, which needs no access to be enabled
};

struct Step {
    std::shared_ptr<const Work> work;
    CUresult error = OK;  // fails with this instead of running
    bool corrupt = false;
};

// An entry of a stream's queue: waits, then runs, then completes a record; each part may be missing.
struct Operation {
    std::shared_ptr<Token> wait;
    std::vector<Step> steps;
    std::shared_ptr<Token> record;
};

struct Stream {
    uintptr_t handle = 0;
    int timeline = 0;
    std::shared_ptr<Context> context;
    unsigned flags = 0;
    std::string name;  // a test may give one, for reports
    std::deque<Operation> queue;
    bool running = false, closed = false, held = false;
    uint64_t started = 0;  // operations begun, which seeds their delays
    Clock clock;
    std::condition_variable wake;
    std::shared_ptr<Capture> capture;
    std::vector<size_t> tail;  // the nodes that the next captured one depends on

    bool idle() const { return queue.empty() && !running; }
};

struct Node {
    uintptr_t handle = 0;
    std::shared_ptr<const Work> work;
    std::vector<size_t> after;
};

struct Graph {
    uintptr_t handle = 0;
    std::vector<Node> nodes;
};

struct GraphExec {
    uintptr_t handle = 0;
    std::vector<std::shared_ptr<const Work>> works;
    std::shared_ptr<Token> last;  // launches of one executable graph run one after the other
};

struct Capture {
    uint64_t id = 0;
    CaptureMode mode = CAPTURE_GLOBAL;
    std::thread::id thread;
    std::shared_ptr<Graph> graph;
    std::weak_ptr<Stream> origin;
    std::vector<std::weak_ptr<Stream>> streams;
    bool invalid = false, ended = false;
    // What cuStreamGetCaptureInfo lends out; valid until the next call on the stream.
    std::vector<CUgraphNode> lent;
    std::vector<CUgraphEdgeData> lent_edges;
};

using HostKernel = void (*)(const unsigned grid[3], const unsigned block[3], void **params);
using Report = void (*)(void *context, const void *address, size_t bytes, int is_write);
using RangesOf = void (*)(const unsigned grid[3], const unsigned block[3], void **params, Report report,
                          void *context);
using BytesOf = unsigned (*)();  // of the one argument, a struct that is passed by value

struct Module {
    uintptr_t handle = 0;
    std::shared_ptr<Context> context;
    void *library = nullptr;
    std::vector<uintptr_t> functions;
};

struct Function {
    uintptr_t handle = 0;
    std::weak_ptr<Module> module;
    std::shared_ptr<Context> context;
    std::string name;
    HostKernel run = nullptr;
    RangesOf ranges = nullptr;
    size_t argument_bytes = 0;
};

// Live objects of one kind. Handles are never used twice, so a stale one is told from a wrong one.
template <class T>
using Table = std::map<uintptr_t, std::shared_ptr<T>>;

}  // namespace sim

// A stream at work: one thread takes its operations in order. No lock is held while one runs, since it may
// call back into Python.
#include <algorithm>
#include <csignal>

#include "simulator.h"

namespace sim {

namespace {

bool runnable(const Stream &stream) {
    if (stream.queue.empty()) return false;
    if (stream.context->dead) return true;  // to be dropped
    if (stream.held || sim().faults.held_devices.count(stream.context->device)) return false;
    auto &wait = stream.queue.front().wait;
    return !wait || wait->done;
}

// The same for the same seed, stream and operation. Most waits are short and some are long.
unsigned delay_us(const Stream &stream) {
    auto &s = sim();
    unsigned slow = 0;
    auto device = static_cast<size_t>(stream.context->device);
    if (device < s.faults.slow_us.size()) slow = s.faults.slow_us[device];
    if (!s.options.delay_seed) return slow;
    uint64_t x = s.options.delay_seed * 0x9E3779B97F4A7C15u;
    x += static_cast<uint64_t>(stream.timeline) * 0xD1B54A32D192ED03u + stream.started * 0x8CB92BA72F3D8DD7u;
    x ^= x >> 31, x *= 0xBF58476D1CE4E5B9u, x ^= x >> 29;  // splitmix64's mixing
    double unit = static_cast<double>(x % 1024) / 1024;
    return slow + static_cast<unsigned>(unit * unit * unit * s.options.delay_us);
}

void pause(std::unique_lock<std::mutex> &lock, unsigned us) {
    if (!us) return;
    lock.unlock();
    std::this_thread::sleep_for(std::chrono::microseconds(us));
    lock.lock();
}

void run(std::unique_lock<std::mutex> &lock, const Step &step) {
    Context &context = *step.work->context;
    if (context.dead || context.sticky) return;
    CUresult error = step.error;
    if (!error) {
        lock.unlock();
        error = step.work->body();
        if (step.corrupt)
            for (auto &range : step.work->ranges)
                if (range.write) *reinterpret_cast<unsigned char *>(range.begin + range.bytes / 2) ^= 0x40;
        lock.lock();
    }
    if (error) context.sticky = error;
}

void complete(Token &token) {
    token.done = true;
    token.when = Time::now();
    for (auto &weak : token.waiters)
        if (auto waiter = weak.lock()) waiter->wake.notify_one();
    token.waiters.clear();
}

void work(std::shared_ptr<Stream> stream) {
    std::unique_lock<std::mutex> lock(sim().mutex);
    for (;;) {
        stream->wake.wait(lock,
                          [&] { return runnable(*stream) || (stream->closed && stream->queue.empty()); });
        if (stream->queue.empty()) return;
        stream->running = true;
        {
            Operation operation = std::move(stream->queue.front());
            stream->queue.pop_front();
            ++stream->started;
            pause(lock, stream->context->dead ? 0 : delay_us(*stream));
            for (auto &step : operation.steps) run(lock, step);
            if (operation.record) complete(*operation.record);
        }
        stream->running = false;
        sim().progress.notify_all();
    }
}

}  // namespace

void start_worker(const std::shared_ptr<Stream> &stream) {
    sigset_t all, before;  // signals are for Python's main thread
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread(work, stream).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void push(const std::shared_ptr<Stream> &stream, Operation operation) {
    if (operation.wait && !operation.wait->done) operation.wait->waiters.push_back(stream);
    stream->queue.push_back(std::move(operation));
    stream->wake.notify_one();
}

void close_stream(const std::shared_ptr<Stream> &stream) {
    auto &s = sim();
    s.draining.erase(
        std::remove_if(s.draining.begin(), s.draining.end(), [](auto &weak) { return weak.expired(); }),
        s.draining.end());
    if (stream->capture) spoil(*stream->capture);
    stream->closed = true;
    stream->wake.notify_one();
    if (!stream->idle()) s.draining.push_back(stream);
    s.streams.erase(stream->handle);
}

}  // namespace sim

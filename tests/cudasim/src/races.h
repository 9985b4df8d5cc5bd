// The race detector: vector clocks, moved when work is enqueued, so that the verdict does not depend on
// what happened to run first.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

namespace sim {

using Clock = std::vector<uint64_t>;

// One access: which timeline made it, at which of its steps, and what to call it in a report.
struct Access {
    int timeline = -1;
    uint64_t epoch = 0;
    std::shared_ptr<const std::string> label;
};

class Races {
  public:
    // `clock` is what the access's own timeline knows of the others.
    void touch(uintptr_t begin, size_t bytes, bool write, const Clock &clock, const Access &access);
    void forget(uintptr_t begin, size_t bytes);
    void report(const std::string &text);
    void clear();
    std::vector<std::string> lines() const;
    bool enabled = true;

  private:
    struct Cell {
        uintptr_t end = 0;
        Access writer;
        std::vector<Access> readers;
    };
    using Cells = std::map<uintptr_t, Cell>;
    void split(uintptr_t at);
    void compare(const Access &old, bool old_write, const Access &now, bool now_write, const Clock &clock,
                 uintptr_t begin, uintptr_t end);
    Cells cells_;
    std::map<std::string, std::pair<std::string, size_t>> found_;  // by pair: text, how often
    std::vector<std::string> order_;
};

}  // namespace sim

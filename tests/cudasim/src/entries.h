#pragma once

#include <vector>

namespace sim {

struct Entry {
    const char *name;
    int version;
    void *function;
};

extern const std::vector<Entry> ENTRIES;

}  // namespace sim

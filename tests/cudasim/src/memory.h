// Who owns which bytes: device memory is host memory, so an address is all that a pointer says.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>

#include "abi.h"

namespace sim {

struct Context;

struct Allocation {
    size_t number = 0;
    uintptr_t address = 0;
    size_t bytes = 0;
    int device = 0;  // of the context that made it, for pinned memory too
    bool pinned = false;
    void *block = nullptr;
    size_t block_bytes = 0;

    ~Allocation();
    bool guards_intact() const;
    std::string name() const;
};

class Memory {
  public:
    std::shared_ptr<Allocation> allocate(size_t bytes, int device, bool pinned);
    // Poisons the bytes and keeps them for a while, so that later use is told from a wrong address.
    void release(const std::shared_ptr<Allocation> &allocation);
    std::shared_ptr<Allocation> starting_at(uintptr_t address) const;
    std::shared_ptr<Allocation> holding(uintptr_t address) const;
    bool was_freed(uintptr_t address) const;
    // Why a context (none: any device) may not touch a range; empty when it may.
    std::string refusal(const Context *context, uintptr_t address, size_t bytes) const;
    void forget();

    std::map<uintptr_t, std::shared_ptr<Allocation>> live;
    size_t pinned_bytes = 0, pinned_peak = 0;

  private:
    using Block = std::shared_ptr<Allocation>;
    static Block find(const std::map<uintptr_t, Block> &blocks, uintptr_t address);
    std::map<uintptr_t, Block> freed_;
    std::deque<uintptr_t> order_;
    size_t freed_bytes_ = 0, count_ = 0;
};

std::string bytes_of(uintptr_t address, size_t bytes);

}  // namespace sim

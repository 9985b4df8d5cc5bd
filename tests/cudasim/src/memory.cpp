#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include "simulator.h"

namespace sim {

namespace {

constexpr size_t ALIGNMENT = 512, GUARD = 512;
constexpr unsigned char GUARD_BYTE = 0xFD;
// All ones is not a number in every float format: what is read before it is written, or after it is
// freed, shows in the result.
constexpr unsigned char POISON = 0xFF;
// Larger memory is left as fresh zero pages, so that engine-sized buffers cost nothing.
constexpr size_t POISON_LIMIT = 64 << 20;
constexpr size_t QUARANTINE = 256 << 20;

}  // namespace

Allocation::~Allocation() { std::free(block); }

bool Allocation::guards_intact() const {
    auto *before = static_cast<unsigned char *>(block);
    auto *after = reinterpret_cast<unsigned char *>(address + bytes);
    for (size_t i = 0; i < GUARD; ++i)
        if (before[i] != GUARD_BYTE || after[i] != GUARD_BYTE) return false;
    return true;
}

std::string Allocation::name() const {
    return (pinned ? "pinned memory #" : "allocation #") + std::to_string(number) + " (" +
           std::to_string(bytes) + (pinned ? " bytes)" : " bytes, device " + std::to_string(device) + ")");
}

std::shared_ptr<Allocation> Memory::allocate(size_t bytes, int device, bool pinned) {
    auto made = std::make_shared<Allocation>();
    made->block_bytes = GUARD + bytes + GUARD;
    size_t rounded = (made->block_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    made->block = std::aligned_alloc(ALIGNMENT, rounded);
    if (!made->block) return nullptr;
    made->number = ++count_;
    made->address = reinterpret_cast<uintptr_t>(made->block) + GUARD;
    made->bytes = bytes;
    made->device = device;
    made->pinned = pinned;
    std::memset(made->block, GUARD_BYTE, GUARD);
    std::memset(reinterpret_cast<void *>(made->address + bytes), GUARD_BYTE, GUARD);
    if (bytes <= POISON_LIMIT) std::memset(reinterpret_cast<void *>(made->address), POISON, bytes);
    live[made->address] = made;
    if (pinned) {
        pinned_bytes += bytes;
        if (pinned_bytes > pinned_peak) pinned_peak = pinned_bytes;
    }
    return made;
}

void Memory::release(const std::shared_ptr<Allocation> &allocation) {
    if (allocation->pinned) pinned_bytes -= allocation->bytes;
    if (allocation->bytes <= POISON_LIMIT)
        std::memset(reinterpret_cast<void *>(allocation->address), POISON, allocation->bytes);
    live.erase(allocation->address);
    freed_[allocation->address] = allocation;
    order_.push_back(allocation->address);
    freed_bytes_ += allocation->block_bytes;
    while (freed_bytes_ > QUARANTINE && order_.size() > 1) {
        auto oldest = freed_.find(order_.front());
        freed_bytes_ -= oldest->second->block_bytes;
        freed_.erase(oldest);
        order_.pop_front();
    }
}

std::shared_ptr<Allocation> Memory::find(const std::map<uintptr_t, Block> &blocks, uintptr_t address) {
    auto after = blocks.upper_bound(address);
    if (after == blocks.begin()) return nullptr;
    const Block &block = std::prev(after)->second;
    return address < block->address + block->bytes ? block : nullptr;
}

std::shared_ptr<Allocation> Memory::starting_at(uintptr_t address) const {
    auto found = live.find(address);
    return found == live.end() ? nullptr : found->second;
}

std::shared_ptr<Allocation> Memory::holding(uintptr_t address) const { return find(live, address); }

bool Memory::was_freed(uintptr_t address) const { return find(freed_, address) != nullptr; }

std::string bytes_of(uintptr_t address, size_t bytes) {
    auto block = sim().memory.holding(address);
    if (!block) return std::to_string(bytes) + " bytes of unknown memory";
    size_t from = address - block->address;
    return "bytes " + std::to_string(from) + " to " + std::to_string(from + bytes) + " of " + block->name();
}

std::string Memory::refusal(const Context *context, uintptr_t address, size_t bytes) const {
    Block block = holding(address);
    if (!block) return was_freed(address) ? "memory that was freed" : "an address that is no device memory";
    if (bytes > block->address + block->bytes - address)
        return bytes_of(address, bytes) + ", which goes past its end";
    bool reached = !context || block->device == context->device || context->peers.count(block->device);
    if (block->pinned || reached) return "";
    return bytes_of(address, bytes) + " from device " + std::to_string(context->device) +
           ", which has no access to that peer";
}

void Memory::forget() {
    freed_.clear();
    order_.clear();
    freed_bytes_ = count_ = pinned_peak = 0;
}

}  // namespace sim

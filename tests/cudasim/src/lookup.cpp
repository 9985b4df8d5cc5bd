// cuGetProcAddress: every name is found. What is not simulated gets a stub that says its name and fails.
#include <cstdio>
#include <utility>

#include "entries.h"
#include "simulator.h"

namespace sim {

namespace {

constexpr size_t STUBS = 1024;

std::vector<std::string> &stub_names() {
    static auto *names = new std::vector<std::string>;
    return *names;
}

template <size_t N>
CUresult stub() {
    std::lock_guard<std::mutex> lock(sim().mutex);
    const std::string &name = stub_names()[N];
    ++sim().unknown_calls[name];
    std::fprintf(stderr, "cudasim: %s is not simulated\n", name.c_str());
    return NOT_SUPPORTED;
}

using Stub = CUresult (*)();

template <size_t... N>
const Stub *stubs(std::index_sequence<N...>) {
    static const Stub all[] = {stub<N>...};
    return all;
}

void *stub_for(const std::string &name) {
    auto &names = stub_names();
    size_t i = 0;
    while (i < names.size() && names[i] != name) ++i;
    if (i == STUBS) return nullptr;
    if (i == names.size()) names.push_back(name);
    return reinterpret_cast<void *>(stubs(std::make_index_sequence<STUBS>())[i]);
}

}  // namespace

}  // namespace sim

using namespace sim;

SIM_API CUresult cuGetProcAddress_v2(const char *name, void **out, int version, uint64_t, int *status) {
    if (!name || !out) return INVALID_VALUE;
    std::lock_guard<std::mutex> lock(sim::sim().mutex);
    const Entry *newest = nullptr;  // not above the version asked for
    for (auto &entry : ENTRIES)
        if (std::string(entry.name) == name && entry.version <= version &&
            (!newest || entry.version > newest->version))
            newest = &entry;
    *out = newest ? newest->function : stub_for(name);
    if (status) *status = *out ? 0 : 1;  // CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND
    return *out ? OK : NOT_FOUND;
}

SIM_API CUresult cuGetProcAddress(const char *name, void **out, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, out, version, flags, nullptr);
}

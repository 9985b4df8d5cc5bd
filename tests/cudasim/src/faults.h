// What a test asked to go wrong.
#pragma once

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "abi.h"

namespace sim {

struct Fault {
    std::string entry;
    CUresult error = 0;
    size_t call = 1;            // counted from when the fault was asked for
    size_t times = 1;           // this call and how many after it; 0: all
    int device = -1;            // any
    bool asynchronous = false;  // the call succeeds, the work it enqueued fails
};

class Faults {
  public:
    void add(Fault fault) { faults_.push_back(std::move(fault)); }
    // The error this call is to return. An asynchronous one is kept in `late` for the work of the call.
    CUresult strike(const char *entry, int device);
    void clear() { *this = Faults(); }

    CUresult late = 0;
    std::set<std::pair<int, int>> denied_peers;   // (device, whose memory)
    std::set<std::pair<int, int>> corrupt_pairs;  // (source, target) of copies that flip a byte
    std::set<int> held_devices;
    std::vector<unsigned> slow_us;  // by device, before every operation

  private:
    std::vector<Fault> faults_;
};

}  // namespace sim

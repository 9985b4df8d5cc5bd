#include "faults.h"

namespace sim {

CUresult Faults::strike(const char *entry, int device) {
    for (auto &fault : faults_) {
        if (fault.entry != entry || (fault.device >= 0 && fault.device != device)) continue;
        if (fault.call > 1) {
            --fault.call;
            continue;
        }
        if (!fault.call) continue;  // spent
        if (fault.times && !--fault.times) fault.call = 0;
        if (!fault.asynchronous) return fault.error;
        late = fault.error;
    }
    return OK;
}

}  // namespace sim

// Initialisation, and what devices tell of themselves.
#include <cstdio>
#include <cstring>

#include "simulator.h"

using namespace sim;

namespace {

bool exists(CUdevice device) {
    return device >= 0 && static_cast<size_t>(device) < sim::sim().devices.size();
}

void fill_uuid(CUuuid *uuid, CUdevice device) {
    std::memset(uuid->bytes, 0, sizeof uuid->bytes);
    std::memcpy(uuid->bytes, "cudasim", 7);
    uuid->bytes[15] = static_cast<unsigned char>(device + 1);
}

// Attributes by the driver's numbers; those of a device's own come first.
bool attribute(const Device &device, CUdevice number, int which, int *value) {
    static const std::map<int, int> SAME = {
        {1, 1024},      {2, 1024},  {3, 1024},   {4, 64},       {5, 2147483647}, {6, 65535},    {7, 65535},
        {8, 49152},     {10, 32},   {12, 65536}, {13, 1500000}, {15, 1},         {16, 64},      {18, 0},
        {19, 1},        {20, 0},    {31, 1},     {32, 0},       {34, 0},         {36, 5000000}, {37, 384},
        {38, 41943040}, {39, 1536}, {40, 2},     {41, 1},       {50, 0},         {78, 1},       {81, 102400},
        {82, 65536},    {83, 1},    {89, 1},     {97, 101376},  {115, 0},
    };
    switch (which) {
        case 75: return *value = device.major, true;
        case 76: return *value = device.minor, true;
        case 33: return *value = number + 1, true;  // PCI bus
        default: break;
    }
    auto found = SAME.find(which);
    if (found == SAME.end()) return false;
    return *value = found->second, true;
}

}  // namespace

SIM_API CUresult cuInit(unsigned flags) {
    SIM_CALL("cuInit");
    if (CUresult error = call.begin()) return error;
    if (flags) return INVALID_VALUE;
    if (sim::sim().devices.empty()) return NO_DEVICE;
    sim::sim().initialised = true;
    return OK;
}

SIM_API CUresult cuDriverGetVersion(int *version) {
    SIM_CALL("cuDriverGetVersion");
    if (CUresult error = call.begin()) return error;
    if (!version) return INVALID_VALUE;
    *version = sim::sim().options.driver_version;
    return OK;
}

SIM_API CUresult cuDeviceGetCount(int *count) {
    SIM_CALL("cuDeviceGetCount");
    if (CUresult error = call.start()) return error;
    if (!count) return INVALID_VALUE;
    *count = static_cast<int>(sim::sim().devices.size());
    return OK;
}

SIM_API CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    SIM_CALL("cuDeviceGet");
    if (CUresult error = call.start()) return error;
    if (!device) return INVALID_VALUE;
    if (!exists(ordinal)) return INVALID_DEVICE;
    *device = ordinal;
    return OK;
}

SIM_API CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    SIM_CALL("cuDeviceGetName");
    if (CUresult error = call.start()) return error;
    if (!name || length < 1) return INVALID_VALUE;
    if (!exists(device)) return INVALID_DEVICE;
    std::snprintf(name, static_cast<size_t>(length), "%s", sim::sim().devices[device].name.c_str());
    return OK;
}

SIM_API CUresult cuDeviceGetAttribute(int *value, int which, CUdevice device) {
    SIM_CALL("cuDeviceGetAttribute");
    if (CUresult error = call.start()) return error;
    if (!value) return INVALID_VALUE;
    if (!exists(device)) return INVALID_DEVICE;
    if (attribute(sim::sim().devices[device], device, which, value)) return OK;
    sim::sim().violation("cuDeviceGetAttribute: attribute " + std::to_string(which) + " is not simulated");
    return INVALID_VALUE;
}

SIM_API CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    SIM_CALL("cuDeviceTotalMem");
    if (CUresult error = call.start()) return error;
    if (!bytes) return INVALID_VALUE;
    if (!exists(device)) return INVALID_DEVICE;
    *bytes = sim::sim().devices[device].memory;
    return OK;
}

SIM_API CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
    SIM_CALL("cuDeviceGetUuid");
    if (CUresult error = call.start()) return error;
    if (!uuid) return INVALID_VALUE;
    if (!exists(device)) return INVALID_DEVICE;
    fill_uuid(uuid, device);
    return OK;
}

SIM_API CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device) { return cuDeviceGetUuid_v2(uuid, device); }

SIM_API CUresult cuDeviceGetPCIBusId(char *text, int length, CUdevice device) {
    SIM_CALL("cuDeviceGetPCIBusId");
    if (CUresult error = call.start()) return error;
    if (!text || length < 13) return INVALID_VALUE;
    if (!exists(device)) return INVALID_DEVICE;
    std::snprintf(text, static_cast<size_t>(length), "0000:%02X:00.0",
                  static_cast<unsigned>(device + 1) & 0xFF);
    return OK;
}

SIM_API CUresult cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer) {
    SIM_CALL("cuDeviceCanAccessPeer");
    if (CUresult error = call.start()) return error;
    if (!can) return INVALID_VALUE;
    if (!exists(device) || !exists(peer)) return INVALID_DEVICE;
    bool denied = sim::sim().faults.denied_peers.count({device, peer}) > 0;
    *can = device != peer && !denied && sim::sim().devices[device].peers[peer];
    return OK;
}

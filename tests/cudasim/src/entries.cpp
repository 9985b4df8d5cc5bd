// The simulated entry points: name, CUDA version that brought this form of it, and symbol. The versions
// are those of cudaTypedefs.h.
#include "entries.h"

// Only their addresses are taken here.
extern "C" {
int cuCtxDisablePeerAccess();
int cuCtxEnablePeerAccess();
int cuCtxGetCurrent();
int cuCtxGetDevice();
int cuCtxGetStreamPriorityRange();
int cuCtxPopCurrent_v2();
int cuCtxPushCurrent_v2();
int cuCtxSetCurrent();
int cuCtxSynchronize();
int cuDeviceCanAccessPeer();
int cuDeviceGet();
int cuDeviceGetAttribute();
int cuDeviceGetCount();
int cuDeviceGetName();
int cuDeviceGetPCIBusId();
int cuDeviceGetUuid();
int cuDeviceGetUuid_v2();
int cuDevicePrimaryCtxGetState();
int cuDevicePrimaryCtxRelease_v2();
int cuDevicePrimaryCtxReset_v2();
int cuDevicePrimaryCtxRetain();
int cuDeviceTotalMem_v2();
int cuDriverGetVersion();
int cuEventCreate();
int cuEventDestroy_v2();
int cuEventElapsedTime();
int cuEventQuery();
int cuEventRecord();
int cuEventRecordWithFlags();
int cuEventSynchronize();
int cuFuncGetAttribute();
int cuGetErrorName();
int cuGetErrorString();
int cuGetProcAddress();
int cuGetProcAddress_v2();
int cuGraphDestroy();
int cuGraphExecDestroy();
int cuGraphGetNodes();
int cuGraphInstantiateWithFlags();
int cuGraphInstantiateWithParams();
int cuGraphLaunch();
int cuGraphNodeGetType();
int cuGraphUpload();
int cuInit();
int cuLaunchKernel();
int cuMemAllocHost_v2();
int cuMemAlloc_v2();
int cuMemFreeHost();
int cuMemFree_v2();
int cuMemGetInfo_v2();
int cuMemHostAlloc();
int cuMemHostGetDevicePointer_v2();
int cuMemcpyDtoDAsync_v2();
int cuMemcpyDtoD_v2();
int cuMemcpyDtoHAsync_v2();
int cuMemcpyDtoH_v2();
int cuMemcpyHtoDAsync_v2();
int cuMemcpyHtoD_v2();
int cuMemcpyPeerAsync();
int cuMemsetD32Async();
int cuMemsetD8Async();
int cuModuleGetFunction();
int cuModuleLoadData();
int cuModuleLoadDataEx();
int cuModuleUnload();
int cuStreamBeginCapture_v2();
int cuStreamCreate();
int cuStreamCreateWithPriority();
int cuStreamDestroy_v2();
int cuStreamEndCapture();
int cuStreamGetCaptureInfo_v2();
int cuStreamGetCaptureInfo_v3();
int cuStreamGetCtx();
int cuStreamGetFlags();
int cuStreamIsCapturing();
int cuStreamQuery();
int cuStreamSynchronize();
int cuStreamWaitEvent();
}

namespace sim {

const std::vector<Entry> ENTRIES = {
    {"cuInit", 2000, reinterpret_cast<void *>(cuInit)},
    {"cuDriverGetVersion", 2020, reinterpret_cast<void *>(cuDriverGetVersion)},
    {"cuGetErrorName", 6000, reinterpret_cast<void *>(cuGetErrorName)},
    {"cuGetErrorString", 6000, reinterpret_cast<void *>(cuGetErrorString)},
    {"cuDeviceGet", 2000, reinterpret_cast<void *>(cuDeviceGet)},
    {"cuDeviceGetCount", 2000, reinterpret_cast<void *>(cuDeviceGetCount)},
    {"cuDeviceGetName", 2000, reinterpret_cast<void *>(cuDeviceGetName)},
    {"cuDeviceGetAttribute", 2000, reinterpret_cast<void *>(cuDeviceGetAttribute)},
    {"cuDeviceTotalMem", 3020, reinterpret_cast<void *>(cuDeviceTotalMem_v2)},
    {"cuDeviceGetUuid", 9020, reinterpret_cast<void *>(cuDeviceGetUuid)},
    {"cuDeviceGetUuid", 11040, reinterpret_cast<void *>(cuDeviceGetUuid_v2)},
    {"cuDeviceGetPCIBusId", 4010, reinterpret_cast<void *>(cuDeviceGetPCIBusId)},
    {"cuDeviceCanAccessPeer", 4000, reinterpret_cast<void *>(cuDeviceCanAccessPeer)},
    {"cuDevicePrimaryCtxRetain", 7000, reinterpret_cast<void *>(cuDevicePrimaryCtxRetain)},
    {"cuDevicePrimaryCtxRelease", 11000, reinterpret_cast<void *>(cuDevicePrimaryCtxRelease_v2)},
    {"cuDevicePrimaryCtxReset", 11000, reinterpret_cast<void *>(cuDevicePrimaryCtxReset_v2)},
    {"cuDevicePrimaryCtxGetState", 7000, reinterpret_cast<void *>(cuDevicePrimaryCtxGetState)},
    {"cuCtxSetCurrent", 4000, reinterpret_cast<void *>(cuCtxSetCurrent)},
    {"cuCtxGetCurrent", 4000, reinterpret_cast<void *>(cuCtxGetCurrent)},
    {"cuCtxPushCurrent", 4000, reinterpret_cast<void *>(cuCtxPushCurrent_v2)},
    {"cuCtxPopCurrent", 4000, reinterpret_cast<void *>(cuCtxPopCurrent_v2)},
    {"cuCtxGetDevice", 2000, reinterpret_cast<void *>(cuCtxGetDevice)},
    {"cuCtxSynchronize", 2000, reinterpret_cast<void *>(cuCtxSynchronize)},
    {"cuCtxEnablePeerAccess", 4000, reinterpret_cast<void *>(cuCtxEnablePeerAccess)},
    {"cuCtxDisablePeerAccess", 4000, reinterpret_cast<void *>(cuCtxDisablePeerAccess)},
    {"cuCtxGetStreamPriorityRange", 5050, reinterpret_cast<void *>(cuCtxGetStreamPriorityRange)},
    {"cuMemGetInfo", 3020, reinterpret_cast<void *>(cuMemGetInfo_v2)},
    {"cuMemAlloc", 3020, reinterpret_cast<void *>(cuMemAlloc_v2)},
    {"cuMemFree", 3020, reinterpret_cast<void *>(cuMemFree_v2)},
    {"cuMemHostAlloc", 2020, reinterpret_cast<void *>(cuMemHostAlloc)},
    {"cuMemAllocHost", 3020, reinterpret_cast<void *>(cuMemAllocHost_v2)},
    {"cuMemFreeHost", 2000, reinterpret_cast<void *>(cuMemFreeHost)},
    {"cuMemHostGetDevicePointer", 3020, reinterpret_cast<void *>(cuMemHostGetDevicePointer_v2)},
    {"cuMemcpyHtoD", 3020, reinterpret_cast<void *>(cuMemcpyHtoD_v2)},
    {"cuMemcpyDtoH", 3020, reinterpret_cast<void *>(cuMemcpyDtoH_v2)},
    {"cuMemcpyDtoD", 3020, reinterpret_cast<void *>(cuMemcpyDtoD_v2)},
    {"cuMemcpyHtoDAsync", 3020, reinterpret_cast<void *>(cuMemcpyHtoDAsync_v2)},
    {"cuMemcpyDtoHAsync", 3020, reinterpret_cast<void *>(cuMemcpyDtoHAsync_v2)},
    {"cuMemcpyDtoDAsync", 3020, reinterpret_cast<void *>(cuMemcpyDtoDAsync_v2)},
    {"cuMemcpyPeerAsync", 4000, reinterpret_cast<void *>(cuMemcpyPeerAsync)},
    {"cuMemsetD8Async", 3020, reinterpret_cast<void *>(cuMemsetD8Async)},
    {"cuMemsetD32Async", 3020, reinterpret_cast<void *>(cuMemsetD32Async)},
    {"cuStreamCreate", 2000, reinterpret_cast<void *>(cuStreamCreate)},
    {"cuStreamCreateWithPriority", 5050, reinterpret_cast<void *>(cuStreamCreateWithPriority)},
    {"cuStreamDestroy", 4000, reinterpret_cast<void *>(cuStreamDestroy_v2)},
    {"cuStreamSynchronize", 2000, reinterpret_cast<void *>(cuStreamSynchronize)},
    {"cuStreamQuery", 2000, reinterpret_cast<void *>(cuStreamQuery)},
    {"cuStreamGetCtx", 9020, reinterpret_cast<void *>(cuStreamGetCtx)},
    {"cuStreamGetFlags", 5050, reinterpret_cast<void *>(cuStreamGetFlags)},
    {"cuStreamWaitEvent", 3020, reinterpret_cast<void *>(cuStreamWaitEvent)},
    {"cuEventCreate", 2000, reinterpret_cast<void *>(cuEventCreate)},
    {"cuEventDestroy", 4000, reinterpret_cast<void *>(cuEventDestroy_v2)},
    {"cuEventRecord", 2000, reinterpret_cast<void *>(cuEventRecord)},
    {"cuEventRecordWithFlags", 11010, reinterpret_cast<void *>(cuEventRecordWithFlags)},
    {"cuEventQuery", 2000, reinterpret_cast<void *>(cuEventQuery)},
    {"cuEventSynchronize", 2000, reinterpret_cast<void *>(cuEventSynchronize)},
    {"cuEventElapsedTime", 2000, reinterpret_cast<void *>(cuEventElapsedTime)},
    {"cuStreamBeginCapture", 10010, reinterpret_cast<void *>(cuStreamBeginCapture_v2)},
    {"cuStreamEndCapture", 10000, reinterpret_cast<void *>(cuStreamEndCapture)},
    {"cuStreamIsCapturing", 10000, reinterpret_cast<void *>(cuStreamIsCapturing)},
    {"cuStreamGetCaptureInfo", 11030, reinterpret_cast<void *>(cuStreamGetCaptureInfo_v2)},
    {"cuStreamGetCaptureInfo", 12030, reinterpret_cast<void *>(cuStreamGetCaptureInfo_v3)},
    {"cuGraphInstantiate", 12000, reinterpret_cast<void *>(cuGraphInstantiateWithFlags)},
    {"cuGraphInstantiateWithFlags", 11040, reinterpret_cast<void *>(cuGraphInstantiateWithFlags)},
    {"cuGraphInstantiateWithParams", 12000, reinterpret_cast<void *>(cuGraphInstantiateWithParams)},
    {"cuGraphLaunch", 10000, reinterpret_cast<void *>(cuGraphLaunch)},
    {"cuGraphUpload", 11010, reinterpret_cast<void *>(cuGraphUpload)},
    {"cuGraphExecDestroy", 10000, reinterpret_cast<void *>(cuGraphExecDestroy)},
    {"cuGraphDestroy", 10000, reinterpret_cast<void *>(cuGraphDestroy)},
    {"cuGraphGetNodes", 10000, reinterpret_cast<void *>(cuGraphGetNodes)},
    {"cuGraphNodeGetType", 10000, reinterpret_cast<void *>(cuGraphNodeGetType)},
    {"cuModuleLoadData", 2000, reinterpret_cast<void *>(cuModuleLoadData)},
    {"cuModuleLoadDataEx", 2010, reinterpret_cast<void *>(cuModuleLoadDataEx)},
    {"cuModuleUnload", 2000, reinterpret_cast<void *>(cuModuleUnload)},
    {"cuModuleGetFunction", 2000, reinterpret_cast<void *>(cuModuleGetFunction)},
    {"cuFuncGetAttribute", 2020, reinterpret_cast<void *>(cuFuncGetAttribute)},
    {"cuLaunchKernel", 4000, reinterpret_cast<void *>(cuLaunchKernel)},
    {"cuGetProcAddress", 11030, reinterpret_cast<void *>(cuGetProcAddress)},
    {"cuGetProcAddress", 12000, reinterpret_cast<void *>(cuGetProcAddress_v2)},
};

}  // namespace sim

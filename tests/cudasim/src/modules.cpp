// Modules are host libraries of kernels, launches are calls of them on a stream.
#include <dlfcn.h>

#include <cstring>

#include "simulator.h"

using namespace sim;

namespace {

constexpr char MAGIC[] = "CUDASIM";  // with its NUL; the library's path follows

CUresult load(Call &call, CUmodule *out, const void *image) {
    if (CUresult error = call.in_context()) return error;
    if (CUresult error = call.unless_capturing()) return error;
    if (!out || !image) return INVALID_VALUE;
    if (std::memcmp(image, MAGIC, sizeof MAGIC)) return INVALID_IMAGE;
    const char *path = static_cast<const char *>(image) + sizeof MAGIC;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        sim::sim().violation(std::string("cuModuleLoadData: ") + dlerror());
        return INVALID_IMAGE;
    }
    auto module = std::make_shared<Module>();
    module->handle = sim::sim().new_handle();
    module->context = call.context;
    module->library = library;  // stays open: work that is still queued may be in it
    sim::sim().modules[module->handle] = module;
    *out = reinterpret_cast<CUmodule>(module->handle);
    return OK;
}

template <class F>
F symbol(void *library, const std::string &name) {
    return reinterpret_cast<F>(dlsym(library, name.c_str()));
}

using Argument = std::vector<std::max_align_t>;  // bytes at an address that suits every type

bool fits(const unsigned grid[3], const unsigned block[3], unsigned shared_bytes) {
    bool some = grid[0] && grid[1] && grid[2] && block[0] && block[1] && block[2];
    return some && grid[0] <= 0x7FFFFFFF && grid[1] <= 65535 && grid[2] <= 65535 && block[2] <= 64 &&
           static_cast<uint64_t>(block[0]) * block[1] * block[2] <= 1024 && shared_bytes <= 48 * 1024;
}

void collect(void *ranges, const void *address, size_t bytes, int is_write) {
    if (bytes)
        static_cast<std::vector<Range> *>(ranges)->push_back(
            {reinterpret_cast<uintptr_t>(address), bytes, is_write != 0});
}

}  // namespace

SIM_API CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    SIM_CALL("cuModuleLoadData");
    return load(call, module, image);
}

SIM_API CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned, int *, void **) {
    SIM_CALL("cuModuleLoadDataEx");
    return load(call, module, image);
}

SIM_API CUresult cuModuleUnload(CUmodule handle) {
    SIM_CALL("cuModuleUnload");
    CUresult error = call.in_context();
    if (error && !is_sticky(error)) return error;
    if (CUresult capturing = call.unless_capturing()) return capturing;
    auto module = call.find(sim::sim().modules, handle, "module");
    if (!module) return INVALID_HANDLE;
    for (uintptr_t function : module->functions) sim::sim().functions.erase(function);
    sim::sim().modules.erase(module->handle);
    return error;
}

SIM_API CUresult cuModuleGetFunction(CUfunction *out, CUmodule handle, const char *name) {
    SIM_CALL("cuModuleGetFunction");
    if (CUresult error = call.in_context()) return error;
    auto module = call.find(sim::sim().modules, handle, "module");
    if (!module) return INVALID_HANDLE;
    if (!out || !name || !*name) return INVALID_VALUE;
    auto function = std::make_shared<Function>();
    function->name = name;
    function->run = symbol<HostKernel>(module->library, function->name + "_host");
    function->ranges = symbol<RangesOf>(module->library, function->name + "_ranges");
    auto bytes = symbol<BytesOf>(module->library, function->name + "_bytes");
    if (!function->run || !function->ranges || !bytes) return NOT_FOUND;
    function->argument_bytes = bytes();
    function->handle = sim::sim().new_handle();
    function->module = module;
    function->context = module->context;
    module->functions.push_back(function->handle);
    sim::sim().functions[function->handle] = function;
    *out = reinterpret_cast<CUfunction>(function->handle);
    return OK;
}

SIM_API CUresult cuFuncGetAttribute(int *value, int which, CUfunction handle) {
    SIM_CALL("cuFuncGetAttribute");
    if (CUresult error = call.in_context()) return error;
    if (!call.find(sim::sim().functions, handle, "function")) return INVALID_HANDLE;
    static const int VALUES[] = {1024, 0, 0, 0, 32, 90, 90, 0, 49152, -1};  // by the driver's numbers
    if (!value || which < 0 || which >= static_cast<int>(sizeof VALUES / sizeof *VALUES))
        return INVALID_VALUE;
    *value = VALUES[which];
    return OK;
}

SIM_API CUresult cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                                CUstream stream_handle, void **params, void **extra) {
    SIM_CALL("cuLaunchKernel");
    std::shared_ptr<Stream> stream;
    if (CUresult error = call.on_stream(stream_handle, stream)) return error;
    auto function = call.find(sim::sim().functions, handle, "function");
    if (!function) return INVALID_HANDLE;
    if (function->context != stream->context || call.context != stream->context) return INVALID_HANDLE;
    struct Shape {
        unsigned grid[3], block[3];
    } shape{{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}};
    if (!fits(shape.grid, shape.block, shared_bytes)) return INVALID_VALUE;
    if (extra) {
        sim::sim().violation("cuLaunchKernel: arguments by `extra` are not simulated");
        return NOT_SUPPORTED;
    }
    if (!params) return INVALID_VALUE;
    auto argument = std::make_shared<Argument>(function->argument_bytes / sizeof(std::max_align_t) + 1);
    std::memcpy(argument->data(), params[0], function->argument_bytes);  // as it is now, like the real one
    void *copied[] = {argument->data()};
    auto work = std::make_shared<Work>();
    work->label = "kernel " + function->name;
    function->ranges(shape.grid, shape.block, copied, collect, &work->ranges);
    work->body = [shape, argument, run = function->run] {
        void *params[] = {argument->data()};
        run(shape.grid, shape.block, params);
        return OK;
    };
    return submit(stream, work);
}

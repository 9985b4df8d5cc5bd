// Graphs once captured: their branches are checked against each other when they are made executable,
// their ranges against all other work at every launch.
#include "simulator.h"

namespace sim {

namespace {

bool overlap(const Range &a, const Range &b, uintptr_t &begin, uintptr_t &end) {
    begin = std::max(a.begin, b.begin);
    end = std::min(a.begin + a.bytes, b.begin + b.bytes);
    return begin < end && (a.write || b.write);
}

void compare(const Work &first, const Work &second) {
    auto verb = [](const Range &range) { return std::string(range.write ? "write" : "read"); };
    uintptr_t begin, end;
    for (auto &a : first.ranges)
        for (auto &b : second.ranges)
            if (overlap(a, b, begin, end))
                sim().races.report("race: " + verb(b) + " by " + second.label + " and " + verb(a) + " by " +
                                   first.label + " in one graph, on " + bytes_of(begin, end - begin) +
                                   ": neither branch waits for the other");
}

void check_branches(const Graph &graph) {
    std::vector<std::vector<bool>> before(graph.nodes.size());
    for (size_t i = 0; i < graph.nodes.size(); ++i) {
        before[i].resize(graph.nodes.size());
        for (size_t earlier : graph.nodes[i].after) {
            before[i][earlier] = true;
            for (size_t j = 0; j < earlier; ++j) before[i][j] = before[i][j] || before[earlier][j];
        }
        for (size_t j = 0; j < i; ++j)
            if (!before[i][j]) compare(*graph.nodes[j].work, *graph.nodes[i].work);
    }
}

CUresult instantiate(Call &call, CUgraphExec *out, CUgraph handle) {
    if (CUresult error = call.in_context()) return error;
    auto graph = call.find(sim().graphs, handle, "graph");
    if (!graph || !out) return INVALID_VALUE;
    check_branches(*graph);
    auto exec = std::make_shared<GraphExec>();
    exec->handle = sim().new_handle();
    for (auto &node : graph->nodes) exec->works.push_back(node.work);
    sim().execs[exec->handle] = exec;
    *out = reinterpret_cast<CUgraphExec>(exec->handle);
    return OK;
}

}  // namespace

}  // namespace sim

using namespace sim;

SIM_API CUresult cuGraphInstantiateWithFlags(CUgraphExec *out, CUgraph graph, unsigned long long) {
    SIM_CALL("cuGraphInstantiate");
    return instantiate(call, out, graph);
}

SIM_API CUresult cuGraphInstantiateWithParams(CUgraphExec *out, CUgraph graph,
                                              GraphInstantiateParams *params) {
    SIM_CALL("cuGraphInstantiateWithParams");
    if (!params) return INVALID_VALUE;
    params->error_node = nullptr;
    CUresult error = instantiate(call, out, graph);
    params->result = error ? 1 : 0;  // CUDA_GRAPH_INSTANTIATE_ERROR
    return error;
}

SIM_API CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
    SIM_CALL("cuGraphLaunch");
    std::shared_ptr<Stream> stream;
    if (CUresult error = call.on_stream(stream_handle, stream)) return error;
    auto exec = call.find(sim::sim().execs, handle, "executable graph");
    if (!exec) return INVALID_VALUE;
    if (stream->capture) {
        sim::sim().violation("cuGraphLaunch into a capture is not simulated");
        return spoil(*stream->capture), NOT_SUPPORTED;
    }
    for (auto &work : exec->works) {
        if (work->context->dead) return CONTEXT_IS_DESTROYED;
        if (work->context->sticky) return work->context->sticky;
    }
    Operation operation;
    if ((operation.wait = exec->last)) join(stream->clock, exec->last->clock);
    advance(stream);
    for (auto &work : exec->works) operation.steps.push_back(prepare(*stream, work, "graph's "));
    operation.record = exec->last = std::make_shared<Token>();
    exec->last->clock = stream->clock;
    push(stream, std::move(operation));
    return OK;
}

SIM_API CUresult cuGraphUpload(CUgraphExec handle, CUstream stream_handle) {
    SIM_CALL("cuGraphUpload");
    std::shared_ptr<Stream> stream;
    if (CUresult error = call.on_stream(stream_handle, stream)) return error;
    return call.find(sim::sim().execs, handle, "executable graph") ? OK : INVALID_VALUE;
}

SIM_API CUresult cuGraphExecDestroy(CUgraphExec handle) {
    SIM_CALL("cuGraphExecDestroy");
    if (CUresult error = call.start()) return error;
    auto exec = call.find(sim::sim().execs, handle, "executable graph");
    if (!exec) return INVALID_VALUE;
    sim::sim().execs.erase(exec->handle);  // launches under way keep their work
    return OK;
}

SIM_API CUresult cuGraphDestroy(CUgraph handle) {
    SIM_CALL("cuGraphDestroy");
    if (CUresult error = call.start()) return error;
    auto graph = call.find(sim::sim().graphs, handle, "graph");
    if (!graph) return INVALID_VALUE;
    sim::sim().graphs.erase(graph->handle);
    return OK;
}

SIM_API CUresult cuGraphGetNodes(CUgraph handle, CUgraphNode *nodes, size_t *count) {
    SIM_CALL("cuGraphGetNodes");
    if (CUresult error = call.start()) return error;
    auto graph = call.find(sim::sim().graphs, handle, "graph");
    if (!graph || !count) return INVALID_VALUE;
    if (!nodes) return *count = graph->nodes.size(), OK;
    size_t given = std::min(*count, graph->nodes.size());
    for (size_t i = 0; i < *count; ++i)
        nodes[i] = i < given ? reinterpret_cast<CUgraphNode>(graph->nodes[i].handle) : nullptr;
    *count = given;
    return OK;
}

SIM_API CUresult cuGraphNodeGetType(CUgraphNode handle, int *type) {
    SIM_CALL("cuGraphNodeGetType");
    if (CUresult error = call.start()) return error;
    if (!type) return INVALID_VALUE;
    for (auto &entry : sim::sim().graphs)
        for (auto &node : entry.second->nodes)
            if (node.handle == reinterpret_cast<uintptr_t>(handle)) return *type = node.work->type, OK;
    return INVALID_VALUE;
}

#include "ops/graph.h"

namespace reft {

constinit Kernel<std::unique_ptr<OpGraph>(Device, FunctionRef<void()>)> record_graph_kernel{
    "record_graph"};

bool has_op_graphs(Device device) { return record_graph_kernel.has(device.type); }

std::unique_ptr<OpGraph> record_graph(Device device, FunctionRef<void()> body) {
  return record_graph_kernel(device, device, body);
}

}  // namespace reft

// Ops recorded once and run again with one launch: what a CUDA graph is.
#pragma once

#include <memory>

#include "base/function_ref.h"
#include "ops/kernel.h"
#include "tensor/device.h"

namespace reft {

// What `body` queued on the device. Tensors that it used must outlive this; temporaries that it
// allocated are kept for it. One thread at a time.
class OpGraph {
 public:
  virtual ~OpGraph() = default;
  // Queues everything again; ordered with the other ops of the device.
  virtual void replay() = 0;
};

bool has_op_graphs(Device device);
// Records what `body` queues; nothing of it runs. `body` must not read device memory on the host.
// Throws Error where the device has no graphs, or when `body` throws.
std::unique_ptr<OpGraph> record_graph(Device device, FunctionRef<void()> body);
extern Kernel<std::unique_ptr<OpGraph>(Device device, FunctionRef<void()> body)>
    record_graph_kernel;

}  // namespace reft

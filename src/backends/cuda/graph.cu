// CUDA graphs.
#include "backends/cuda/common.h"
#include "ops/graph.h"

namespace reft {
namespace {

class CudaOpGraph final : public OpGraph {
 public:
  CudaOpGraph(cudaGraphExec_t exec, cudaStream_t stream) : exec_(exec), stream_(stream) {}
  ~CudaOpGraph() override { cudaGraphExecDestroy(exec_); }

  void replay() override { cuda_check(cudaGraphLaunch(exec_, stream_), "launching a graph"); }

 private:
  cudaGraphExec_t exec_;
  cudaStream_t stream_;
};

std::unique_ptr<OpGraph> record_graph_cuda(Device device, FunctionRef<void()> body) {
  const cudaStream_t stream = cuda_stream(device.index);
  // Relaxed: allocations during the recording are allowed.
  cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "beginning a capture");
  cudaGraph_t graph = nullptr;
  try {
    const GraphMemory kept(device.index);
    body();
  } catch (...) {
    cudaStreamEndCapture(stream, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  cuda_check(cudaStreamEndCapture(stream, &graph), "ending a capture");
  cudaGraphExec_t exec = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  cuda_check(status, "instantiating a graph");
  return std::make_unique<CudaOpGraph>(exec, stream);
}

const RegisterKernel r(record_graph_kernel, DeviceType::kCuda, &record_graph_cuda);

}  // namespace
}  // namespace reft

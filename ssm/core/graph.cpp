#include "ssm/core/graph.h"

#include "ssm/core/cuda.h"

namespace ssm {

struct Graph::Executable {
  cudaGraphExec_t exec = nullptr;
  ~Executable() { cudaGraphExecDestroy(exec); }
};

Graph::Graph(const std::function<void()>& body) {
  const cudaStream_t stream = cuda::stream();
  cudaGraph_t graph = nullptr;
  SSM_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  try {
    body();
  } catch (...) {
    cudaStreamEndCapture(stream, &graph);
    if (graph) cudaGraphDestroy(graph);
    throw;
  }
  SSM_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  auto executable = std::make_shared<Executable>();
  const cudaError_t error = cudaGraphInstantiate(&executable->exec, graph, 0);
  cudaGraphDestroy(graph);
  cuda::check(error, "cudaGraphInstantiate");
  executable_ = executable;
}

void Graph::replay() const { SSM_CUDA_CHECK(cudaGraphLaunch(executable_->exec, cuda::stream())); }

}  // namespace ssm

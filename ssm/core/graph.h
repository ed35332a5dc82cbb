// Graph: work captured from the device's stream once, replayed with one launch. What is captured may not
// allocate from the driver, wait, or copy from the host (an Error); its tensors must live, at
// the same addresses, as long as the graph. In a build without CUDA there is none.
#pragma once

#ifdef SSM_CUDA

#include <functional>
#include <memory>

namespace ssm {

class Graph {
 public:
  // Records what `body` enqueues, without running it.
  explicit Graph(const std::function<void()>& body);
  void replay() const;

 private:
  struct Executable;
  std::shared_ptr<const Executable> executable_;
};

}  // namespace ssm

#endif

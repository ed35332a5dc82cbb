#include "ssm/ops/cuda/column_sums.cuh"
#include "ssm/ops/linear/linear_cuda.h"

namespace ssm::cuda {

void add_column_sums(const Tensor& x, const Tensor& to) {
  dispatch(x.dtype(), "linear_backward", [&](auto zero) {
    using X = decltype(zero);
    add_column_sums<X>(reinterpret_cast<const X*>(x.raw()), x.stride(0), x.size(0), x.size(1),
                       to.data<float>());
  });
}

}  // namespace ssm::cuda

#include "ssm/ops/linear/linear_packed_few.cuh"

namespace ssm::cuda {

template void packed_few_rows<__half>(const Tensor& x, const QuantizedTensor& w, const Tensor& bias,
                                      const Tensor& y);

}  // namespace ssm::cuda

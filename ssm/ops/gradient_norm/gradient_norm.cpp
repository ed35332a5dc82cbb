#include "ssm/ops/gradient_norm/gradient_norm.h"

#include "ssm/ops/dispatch.h"
#include "ssm/ops/gradient_norm/gradient_norm_cpu.h"
#include "ssm/ops/gradient_norm/gradient_norm_cuda.h"

namespace ssm {

GradientNorm gradient_norm(std::span<const Tensor> gradients, float max_norm) {
  SSM_CHECK(!gradients.empty(), "gradient_norm: no gradients");
  const Device device = gradients[0].device();
  for (size_t i = 0; i < gradients.size(); ++i) {
    const Tensor& g = gradients[i];
    SSM_CHECK(g.defined() && g.dtype() == DType::f32 && g.device() == device && g.dense(),
              "gradient_norm: gradient {} is {} {} on {}, expected f32 without gaps on {}", i,
              name_of(g.dtype()), g.shape(), name_of(g.device()), name_of(device));
  }
  SSM_CHECK(max_norm >= 0, "gradient_norm: a largest norm of {}", max_norm);
  const GradientNorm result{Tensor::empty({1}, DType::f32, device), Tensor::empty({1}, DType::f32, device)};
  SSM_DISPATCH(device, gradient_norm(gradients, max_norm, result));
  return result;
}

}  // namespace ssm

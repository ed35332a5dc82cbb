#include "ssm/ops/adamw/adamw.h"

#include "ssm/ops/adamw/adamw_cpu.h"
#include "ssm/ops/adamw/adamw_cuda.h"
#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"

namespace ssm {
namespace {

void check_like(std::string_view name, const Tensor& t, const Tensor& p, bool narrow) {
  SSM_CHECK(t.defined() && t.shape() == p.shape(), "adamw: {} has shape {}, expected {}", name, t.shape(),
            p.shape());
  SSM_CHECK(narrow ? t.dtype() == DType::bf16 || t.dtype() == DType::f16 : t.dtype() == DType::f32,
            "adamw: {} is {}, expected {}", name, name_of(t.dtype()), narrow ? "bf16 or f16" : "f32");
  SSM_CHECK(t.device() == p.device(), "adamw: {} is on {}, p on {}", name, name_of(t.device()),
            name_of(p.device()));
  for (int d = 0; d < p.rank(); ++d) {
    SSM_CHECK(p.size(d) == 1 || t.stride(d) == p.stride(d), "adamw: {} {} does not lie as p does", name,
              t.shape());
  }
}

}  // namespace

void adamw(const AdamW& options, std::span<const AdamWParameter> parameters, const Tensor& grad_scale) {
  SSM_CHECK(options.step >= 1, "adamw: step {}, expected 1 or more", options.step);
  if (parameters.empty()) return;
  const Tensor& first = parameters[0].p;
  for (const auto& [p, g, m, v, narrow] : parameters) {
    SSM_CHECK(p.defined() && p.dtype() == DType::f32 && p.dense(), "adamw: p is not f32 without gaps");
    SSM_CHECK(p.device() == first.device(), "adamw: a parameter is on {}, the first on {}",
              name_of(p.device()), name_of(first.device()));
    check_like("g", g, p, false), check_like("m", m, p, false), check_like("v", v, p, false);
    if (narrow.defined()) check_like("narrow", narrow, p, true);
  }
  if (grad_scale.defined()) check_parameter("adamw", "grad_scale", grad_scale, {1}, first);
  SSM_DISPATCH(first.device(), adamw(options, parameters, grad_scale));
}

}  // namespace ssm

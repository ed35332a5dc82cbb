#include "ssm/ops/linear/linear_step.cuh"

namespace ssm::cuda {
namespace {

// Beyond these the library is faster (linear_cuda_bench): at 16 to 32 rows of a large matrix x, which every
// strip reads, is as much as W.
bool are_few(int64_t T, const Tensor& w) {
  if (T <= 8) return true;
  return w.dtype() != DType::f32 && (T <= 16 || (T <= 32 && w.numel() <= (4 << 20)));
}

template <class X, class Epilogue>
void launch_few(const RowsArgs& a, const InMemory<X>& x, const Epilogue& epilogue) {
  if constexpr (sizeof(X) == 2) {
    if (a.T > 16) return launch_rows<X, 32, 1, 10, 16, 1>(a, x, epilogue);
    if (a.T > 8) return launch_rows<X, 16, 1, 10, 16, 1>(a, x, epilogue);
  }
  launch_eight_rows<X>(a, x, epilogue);
}

bool takes(const Tensor& x, const Tensor& w) {
  return are_few(x.size(0), w) && in_packs(x) && in_packs(w) && w.size(1) < (1 << 30);
}

}  // namespace

bool linear_few_rows(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y) {
  if (!takes(x, w)) return false;
  dispatch(x.dtype(), "linear", [&](auto zero) {
    using X = decltype(zero);
    launch_few(args_of(x.size(0), w), in_memory<X>(x), plain_of<X>(bias, y));
  });
  return true;
}

bool linear_add_few_rows(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& residual) {
  if (!takes(x, w)) return false;
  dispatch(x.dtype(), "linear_add", [&](auto zero) {
    using X = decltype(zero);
    launch_few(args_of(x.size(0), w), in_memory<X>(x), added_to(residual, bias));
  });
  return true;
}

}  // namespace ssm::cuda

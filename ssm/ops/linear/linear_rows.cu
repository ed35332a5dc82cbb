#include "ssm/ops/linear/linear_rows.cuh"

#include "ssm/ops/linear/linear_cuda.h"

namespace ssm::cuda {
namespace {

// Beyond these the library is faster (linear_cuda_bench): at 16 to 32 rows of a large matrix x, which every
// strip reads, is as much as W.
bool are_few(int64_t T, const Tensor& w) {
  if (T <= 8) return true;
  return w.dtype() != DType::f32 && (T <= 16 || (T <= 32 && w.numel() <= (4 << 20)));
}

}  // namespace

bool linear_few_rows(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y) {
  const int64_t T = x.size(0);
  if (!are_few(T, w) || !in_packs(x) || !in_packs(w) || w.size(1) >= (1 << 30)) return false;
  const RowsArgs a = args_of(T, w);
  dispatch(x.dtype(), "linear", [&](auto zero) {
    using X = decltype(zero);
    const Plain<X> plain = plain_of<X>(bias, y);
    const InMemory<X> source = in_memory<X>(x);
    if constexpr (sizeof(X) == 2) {
      if (T > 16) return launch_rows<X, 32, 1, 10, 16, 1>(a, source, plain);
      if (T > 8) return launch_rows<X, 16, 1, 10, 16, 1>(a, source, plain);
    }
    launch_eight_rows<X>(a, source, plain);
  });
  return true;
}

}  // namespace ssm::cuda

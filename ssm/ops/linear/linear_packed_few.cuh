// linear_packed_few_rows for one type of x, each in a file of its own (linear_packed_bf16.cu, ...): there are
// many kernels.
#pragma once

#include "ssm/ops/linear/linear_packed_rows.cuh"

namespace ssm::cuda {

// Of rows as rows_in_packs() gives them.
template <class X>
void packed_few_rows(const Tensor& x, const QuantizedTensor& w, const Tensor& bias, const Tensor& y) {
  const PackedMatrix matrix = matrix_of(w);
  const CardFormat format = card_format(w.format);
  Tensor totals;  // of all rows, where several tiles of them are multiplied at a time
  const auto rows = [&](int64_t from, int64_t most, const auto& launch_tiles) {
    const int64_t T = std::min(most, x.size(0) - from);
    PackedRowsArgs a = args_of(T, matrix);
    if (totals.defined()) a.totals = totals.data<float>() + from * totals.size(1);
    launch_tiles(a, in_memory<X>(x.slice(0, from, from + T)), plain_of<X>(bias, y.slice(0, from, from + T)));
    return from + T;
  };
  int64_t t = 0;
  if constexpr (sizeof(X) == 2) {
    dispatch_common_format(format, [&](auto as) {
      using F = decltype(as);
      if constexpr (F::kHasLow) {
        if (x.size(0) > 8) {
          totals = Tensor::empty({x.size(0), totals_bytes(format, w.shape[1]) / 4}, DType::f32, x.device());
          launch({.grid = dim3(static_cast<unsigned>(x.size(0))),
                  .block = dim3(32, 8),
                  .overlaps_previous = true},
                 linear_packed_totals_kernel<X, F>, reinterpret_cast<const X*>(x.raw()), x.stride(0),
                 args_of(1, matrix).K, static_cast<int>(totals.size(1)), totals.data<float>());
        }
      }
      while (x.size(0) - t > 8) t = rows(t, 32, [](const auto&... a) { launch_packed_rows<X, F, 4>(a...); });
    });
  }
  const auto eights = [&](auto as) {
    while (t < x.size(0))
      t = rows(t, 8, [](const auto&... a) { launch_packed_rows<X, decltype(as), 1>(a...); });
  };
  if (!dispatch_common_format(format, eights) && !dispatch_other_format(format, eights))
    fail("linear: no kernel for {}", name_of(w.format));
}

}  // namespace ssm::cuda

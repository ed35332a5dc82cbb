// Rows with a target are gathered into blocks, so that a prompt that bears no loss costs nothing; a block's
// logits become their own gradient in place.
#include "ssm/ops/linear_cross_entropy/linear_cross_entropy_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "ssm/core/parallel.h"
#include "ssm/ops/linear/linear_cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/linear_cross_entropy/linear_cross_entropy_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ssm/ops/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

// Returns the row's nll. x becomes factor * (softmax(x) - [v = target]) where `gradient` says so.
double loss_row(float* x, int64_t n, int64_t target, float factor, bool gradient) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto rest = [&](int64_t i) { return static_cast<size_t>(std::min(lanes, n - i)); };
  const float at_target = x[target];
  auto highest = hn::Set(d, at_target);
  for (int64_t i = 0; i + lanes <= n; i += lanes) highest = hn::Max(highest, hn::LoadU(d, x + i));
  float maximum = hn::GetLane(hn::MaxOfLanes(d, highest));
  for (int64_t i = n / lanes * lanes; i < n; ++i) maximum = std::max(maximum, x[i]);
  const auto m = hn::Set(d, maximum);
  double total = 0;
  auto bad = hn::Zero(d);        // NaN where a logit is one: exp_f32 and Max may not pass it on
  for (int64_t i = 0; i < n;) {  // f32 partial sums over short runs only
    auto sum = hn::Zero(d);
    for (const int64_t end = std::min(n, i + 64 * lanes); i < end; i += lanes) {
      const auto v = load_n_f32(d, x + i, rest(i));
      bad = hn::Add(bad, hn::Sub(v, v));
      auto e = exp_f32(d, hn::Sub(v, m));
      if (i + lanes > n) e = hn::IfThenElseZero(hn::FirstN(d, rest(i)), e);
      if (gradient) store_n_f32(d, e, x + i, rest(i));
      sum = hn::Add(sum, e);
    }
    total += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
  }
  const float not_a_number = hn::GetLane(hn::SumOfLanes(d, bad));
  if (not_a_number != 0) total = static_cast<double>(not_a_number);
  if (gradient) {
    const auto f = hn::Set(d, static_cast<float>(static_cast<double>(factor) / total));
    for (int64_t i = 0; i < n; i += lanes) {
      store_n_f32(d, hn::Mul(load_n_f32(d, x + i, rest(i)), f), x + i, rest(i));
    }
    x[target] -= factor;
  }
  return static_cast<double>(maximum) - static_cast<double>(at_target) + std::log(total);
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {
HWY_EXPORT(loss_row);

namespace cpu {
namespace {

constexpr int64_t kLogits = int64_t{1} << 24;  // floats of a block, where 64 rows have no more
constexpr int64_t kMostRows = 1024;

// Of the operands' sizes alone: sums over rows must not depend on the threads.
int64_t rows_of_block(int64_t vocab) { return std::clamp<int64_t>(kLogits / vocab / 64 * 64, 64, kMostRows); }

void copy_row(const Tensor& from, int64_t i, const Tensor& to, int64_t j) {
  std::memcpy(to.data<float>() + j * to.stride(0), from.data<float>() + i * from.stride(0),
              static_cast<size_t>(from.size(1)) * sizeof(float));
}

// The first `rows` rows.
Weight first_rows(const Weight& weight, int64_t rows) {
  const auto* packed = std::get_if<QuantizedTensor>(&weight);
  if (packed == nullptr) return std::get<Tensor>(weight).slice(0, 0, rows);
  return packed_view(packed->format, {rows, packed->shape[1]}, packed->bytes.slice(0, 0, rows));
}

void linear_dhidden(const Weight& w, const Tensor& dlogits, const Tensor& dhidden) {
  const auto* packed = std::get_if<QuantizedTensor>(&w);
  if (packed != nullptr) return cpu::linear_dx(*packed, dlogits, dhidden, false);
  cpu::linear_backward({}, std::get<Tensor>(w), dlogits, {.dx = dhidden});
}

}  // namespace

void linear_cross_entropy(const Tensor& hidden, const Weight& weight, const Tensor& targets,
                          const Tensor& row_weights, float scale, int64_t vocab,
                          const LinearCrossEntropyGrads& grads, const LinearCrossEntropy& result) {
  const int64_t T = hidden.size(0), M = hidden.size(1);
  std::vector<int64_t> counted;
  for (int64_t t = 0; t < T; ++t) {
    if (targets.data<int32_t>()[t] >= 0)
      counted.push_back(t);
    else if (grads.dhidden.defined())
      std::fill_n(grads.dhidden.data<float>() + t * grads.dhidden.stride(0), M, 0.0f);
  }
  const auto count = static_cast<int64_t>(counted.size());
  result.count.data<int64_t>()[0] = count;
  if (count == 0) return;
  const int64_t most = std::min(count, rows_of_block(vocab));
  const Tensor all_logits = Tensor::empty({most, vocab}), all_rows = Tensor::empty({most, M});
  const Weight w = first_rows(weight, vocab);
  const bool gradient = grads.dhidden.defined() || grads.dweight.defined();
  std::vector<double> nll(static_cast<size_t>(most));
  double sum = 0;
  for (int64_t begin = 0; begin < count; begin += most) {
    const int64_t rows = std::min(most, count - begin);
    const int64_t* const row = counted.data() + begin;
    const Tensor logits = all_logits.slice(0, 0, rows), x = all_rows.slice(0, 0, rows);
    for (int64_t i = 0; i < rows; ++i) copy_row(hidden, row[i], x, i);
    std::visit([&](const auto& matrix) { cpu::linear(x, matrix, {}, {}, DType::f32, logits); }, w);
    const auto factor = [&](int64_t t) {
      return scale * (row_weights.defined() ? row_weights.data<float>()[t] : 1.0f);
    };
    parallel_for(rows, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        nll[static_cast<size_t>(i)] =
            HWY_DYNAMIC_DISPATCH(loss_row)(logits.data<float>() + i * vocab, vocab,
                                           targets.data<int32_t>()[row[i]], factor(row[i]), gradient);
      }
    });
    for (int64_t i = 0; i < rows; ++i) sum += factor(row[i]) * nll[static_cast<size_t>(i)];
    if (grads.dweight.defined()) {
      cpu::linear_backward(x, {}, logits, {.dweight = grads.dweight.slice(0, 0, vocab)});
    }
    if (grads.dhidden.defined()) {
      linear_dhidden(w, logits, x);
      for (int64_t i = 0; i < rows; ++i) copy_row(x, i, grads.dhidden, row[i]);
    }
  }
  result.loss.data<double>()[0] = sum;
}

}  // namespace cpu
}  // namespace ssm
#endif  // HWY_ONCE

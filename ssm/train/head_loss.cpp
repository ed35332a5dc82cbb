#include "ssm/train/head_loss.h"

#include "ssm/ops/elementwise/elementwise.h"
#include "ssm/ops/gradient.h"
#include "ssm/ops/linear_cross_entropy/linear_cross_entropy.h"

namespace ssm::train {
namespace {

constexpr int64_t kWidthMultiple = 8;  // 16 bytes of a 16-bit type: what cuBLASLt wants of rows

// [a, scale b], and zeros up to a round width.
Tensor beside(const Tensor& a, const Tensor& b, float scale) {
  const int64_t M = a.size(1), end = M + b.size(1);
  const int64_t width = (end + kWidthMultiple - 1) / kWidthMultiple * kWidthMultiple;
  const Tensor both = Tensor::zeros({a.size(0), width}, a.dtype(), a.device());
  add_scaled(both.slice(1, 0, M), a, 1.0f);
  add_scaled(both.slice(1, M, end), b, scale);
  return both;
}

void add_to_gradient(const Tensor& parameter, const Tensor& gradient, float scale) {
  if (const Tensor sum = gradient_sum(parameter); sum.defined()) add_scaled(sum, gradient, scale);
}

Tensor adapted(const CausalLm& model, const nn::Lora& lora, const Tensor& hidden, const Tensor& targets,
               float scale, int64_t vocab, DType compute, Tape* tape) {
  Tensor inner;  // [T, rank]
  {
    const RecordScope recording(tape);
    inner = lora.inner(hidden, compute);
  }
  const Tensor &head = dense(model.head(), "training the head"), &B = dense(lora.B, "LoRA");
  const int64_t M = hidden.size(1), end = M + lora.rank;
  const Tensor states = beside(hidden, inner, 1.0f);
  const Tensor matrix = beside(head.to(states.dtype()), B.to(states.dtype()), lora.scale);
  LinearCrossEntropyGrads grads;
  if (tape) {
    grads = {.dhidden = Tensor::empty(states.shape(), states.dtype(), states.device()),
             .dweight = Tensor::zeros(matrix.shape(), DType::f32, states.device())};
  }
  const Tensor loss = linear_cross_entropy(states, matrix, targets, {}, scale, vocab, grads).loss;
  if (!tape) return loss;
  add_to_gradient(head, grads.dweight.slice(1, 0, M), 1.0f);
  add_to_gradient(B, grads.dweight.slice(1, M, end), lora.scale);
  give_gradient(inner, grads.dhidden.slice(1, M, end));
  give_gradient(hidden, grads.dhidden.slice(1, 0, M));
  tape->backward();
  return loss;
}

}  // namespace

Tensor head_loss(const CausalLm& model, const Tensor& hidden, const Tensor& targets, float scale,
                 int64_t vocab, DType compute, Tape* tape) {
  if (model.head_lora()) {
    return adapted(model, *model.head_lora(), hidden, targets, scale, vocab, compute, tape);
  }
  const Tensor& head = dense(model.head(), "training the head");
  LinearCrossEntropyGrads grads;
  if (tape) {
    if (wants_gradient(hidden)) {
      grads.dhidden = Tensor::empty(hidden.shape(), hidden.dtype(), hidden.device());
    }
    grads.dweight = gradient_sum(head);
  }
  const Tensor loss = linear_cross_entropy(hidden, head, targets, {}, scale, vocab, grads).loss;
  if (tape && wants_gradient(hidden)) tape->backward(hidden, grads.dhidden);
  return loss;
}

}  // namespace ssm::train

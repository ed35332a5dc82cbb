// Tape: records what ops did to tensors whose gradient is wanted, and runs it backwards (reverse-mode
// differentiation, first order). Ops are recorded in the order they ran, so the reverse is a valid order and
// no graph is kept.
//
// Gradients have the type and strides of their tensors, or f32 for parameters. A view shares its base's
// gradient: the gradient of xz.slice(1, 0, E) is columns [0, E) of xz's, so an op's backward writes into
// place and slices cost nothing.
//
//   Tape tape;
//   tape.watch(weight);                         // a parameter: its gradient is added to over many
//   backward()s
//   {
//     RecordScope recording(&tape);
//     y = linear(x, weight);
//   }
//   tape.backward(y, dy);                       // empties the tape
//   gradient_of(weight)
//
// A tape belongs to one thread.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "ssm/core/tensor.h"

namespace ssm {

// The gradient of one tensor, as far as it has arrived.
struct TapeNode {
  Tensor geometry;  // shape, strides and address of the tensor, whose memory it does not keep
  DType dtype = DType::f32;
  Tensor gradient;                                   // undefined until something arrived
  std::vector<std::pair<int64_t, int64_t>> arrived;  // columns [begin, end) that hold values, disjoint
};

// A place for the gradient of a tensor. `adds`: values have arrived there before, add to them; otherwise its
// bytes are not initialised and all of them must be written. Undefined: nobody wants it.
struct GradientTarget {
  Tensor tensor;
  bool adds = false;
};

// Of an operand, inside a backward function. The tensor must be a recorded one, or a view: all of it, or
// columns of a [T, C].
GradientTarget gradient_target(const Tensor& x);
// The same for a parameter whose backward adds: holds zeros at first.
Tensor gradient_sum(const Tensor& parameter);
// Hands over a whole gradient of x that is ready; its memory is shared until somebody adds to it. False:
// values have arrived before (or it is a view), nothing was done.
bool gradient_hand_over(const Tensor& x, const Tensor& gradient);
bool wants_gradient(const Tensor& x);

// The gradient of a whole tensor, undefined when nothing has arrived. What did not arrive is zero.
Tensor gradient_of(const Tensor& x);
// Before the next step: the gradient counts as not arrived, its memory is kept.
void clear_gradient(const Tensor& x);

class Tape {
 public:
  // Called with the gradients of the outputs, in order; undefined where none arrived.
  using Backward = std::function<void(std::span<const Tensor> gradients)>;

  Tape() = default;
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  void record(std::span<Tensor* const> outputs, Backward backward);
  // Runs everything that was recorded in reverse, with `gradient` as that of `output`; the tape is empty
  // then.
  void backward(const Tensor& output, const Tensor& gradient);
  // The same with gradients that were given before (gradient_hand_over, gradient_target).
  void backward();
  bool empty() const { return steps_.empty(); }

 private:
  struct Step {
    std::vector<std::shared_ptr<TapeNode>> outputs;
    Backward backward;
  };
  std::vector<Step> steps_;
};

// Asks for the gradient of `x`, in f32: a parameter, or an input.
void watch(Tensor& x, DType dtype = DType::f32);

// Where ops of this thread record; null: nowhere. Backward functions run with none.
Tape* current_tape();

class RecordScope {
 public:
  explicit RecordScope(Tape* tape);
  ~RecordScope();
  RecordScope(const RecordScope&) = delete;
  RecordScope& operator=(const RecordScope&) = delete;

 private:
  Tape* previous_;
};

// For ops: whether a result of these operands is to be recorded.
template <class... Operands>
bool records(const Operands&... operands) {
  return current_tape() != nullptr && (wants_gradient(operands) || ...);
}

// For ops with one result: records `backward(dy)` and returns y.
template <class F>
Tensor record(Tensor y, F&& backward) {
  Tensor* outputs[] = {&y};
  current_tape()->record(outputs, [f = std::forward<F>(backward)](std::span<const Tensor> dy) { f(dy[0]); });
  return y;
}

// Runs `f` without recording and keeps only its inputs: backward() runs it again, recording, when the
// gradient comes by (Chen et al. 2016, "Training deep nets with sublinear memory cost"). f must compute the
// same both times. Parameters that f uses get their gradients as ever.
std::vector<Tensor> checkpoint(std::vector<Tensor> inputs,
                               std::function<std::vector<Tensor>(std::span<const Tensor> inputs)> f);

}  // namespace ssm

#include "ssm/autograd/tape.h"

#include <algorithm>
#include <utility>

namespace ssm {
namespace {

thread_local Tape* tape_of_thread = nullptr;

using Columns = std::pair<int64_t, int64_t>;

int64_t width_of(const TapeNode& node) {
  return node.geometry.rank() == 2 && node.geometry.contiguous() ? node.geometry.size(1)
                                                                 : node.geometry.numel();
}

// `x` in the memory of the node's gradient.
Tensor view_of(const TapeNode& node, const Tensor& x) {
  const std::ptrdiff_t bytes = x.raw() - node.geometry.raw();
  const auto element = static_cast<std::ptrdiff_t>(size_of(x.dtype()));
  return node.gradient.as_strided(x.shape(), x.strides(), bytes / element);
}

// The columns of the node's tensor that a view covers: all, or a range of a [T, C].
Columns columns_of(const TapeNode& node, const Tensor& x) {
  const Tensor& base = node.geometry;
  const int64_t width = width_of(node);
  if (x.raw() == base.raw() && x.numel() == base.numel()) return {0, width};
  const std::ptrdiff_t offset = (x.raw() - base.raw()) / static_cast<std::ptrdiff_t>(size_of(x.dtype()));
  SSM_CHECK(base.rank() == 2 && base.contiguous() && x.rank() == 2 && x.size(0) == base.size(0) &&
                (x.size(0) <= 1 || x.stride(0) == width) && (x.size(1) <= 1 || x.stride(1) == 1) &&
                offset >= 0 && offset + x.size(1) <= width,
            "tape: a view {} of a tensor {} is neither all of it nor columns of it", x.shape(), base.shape());
  return {offset, offset + x.size(1)};
}

void zero(const TapeNode& node, Columns columns) {
  const int64_t width = width_of(node);
  const Tensor& g = node.gradient;
  if (columns == Columns{0, width}) {
    zero_bytes(g.raw(), g.device(), g.bytes());
    return;
  }
  const size_t element = size_of(g.dtype());
  zero_rows(g.raw() + static_cast<size_t>(columns.first) * element, g.device(), g.size(0),
            static_cast<size_t>(width) * element,
            static_cast<size_t>(columns.second - columns.first) * element);
}

// Zeroes what has not arrived of `columns`, which then has.
void complete(TapeNode& node, Columns columns) {
  std::sort(node.arrived.begin(), node.arrived.end());
  std::vector<Columns> missing;
  int64_t at = columns.first;
  for (const Columns& have : node.arrived) {
    if (have.first > at && at < columns.second) missing.push_back({at, std::min(have.first, columns.second)});
    at = std::max(at, have.second);
  }
  if (at < columns.second) missing.push_back({at, columns.second});
  for (const Columns& gap : missing) {
    zero(node, gap);
    node.arrived.push_back(gap);
  }
}

void begin_gradient(TapeNode& node) {
  if (node.gradient.defined()) return;
  SSM_CHECK(node.geometry.dense(), "a tensor {} that has gaps has no gradient", node.geometry.shape());
  node.gradient = Tensor::empty_like(node.geometry, node.dtype, node.geometry.device());
}

Tensor whole_gradient(TapeNode& node) {
  if (node.arrived.empty()) return {};
  complete(node, {0, width_of(node)});
  return node.gradient;
}

}  // namespace

bool wants_gradient(const Tensor& x) { return x.tape_node() != nullptr; }

void watch(Tensor& x, DType dtype) {
  auto node = std::make_shared<TapeNode>();
  x.set_tape_node(nullptr);
  node->geometry = x.borrowed();
  node->dtype = dtype;
  x.set_tape_node(std::move(node));
}

GradientTarget gradient_target(const Tensor& x) {
  if (!wants_gradient(x)) return {};
  TapeNode& node = *x.tape_node();
  const Columns columns = columns_of(node, x);
  begin_gradient(node);
  const bool touched = std::any_of(node.arrived.begin(), node.arrived.end(), [&](const Columns& have) {
    return have.first < columns.second && columns.first < have.second;
  });
  if (!touched) {
    node.arrived.push_back(columns);
    return {view_of(node, x), false};
  }
  complete(node, columns);
  // Somebody else still reads this memory (gradient_hand_over): they keep theirs.
  if (!node.gradient.sole_owner()) node.gradient = node.gradient.clone();
  return {view_of(node, x), true};
}

Tensor gradient_sum(const Tensor& parameter) {
  if (!wants_gradient(parameter)) return {};
  TapeNode& node = *parameter.tape_node();
  begin_gradient(node);
  complete(node, {0, width_of(node)});
  return view_of(node, parameter);
}

bool gradient_hand_over(const Tensor& x, const Tensor& gradient) {
  if (!wants_gradient(x)) return true;
  TapeNode& node = *x.tape_node();
  const Columns all{0, width_of(node)};
  if (!node.arrived.empty() || columns_of(node, x) != all || gradient.dtype() != node.dtype ||
      !gradient.contiguous() || !node.geometry.contiguous()) {
    return false;
  }
  SSM_CHECK(gradient.shape() == x.shape(), "tape: a gradient {} of a tensor {}", gradient.shape(), x.shape());
  node.gradient = gradient;
  node.gradient.set_tape_node(nullptr);
  node.arrived.push_back(all);
  return true;
}

Tensor gradient_of(const Tensor& x) {
  SSM_CHECK(wants_gradient(x), "tape: no gradient was asked of this tensor {}", x.shape());
  return whole_gradient(*x.tape_node());
}

void clear_gradient(const Tensor& x) {
  if (wants_gradient(x)) x.tape_node()->arrived.clear();
}

void Tape::record(std::span<Tensor* const> outputs, Backward backward) {
  Step step;
  for (Tensor* y : outputs) {
    if (y->defined()) watch(*y, y->dtype());
    step.outputs.push_back(y->tape_node());
  }
  step.backward = std::move(backward);
  steps_.push_back(std::move(step));
}

void Tape::backward(const Tensor& output, const Tensor& gradient) {
  SSM_CHECK(wants_gradient(output), "tape: the output {} was not recorded", output.shape());
  SSM_CHECK(gradient_hand_over(output, gradient), "tape: the gradient of {} has arrived before",
            output.shape());
  backward();
}

void Tape::backward() {
  const RecordScope none(nullptr);
  while (!steps_.empty()) {
    Step step = std::move(steps_.back());
    steps_.pop_back();
    std::vector<Tensor> gradients;
    bool any = false;
    for (const std::shared_ptr<TapeNode>& node : step.outputs) {
      gradients.push_back(node ? whole_gradient(*node) : Tensor());
      any = any || gradients.back().defined();
      if (node) node->gradient = {};
    }
    if (any) step.backward(gradients);
  }
}

Tape* current_tape() { return tape_of_thread; }

RecordScope::RecordScope(Tape* tape) : previous_(std::exchange(tape_of_thread, tape)) {}
RecordScope::~RecordScope() { tape_of_thread = previous_; }

std::vector<Tensor> checkpoint(std::vector<Tensor> inputs,
                               std::function<std::vector<Tensor>(std::span<const Tensor> inputs)> f) {
  Tape* tape = current_tape();
  if (tape == nullptr) return f(inputs);
  std::vector<Tensor> outputs;
  {
    const RecordScope none(nullptr);
    outputs = f(inputs);
  }
  std::vector<Tensor*> recorded;
  for (Tensor& y : outputs) recorded.push_back(&y);
  tape->record(recorded, [inputs = std::move(inputs), f = std::move(f)](std::span<const Tensor> gradients) {
    std::vector<Tensor> again = inputs;
    for (Tensor& x : again) {
      if (wants_gradient(x)) watch(x, x.tape_node()->dtype);
    }
    Tape inner;
    std::vector<Tensor> ys;
    {
      const RecordScope recording(&inner);
      ys = f(again);
    }
    for (size_t i = 0; i < ys.size(); ++i) {
      if (gradients[i].defined() && wants_gradient(ys[i])) gradient_hand_over(ys[i], gradients[i]);
    }
    inner.backward();
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!wants_gradient(inputs[i])) continue;
      const Tensor gradient = gradient_of(again[i]);
      if (!gradient.defined()) continue;
      SSM_CHECK(gradient_hand_over(inputs[i], gradient),
                "checkpoint: an input {} has a gradient from elsewhere too", inputs[i].shape());
    }
  });
  return outputs;
}

}  // namespace ssm

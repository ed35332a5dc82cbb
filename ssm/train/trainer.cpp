#include "ssm/train/trainer.h"

#include <algorithm>
#include <cmath>

#include "ssm/autograd/tape.h"
#include "ssm/core/rng.h"
#include "ssm/ops/adamw/adamw.h"
#include "ssm/ops/elementwise/elementwise.h"
#include "ssm/ops/gradient_norm/gradient_norm.h"
#include "ssm/train/head_loss.h"

namespace ssm::train {
namespace {

double value_of(const Tensor& scalar) {
  const Tensor t = scalar.to(kCpu);
  return t.dtype() == DType::f64 ? t.data<double>()[0] : static_cast<double>(t.data<float>()[0]);
}

Tensor ids_on(const std::vector<int32_t>& ids, Device device) {
  return Tensor::from_values<int32_t>(ids, {std::ssize(ids)}).to(device);
}

// Makes the scale not finite where the loss, f64 on a CPU and f32 on a card, is not.
void spoil(const Tensor& scale, const Tensor& loss) {
  if (loss.dtype() == DType::f64) {
    scale.data<float>()[0] += static_cast<float>(0.0 * loss.data<double>()[0]);
    return;
  }
  const auto as_matrix = [](const Tensor& scalar) { return scalar.as_strided({1, 1}, {1, 1}, 0); };
  add_scaled(as_matrix(scale), as_matrix(loss), 0.0f);
}

// The tokens with a target.
struct Learned {
  std::vector<int32_t> places, targets;
};

Learned learned_of(const Batch& batch) {
  Learned learned;
  for (size_t t = 0; t < batch.targets.size(); ++t) {
    if (batch.targets[t] < 0) continue;
    learned.places.push_back(static_cast<int32_t>(t));
    learned.targets.push_back(batch.targets[t]);
  }
  return learned;
}

bool any(const std::vector<uint8_t>& flags) {
  return std::any_of(flags.begin(), flags.end(), [](uint8_t flag) { return flag != 0; });
}

}  // namespace

void TrainerOptions::check() const {
  schedule.check();
  SSM_CHECK(beta1 >= 0 && beta1 < 1, "beta1 is {}, expected 0 to 1", beta1);
  SSM_CHECK(beta2 >= 0 && beta2 < 1, "beta2 is {}, expected 0 to 1", beta2);
  SSM_CHECK(eps > 0, "eps is {}, expected more than 0", eps);
  SSM_CHECK(weight_decay >= 0, "weight decay is {}, expected 0 or more", weight_decay);
  SSM_CHECK(clip >= 0, "clip is {}, expected 0 or more", clip);
  SSM_CHECK(average >= 0 && average < 1, "average is {}, expected 0 to 1", average);
}

Trainer::Trainer(CausalLm& model, int64_t vocab, Device device, DType compute, TrainerOptions options)
    : model_(model),
      vocab_(vocab),
      device_(device),
      compute_(compute),
      options_((options.check(), std::move(options))),
      parameters_(model, device, compute, options_.trained, options_.average > 0),
      dropout_(model) {
  SSM_CHECK(!parameters_.all().empty(), "nothing is to be trained");
  model_.recompute_layers(options_.recompute_layers);
}

Gradients Trainer::gradients(std::span<const Batch> batches) { return read(enqueue(batches)); }

Trainer::Enqueued Trainer::enqueue(std::span<const Batch> batches) {
  const ArenaScope scope(&arena_);
  Enqueued now;
  Gradients& result = now.of;
  for (const Batch& batch : batches) {
    result.inputs += std::ssize(batch.ids);
    result.targets += batch.learned;
  }
  SSM_CHECK(result.targets > 0, "step {}: no token of its batch has a target", done_ + 1);
  parameters_.clear_gradients();
  const float scale = 1.0f / static_cast<float>(result.targets);
  for (size_t i = 0; i < batches.size(); ++i) {
    const auto key = philox4x32(options_.seed, static_cast<uint64_t>(done_), i);
    dropout_.set(uint64_t{key[1]} << 32 | key[0]);
    now.losses.push_back(forward_backward(batches[i], scale));
  }

  for (TrainedParameter& p : parameters_.all()) {
    const Tensor gradient = gradient_of(p.used);
    if (!gradient.defined()) continue;
    result.gradients.push_back(gradient);
    result.parameters.push_back(&p);
  }
  const GradientNorm norm = gradient_norm(result.gradients, static_cast<float>(options_.clip));
  now.norm = norm.norm;
  result.scale = norm.scale;
  for (const Tensor& loss : now.losses) spoil(result.scale, loss);
  return now;
}

Gradients Trainer::read(Enqueued enqueued) {
  const ArenaScope scope(&arena_);
  Gradients result = std::move(enqueued.of);
  for (const Tensor& loss : enqueued.losses) result.loss += value_of(loss);
  result.norm = value_of(enqueued.norm);
  check_finite(result.loss, result.norm);
  return result;
}

StepResult Trainer::step(std::span<const Batch> batches) {
  start(batches);
  return finish();
}

// The update is enqueued before anyone has seen the loss: by a scale that is not finite it changes nothing
// (adamw.h).
void Trainer::start(std::span<const Batch> batches) {
  SSM_CHECK(!started_, "step {} has been started", done_ + 1);
  const ArenaScope scope(&arena_);
  Enqueued now = enqueue(batches);
  const Gradients& g = now.of;
  for (const bool decayed : {true, false}) {
    std::vector<AdamWParameter> group;
    for (size_t i = 0; i < g.parameters.size(); ++i) {
      const TrainedParameter& p = *g.parameters[i];
      if (p.decays != decayed) continue;
      const bool copied = p.used.raw() != p.value.raw();
      group.push_back({p.value, g.gradients[i], p.m, p.v, copied ? p.used : Tensor()});
    }
    adamw({.lr = static_cast<float>(options_.schedule.at(done_)),
           .beta1 = static_cast<float>(options_.beta1),
           .beta2 = static_cast<float>(options_.beta2),
           .eps = static_cast<float>(options_.eps),
           .weight_decay = static_cast<float>(decayed ? options_.weight_decay : 0.0),
           .step = done_ + 1},
          group, g.scale);
  }
  started_ = std::move(now);
}

StepResult Trainer::finish() {
  SSM_CHECK(started_, "no step has been started");
  const Gradients g = read(*std::exchange(started_, std::nullopt));
  if (options_.average > 0) {
    for (const TrainedParameter* p : g.parameters) {
      move_average(p->average, p->value, static_cast<float>(1.0 - options_.average));
    }
  }
  const double lr = options_.schedule.at(done_);
  ++done_;
  return {.loss = g.loss, .grad_norm = g.norm, .lr = lr, .inputs = g.inputs, .targets = g.targets};
}

Tensor Trainer::forward_backward(const Batch& batch, float scale) {
  const bool carries = any(batch.continues) || any(batch.carries_on);
  const ModelState rows = carries ? begin_states(batch) : ModelState();
  Tensor loss = loss_of(batch, rows, scale, true);
  if (carries) keep_states(batch, rows);
  return loss;
}

double Trainer::evaluate(const Batch& batch) {
  const ArenaScope scope(&arena_);
  dropout_.set(std::nullopt);
  return value_of(loss_of(batch, {}, 1.0f, false));
}

Tensor Trainer::loss_of(const Batch& batch, const ModelState& state, float scale, bool gradient) {
  const SequenceBatch sequences = SequenceBatch::in_order(batch.lengths);
  const Tensor ids = ids_on(batch.ids, device_);
  const bool few =
      4 * batch.learned <= 3 * std::ssize(batch.ids);  // answers, say: the head is for them alone
  const Learned learned = few ? learned_of(batch) : Learned{{}, batch.targets};
  const Tensor targets = ids_on(learned.targets, device_);
  Tape tape;
  Tensor hidden;
  {
    const RecordScope recording(gradient ? &tape : nullptr);
    model_.prepare();
    hidden = model_.hidden(ids, sequences, state);
    if (few) hidden = take_rows(hidden, ids_on(learned.places, device_));
  }
  return head_loss(model_, hidden, targets, scale, vocab_, compute_, gradient ? &tape : nullptr);
}

// Rows of a state for this batch's sequences: those that go on take what their stream kept.
ModelState Trainer::begin_states(const Batch& batch) {
  carry_streams(*std::max_element(batch.streams.begin(), batch.streams.end()) + 1);
  ModelState rows = model_.make_state(std::ssize(batch.lengths));
  for (size_t b = 0; b < batch.lengths.size(); ++b) {
    if (batch.continues[b]) copy_slot(carried_, batch.streams[b], rows, static_cast<int64_t>(b));
  }
  return rows;
}

void Trainer::keep_states(const Batch& batch, const ModelState& rows) {
  for (size_t b = 0; b < batch.lengths.size(); ++b) {
    if (batch.carries_on[b]) copy_slot(rows, static_cast<int64_t>(b), carried_, batch.streams[b]);
  }
}

// The first parameter in the model's order whose gradient is not finite: the tape runs backwards, so the last
// of them is where it began.
void Trainer::check_finite(double loss, double norm) {
  if (std::isfinite(loss) && std::isfinite(norm)) return;
  std::string where;
  for (const TrainedParameter& p : parameters_.all()) {
    const Tensor gradient = gradient_of(p.used);
    if (!gradient.defined()) continue;
    const Tensor one[] = {gradient};
    if (!std::isfinite(value_of(gradient_norm(one, 0.0f).norm))) where = p.name;
  }
  fail("step {}: the loss is {}, the gradient's norm {}{}; nothing was updated", done_ + 1, loss, norm,
       where.empty() ? "" : fmt::format(" (not finite in {})", where));
}

void Trainer::for_each_moment(const std::function<void(const std::string& name, const Tensor& tensor)>& f) {
  for (TrainedParameter& p : parameters_.all()) {
    f("m." + p.name, p.m);
    f("v." + p.name, p.v);
    if (p.average.defined()) f("average." + p.name, p.average);
  }
  for (size_t layer = 0; layer < carried_.size(); ++layer) {
    carried_[layer].for_each([&](std::string_view name, const Tensor& t) {
      if (t.numel() > 0) f(fmt::format("carried.{}.{}", layer, name), t);
    });
  }
}

void Trainer::carry_streams(int64_t streams) {
  SSM_CHECK(
      !model_.has_attention(),
      "rows that go on from step to step need a state of fixed size, and attention's grows with the text: "
      "take packed rows or whole documents");
  if (carried_streams_ >= streams) return;
  const ArenaScope heap(nullptr);
  const ModelState before = std::exchange(carried_, model_.make_state(streams));
  for (int64_t s = 0; s < carried_streams_; ++s) copy_slot(before, s, carried_, s);
  carried_streams_ = streams;
}

void Trainer::restored(int64_t steps_done) {
  done_ = steps_done;
  parameters_.refresh_copies();
  model_.prepare();
}

}  // namespace ssm::train

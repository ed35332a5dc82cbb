#include "ssm/runtime/stepper.h"

#include <bit>

#include "ssm/core/mailbox.h"
#include "ssm/ops/attention/attention.h"

namespace ssm {

struct Stepper::Batch {
  Batch(int64_t size, bool attends)
      : ids(Tensor::empty({size}, DType::i32, kCuda)),
        slots(Tensor::empty({size}, DType::i32, kCuda)),
        rows(Tensor::empty({size, static_cast<int64_t>(sizeof(SamplingRow))}, DType::u8, kCuda)),
        positions(attends ? Tensor::empty({size}, DType::i64, kCuda) : Tensor()),
        sequences(SequenceBatch::steps_on_device(slots, positions)),
        mailbox(size) {}

  int64_t size() const { return ids.size(0); }

  Tensor ids, slots, rows, positions;  // of the card: [B] i32, [B] i32, [B, sizeof(SamplingRow)] u8, [B] i64
  SequenceBatch sequences;
  Mailbox mailbox;  // brings the ids to the host
  std::optional<Graph> graph;
  std::vector<Input> expected;  // what the card holds now, for a batch that goes on
};

Stepper::Stepper(const LoadedModel& model, StatePool& pool, const Tensor& seen)
    : model_(model), pool_(pool), seen_(seen) {}

Stepper::~Stepper() = default;

void Stepper::enqueue(const Batch& batch) const {
  ArenaScope scope(&arena_);
  const Tensor h = model_.model->hidden(batch.ids, batch.sequences, pool_.state());
  sample(model_.model->logits(h), model_.usable_vocab(), batch.rows, seen_, batch.ids);
  if (batch.positions.defined()) advance(batch.positions);
}

Stepper::Batch& Stepper::batch_for(int64_t size) {
  std::unique_ptr<Batch>& batch = batches_[size];
  if (batch) return *batch;
  auto made = std::make_unique<Batch>(size, pool_.attention_layers() > 0);
  upload({}, *made);
  enqueue(*made);  // on the scratch slot: what is made at first use must not fall into the capture
  made->graph.emplace([&] {
    enqueue(*made);
    made->mailbox.enqueue(made->ids);
  });
  batch = std::move(made);
  return *batch;
}

void Stepper::upload(std::span<const Input> inputs, Batch& batch) const {
  batch.expected.assign(inputs.begin(), inputs.end());
  std::vector<int32_t> ids, slots;
  std::vector<SamplingParams> params;
  std::vector<int64_t> positions, kept;
  for (const Input& input : inputs) {
    ids.push_back(input.id);
    slots.push_back(input.next.slot);
    params.push_back(input.next.params);
    positions.push_back(input.next.position);
    kept.push_back(pool_.kept_tokens(input.next.slot));
  }
  const auto size = static_cast<size_t>(batch.size());
  ids.resize(size, 0);
  slots.resize(size, pool_.scratch_slot());
  params.resize(size, {.temperature = 0});
  positions.resize(size, 0);
  kept.resize(size, -1);
  const Tensor rows = sampling_rows(params, slots, positions);
  copy_bytes(batch.ids.raw(), kCuda, ids.data(), kCpu, batch.ids.bytes());
  copy_bytes(batch.slots.raw(), kCuda, slots.data(), kCpu, batch.slots.bytes());
  copy_bytes(batch.rows.raw(), kCuda, rows.raw(), kCpu, batch.rows.bytes());
  if (batch.positions.defined())
    copy_bytes(batch.positions.raw(), kCuda, kept.data(), kCpu, batch.positions.bytes());
}

std::vector<int32_t> Stepper::step(std::span<const Input> inputs) {
  const auto count = inputs.size();
  const auto size = static_cast<int64_t>(std::bit_ceil(count));
  Batch& batch = batch_for(size);
  if (!std::equal(inputs.begin(), inputs.end(), batch.expected.begin(), batch.expected.end())) {
    upload(inputs, batch);
  }
  pool_.update_tables();
  batch.graph->replay();
  std::vector<int32_t> ids(count);
  batch.mailbox.take(ids);
  for (size_t i = 0; i < count; ++i) {
    batch.expected[i].id = ids[i];
    ++batch.expected[i].next.position;
    pool_.added(inputs[i].next.slot);
  }
  return ids;
}

}  // namespace ssm

#include "ssm/ops/sampling/sampling.h"

#include <cmath>
#include <new>

#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"
#include "ssm/ops/sampling/sampling_cpu.h"
#include "ssm/ops/sampling/sampling_cuda.h"

namespace ssm {

void check(const SamplingParams& p) {
  SSM_CHECK(p.temperature >= 0 && std::isfinite(p.temperature),
            "temperature is {}, expected a number from 0 on", p.temperature);
  SSM_CHECK(p.top_k >= 0, "top_k is {}, expected a count, or 0 for off", p.top_k);
  SSM_CHECK(p.top_p >= 0 && p.top_p <= 1, "top_p is {}, expected a number between 0 and 1", p.top_p);
  SSM_CHECK(p.min_p >= 0 && p.min_p < 1, "min_p is {}, expected a number from 0 to below 1", p.min_p);
  SSM_CHECK(p.repetition_penalty > 0 && std::isfinite(p.repetition_penalty),
            "repetition_penalty is {}, expected a number above 0", p.repetition_penalty);
}

Tensor sampling_rows(std::span<const SamplingParams> params, std::span<const int32_t> slots,
                     std::span<const int64_t> positions) {
  SSM_CHECK(params.size() == positions.size() && (slots.empty() || slots.size() == params.size()),
            "sampling: {} parameters, {} slots and {} positions", params.size(), slots.size(),
            positions.size());
  Tensor rows = Tensor::zeros({std::ssize(params), sizeof(SamplingRow)}, DType::u8);  // padding too
  for (size_t b = 0; b < params.size(); ++b) {
    check(params[b]);
    SSM_CHECK(slots.empty() || slots[b] >= 0, "sampling: slot {}", slots[b]);
    auto* row = new (rows.raw() + b * sizeof(SamplingRow)) SamplingRow;
    row->params = params[b];
    row->slot = slots.empty() ? 0 : slots[b];
    row->position = positions[b];
  }
  return rows;
}

void sample(const Tensor& logits, int64_t vocab, const Tensor& rows, const Tensor& seen, const Tensor& ids) {
  SSM_CHECK(logits.defined() && logits.rank() == 2, "sampling: logits have shape {}, expected [B, V]",
            logits.shape());
  const int64_t B = logits.size(0), V = logits.size(1);
  const Device device = logits.device();
  check_first("sampling", "logits", logits, {B, V});
  SSM_CHECK(logits.dtype() == DType::f32, "sampling: logits are {}, expected f32", name_of(logits.dtype()));
  SSM_CHECK(vocab >= 1 && vocab <= V && vocab <= kMostSampled, "sampling: a vocabulary of {} in logits {}",
            vocab, logits.shape());
  SSM_CHECK(rows.defined() && rows.shape() == Shape({B, sizeof(SamplingRow)}) && rows.dtype() == DType::u8 &&
                rows.contiguous() && rows.device() == device,
            "sampling: rows are {} {} on {}, expected contiguous u8 [{}, {}] on {}", name_of(rows.dtype()),
            rows.shape(), name_of(rows.device()), B, sizeof(SamplingRow), name_of(device));
  SSM_CHECK(ids.defined() && ids.shape() == Shape{B} && ids.dtype() == DType::i32 && ids.contiguous() &&
                ids.device() == device,
            "sampling: ids are {} {} on {}, expected contiguous i32 [{}] on {}", name_of(ids.dtype()),
            ids.shape(), name_of(ids.device()), B, name_of(device));
  if (seen.defined()) {
    SSM_CHECK(seen.rank() == 2 && seen.size(1) == V && seen.dtype() == DType::u8 && seen.contiguous() &&
                  seen.device() == device,
              "sampling: seen is {} {} on {}, expected contiguous u8 [S, {}] on {}", name_of(seen.dtype()),
              seen.shape(), name_of(seen.device()), V, name_of(device));
  }
  SSM_DISPATCH(device, sample(logits, vocab, rows, seen, ids));
}

Tensor sample(const Tensor& logits, int64_t vocab, std::span<const SamplingParams> params, const Tensor& seen,
              std::span<const int32_t> slots, std::span<const int64_t> positions) {
  SSM_CHECK(!seen.defined() || slots.size() == params.size(), "sampling: {} slots for {} rows", slots.size(),
            params.size());
  const Tensor rows = sampling_rows(params, slots, positions).to(logits.device());
  Tensor ids = Tensor::empty({std::ssize(params)}, DType::i32, logits.device());
  sample(logits, vocab, rows, seen, ids);
  return ids;
}

}  // namespace ssm

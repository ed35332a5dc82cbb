#include "ssm/ops/sampling/sampling.h"

#include <cmath>

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

Tensor sample(const Tensor& logits, int64_t vocab, std::span<const SamplingParams> params, const Tensor& seen,
              std::span<const int32_t> slots, std::span<const int64_t> positions) {
  SSM_CHECK(logits.defined() && logits.rank() == 2, "sampling: logits have shape {}, expected [B, V]",
            logits.shape());
  const int64_t B = logits.size(0), V = logits.size(1);
  check_first("sampling", "logits", logits, {B, V});
  SSM_CHECK(logits.dtype() == DType::f32, "sampling: logits are {}, expected f32", name_of(logits.dtype()));
  SSM_CHECK(vocab >= 1 && vocab <= V && vocab <= INT32_MAX, "sampling: a vocabulary of {} in logits {}",
            vocab, logits.shape());
  SSM_CHECK(std::ssize(params) == B && std::ssize(positions) == B,
            "sampling: {} parameters and {} positions for {} rows", params.size(), positions.size(), B);
  for (const SamplingParams& p : params) {
    check(p);
    SSM_CHECK(seen.defined() || p.repetition_penalty == 1,
              "sampling: a repetition penalty of {} without `seen`", p.repetition_penalty);
  }
  if (seen.defined()) {
    SSM_CHECK(seen.rank() == 2 && seen.size(1) == V && seen.dtype() == DType::u8 && seen.contiguous(),
              "sampling: seen is {} {}, expected contiguous u8 [S, {}]", name_of(seen.dtype()), seen.shape(),
              V);
    SSM_CHECK(std::ssize(slots) == B, "sampling: {} slots for {} rows", slots.size(), B);
    for (const int32_t slot : slots) {
      SSM_CHECK(slot >= 0 && slot < seen.size(0), "sampling: slot {} of {}", slot, seen.size(0));
    }
  }
  Tensor result = Tensor::empty({B}, DType::i32, logits.device());
  SSM_DISPATCH(logits.device(), sample(logits, vocab, params, seen, slots, positions, result));
  return result;
}

}  // namespace ssm

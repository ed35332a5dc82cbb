#include "ssm/runtime/score.h"

#include <cmath>
#include <limits>

#include "ssm/ops/cross_entropy/cross_entropy.h"
#include "ssm/runtime/sequence_runner.h"

namespace ssm {
namespace {

constexpr int64_t kLogitRowsCpu = 64, kLogitRowsCuda = 1024;  // of the head at a time: V is large

}  // namespace

void score(const LoadedModel& loaded, std::span<const int32_t> ids,
           const std::function<void(const TokenScore&)>& visit) {
  const CausalLm& model = *loaded.model;
  const int64_t vocab = loaded.usable_vocab(), total = static_cast<int64_t>(ids.size());
  for (int64_t i = 0; i < total; ++i) {
    const int32_t id = ids[static_cast<size_t>(i)];
    SSM_CHECK(id >= 0 && id < vocab, "token {} at position {} is outside the vocabulary of {}", id, i, vocab);
  }
  const Device device = model.device();
  const int64_t logit_rows = device.is_cuda() ? kLogitRowsCuda : kLogitRowsCpu;
  StatePool pool(model, 1, loaded.state, loaded.kv_bytes);
  SequenceRunner runner(model, pool);
  Arena arena;
  float next_logprob = std::numeric_limits<float>::quiet_NaN();
  runner.read_all({pool.acquire(), ids}, [&](int64_t begin, const Tensor& hidden) {
    for (int64_t row = 0; row < hidden.size(0); row += logit_rows) {
      ArenaScope scope(&arena);
      const int64_t rows = std::min(logit_rows, hidden.size(0) - row);
      std::vector<int32_t> targets;
      for (int64_t i = begin + row + 1; i <= begin + row + rows; ++i) {
        targets.push_back(i < total ? ids[static_cast<size_t>(i)] : -1);
      }
      const CrossEntropy result =
          cross_entropy(model.logits(hidden.slice(0, row, row + rows)),
                        Tensor::from_values<int32_t>(targets, {rows}).to(device), vocab);
      const Tensor nll = result.nll.to(kCpu), argmax = result.argmax.to(kCpu);
      for (int64_t i = 0; i < rows; ++i) {
        SSM_CHECK(!std::isnan(nll.data<float>()[i]), "the scores after token {} are not finite",
                  begin + row + i);
        visit({begin + row + i, next_logprob, argmax.data<int32_t>()[i]});
        next_logprob = -nll.data<float>()[i];
      }
    }
  });
}

}  // namespace ssm

#include "ssm/runtime/divergence.h"

#include <algorithm>
#include <cmath>

#include "ssm/core/parallel.h"
#include "ssm/runtime/sequence_runner.h"

namespace ssm {
namespace {

constexpr int64_t kLogitRows = 64;  // at a time: vocabularies are large

// What one row of both models' logits says.
struct Row {
  double original_nll = 0, nll = 0, kl = 0;
  bool same_best = false;
};

// log(sum exp) of a row.
double log_sum(std::span<const float> logits) {
  const auto most = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x) - most);
  return most + std::log(sum);
}

Row row_of(std::span<const float> p, std::span<const float> q, size_t target) {
  const double p_sum = log_sum(p), q_sum = log_sum(q);
  Row row{.original_nll = p_sum - static_cast<double>(p[target]),
          .nll = q_sum - static_cast<double>(q[target])};
  for (size_t v = 0; v < p.size(); ++v) {
    const double log_p = static_cast<double>(p[v]) - p_sum, log_q = static_cast<double>(q[v]) - q_sum;
    row.kl += std::exp(log_p) * (log_p - log_q);
  }
  row.same_best =
      std::max_element(p.begin(), p.end()) - p.begin() == std::max_element(q.begin(), q.end()) - q.begin();
  return row;
}

class Comparer {
 public:
  Comparer(const LoadedModel& original, const LoadedModel& other, std::span<const int32_t> ids)
      : original_(*original.model), other_(*other.model), vocab_(original.usable_vocab()), ids_(ids) {}

  // Hidden states of the tokens from `begin` on.
  void add(int64_t begin, const Tensor& p_hidden, const Tensor& q_hidden) {
    const int64_t predicting = std::min(p_hidden.size(0), std::ssize(ids_) - 1 - begin);
    for (int64_t first = 0; first < predicting; first += kLogitRows) {
      const int64_t last = std::min(predicting, first + kLogitRows);
      const Tensor p = original_.logits(p_hidden.slice(0, first, last)),
                   q = other_.logits(q_hidden.slice(0, first, last));
      std::vector<Row> rows(static_cast<size_t>(last - first));
      parallel_for(last - first, 1, [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i) {
          const auto target = static_cast<size_t>(ids_[static_cast<size_t>(begin + first + i + 1)]);
          rows[static_cast<size_t>(i)] = row_of(used(p, i), used(q, i), target);
        }
      });
      for (const Row& row : rows) add(row);
    }
  }

  Divergence result() const {
    const auto predicted = static_cast<double>(std::ssize(ids_) - 1);
    Divergence mean = sum_;
    mean.tokens = std::ssize(ids_);
    for (double* x : {&mean.original_nll, &mean.nll, &mean.kl, &mean.same_best}) *x /= predicted;
    return mean;
  }

 private:
  std::span<const float> used(const Tensor& logits, int64_t row) const {
    return {logits.data<float>() + row * logits.stride(0), static_cast<size_t>(vocab_)};
  }
  void add(const Row& row) {
    SSM_CHECK(std::isfinite(row.kl) && std::isfinite(row.nll) && std::isfinite(row.original_nll),
              "scores are not finite");
    sum_.original_nll += row.original_nll;
    sum_.nll += row.nll;
    sum_.kl += row.kl;
    sum_.largest_kl = std::max(sum_.largest_kl, row.kl);
    sum_.same_best += row.same_best ? 1 : 0;
  }

  const CausalLm &original_, &other_;
  int64_t vocab_;
  std::span<const int32_t> ids_;
  Divergence sum_;
};

}  // namespace

double Divergence::original_perplexity() const { return std::exp(original_nll); }
double Divergence::perplexity() const { return std::exp(nll); }

Divergence divergence(const LoadedModel& original, const LoadedModel& other, std::span<const int32_t> ids,
                      const std::function<void(int64_t)>& progress) {
  const int64_t vocab = original.usable_vocab();
  SSM_CHECK(vocab == other.usable_vocab(), "vocabularies of {} and {} tokens", vocab, other.usable_vocab());
  SSM_CHECK(ids.size() >= 2, "{} tokens: nothing to predict", ids.size());
  SSM_CHECK(!original.device.is_cuda() && !other.device.is_cuda(), "models are compared on a CPU");
  for (size_t i = 0; i < ids.size(); ++i)
    SSM_CHECK(ids[i] >= 0 && ids[i] < vocab, "token {} at position {} is outside the vocabulary of {}",
              ids[i], i, vocab);
  StatePool p_pool(*original.model, 1, DType::f32, original.kv_bytes);
  StatePool q_pool(*other.model, 1, DType::f32, other.kv_bytes);
  SequenceRunner p_runner(*original.model, p_pool), q_runner(*other.model, q_pool);
  const int32_t q_slot = q_pool.acquire();
  Comparer comparer(original, other, ids);
  p_runner.read_all({p_pool.acquire(), ids}, [&](int64_t begin, const Tensor& p_hidden) {
    const auto piece = ids.subspan(static_cast<size_t>(begin), static_cast<size_t>(p_hidden.size(0)));
    q_runner.read_all({q_slot, piece},
                      [&](int64_t, const Tensor& q_hidden) { comparer.add(begin, p_hidden, q_hidden); });
    if (progress) progress(begin + p_hidden.size(0));
  });
  return comparer.result();
}

}  // namespace ssm

#include "apps/ssm/bench_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "apps/ssm/output.h"
#include "ssm/ops/simd/kernel_target.h"
#include "ssm/runtime/state_pool.h"

namespace ssm::app {
namespace {

class CostVisitor final : public nn::Visitor {
 public:
  explicit CostVisitor(const ModuleNames& names) : names_(names) {}
  ModelCost cost;

 protected:
  void on_weight(const std::string& name, Weight& weight, const Shape& shape) override {
    const bool embeddings = name == names_.embeddings + ".weight", head = name == names_.head + ".weight";
    if (embeddings) {
      embedding_parameters_ = shape.numel();
      embedding_bytes_ = bytes_of(weight);
    } else {
      (head ? cost.head_parameters : cost.layer_parameters) += shape.numel();
      cost.step_bytes += bytes_of(weight);
    }
  }
  void on_tensor(const std::string&, Tensor& tensor, const Shape&, nn::Storage) override {
    cost.step_bytes += tensor.bytes();
  }

 public:
  // Tied: the embeddings are the head. Otherwise a step reads one row of them.
  void finish(bool tied) {
    if (!tied) return;
    cost.head_parameters = embedding_parameters_;
    cost.step_bytes += embedding_bytes_;
  }

 private:
  const ModuleNames& names_;
  int64_t embedding_parameters_ = 0;
  size_t embedding_bytes_ = 0;
};

// NaN for what was not measured: a decode of no tokens, say.
double ratio(double a, double b) { return a > 0 && b > 0 ? a / b : NAN; }

}  // namespace

ModelCost cost_of(LoadedModel& model) {
  CostVisitor visitor(model.model->names());
  model.model->visit(visitor);
  visitor.finish(model.model->tied());
  const StatePool one(*model.model, 1, model.state);
  visitor.cost.state_bytes = one.bytes_per_slot();
  visitor.cost.kv_bytes = one.kv_bytes_per_token();
  return visitor.cost;
}

void BenchReport::print(bool json) const {
  const auto B = static_cast<double>(batch);
  const double prompt_rate = ratio(B * static_cast<double>(prompt_tokens), first_token);
  const double decode_rate = ratio(B * static_cast<double>(new_tokens - 1), decode);
  const double prompt_limit = ratio(gemm_rate, 2.0 * static_cast<double>(cost.layer_parameters));
  const double kv_bytes =  // in the middle of the text
      static_cast<double>(cost.kv_bytes) *
      (static_cast<double>(prompt_tokens) + static_cast<double>(new_tokens) / 2);
  const double step_bytes =
      static_cast<double>(cost.step_bytes) + B * (2 * static_cast<double>(cost.state_bytes) + kv_bytes);
  const double step_operations = 2 * B * static_cast<double>(cost.layer_parameters + cost.head_parameters);
  const double byte_time = step_bytes / read_bandwidth, gemm_time = step_operations / gemm_rate;
  const double decode_limit = ratio(B, std::max(byte_time, gemm_time));
  const char* bound = byte_time >= gemm_time ? "bandwidth" : "gemm";
  if (json) {
    return print_json({{"model", model},
                       {"weights", weights},
                       {"stored_dtype", stored_dtype},
                       {"compute_dtype", compute_dtype},
                       {"state_dtype", state_dtype},
                       {"device", device},
                       {"card", card},
                       {"parameters", parameters},
                       {"batch", batch},
                       {"prompt_tokens", prompt_tokens},
                       {"new_tokens", new_tokens},
                       {"repeats", repeats},
                       {"threads", threads},
                       {"cpu_kernels", kernel_target()},
                       {"prompt_tokens_per_second", finite_or_null(prompt_rate)},
                       {"decode_tokens_per_second", finite_or_null(decode_rate)},
                       {"total_seconds", finite_or_null(total)},
                       {"load_seconds", finite_or_null(load)},
                       {"first_token_seconds", finite_or_null(first_token)},
                       {"tokens_each_second", each_second},
                       {"peak_memory_bytes", peak_memory},
                       {"card_memory_bytes", card_memory},
                       {"weight_bytes_per_step", cost.step_bytes},
                       {"state_bytes_per_sequence", cost.state_bytes},
                       {"kv_bytes_per_token", cost.kv_bytes},
                       {"read_bandwidth", finite_or_null(read_bandwidth)},
                       {"gemm_rate", finite_or_null(gemm_rate)},
                       {"prompt_limit_tokens_per_second", finite_or_null(prompt_limit)},
                       {"prompt_fraction", finite_or_null(ratio(prompt_rate, prompt_limit))},
                       {"decode_limit_tokens_per_second", finite_or_null(decode_limit)},
                       {"decode_fraction", finite_or_null(ratio(decode_rate, decode_limit))},
                       {"decode_bound", bound}});
  }
  Output& out = standard_output();
  const std::string where = card.empty() ? fmt::format("{} threads, {}", threads, kernel_target()) : card;
  out.write(fmt::format("{}: {:.1f} M parameters, {} weights in {}, computed in {}, states in {}, {}\n",
                        model, static_cast<double>(parameters) / 1e6, weights, stored_dtype, compute_dtype,
                        state_dtype, where));
  out.write(fmt::format("batch {}, prompt {} tokens, {} new; median of {}\n\n", batch, prompt_tokens,
                        new_tokens, repeats));
  out.write(fmt::format("prompt       {:10.1f} tok/s  {:5.1f} % of {:.1f} (GEMM rate)\n", prompt_rate,
                        100 * ratio(prompt_rate, prompt_limit), prompt_limit));
  if (new_tokens > 1) {
    out.write(fmt::format("decode       {:10.1f} tok/s  {:5.1f} % of {:.1f} ({})\n", decode_rate,
                          100 * ratio(decode_rate, decode_limit), decode_limit,
                          byte_time >= gemm_time ? "read bandwidth" : "GEMM rate"));
  }
  out.write(fmt::format("total        {:10.3f} s\nfirst token  {:10.3f} s\nload         {:10.3f} s\n", total,
                        first_token, load));
  out.write(fmt::format("peak memory  {:10.1f} MiB\n", static_cast<double>(peak_memory) / (1 << 20)));
  if (card_memory > 0)
    out.write(fmt::format("card memory  {:10.1f} MiB\n", static_cast<double>(card_memory) / (1 << 20)));
  out.write(fmt::format("machine      {:10.1f} GB/s {}, {:.1f} GFLOP/s in {}\n", read_bandwidth / 1e9,
                        card.empty() ? "read" : "copied", gemm_rate / 1e9, compute_dtype));
}

}  // namespace ssm::app

#include "apps/ssm/quantize_report.h"

#include <fmt/format.h>

#include <algorithm>

#include "apps/ssm/output.h"

namespace ssm::app {
namespace {

struct Sizes {
  int64_t parameters = 0;
  size_t stored = 0, bytes = 0;

  double bits() const { return 8 * static_cast<double>(bytes) / static_cast<double>(parameters); }
};

Sizes sizes_of(const std::vector<QuantizedEntry>& tensors) {
  Sizes sizes;
  for (const QuantizedEntry& t : tensors) {
    sizes.parameters += t.shape.numel();
    sizes.stored += t.stored_bytes;
    sizes.bytes += t.bytes;
  }
  return sizes;
}

double change(const Divergence& d) { return d.perplexity() / d.original_perplexity() - 1; }

}  // namespace

nlohmann::ordered_json QuantizeReport::json() const {
  const Sizes sizes = sizes_of(tensors);
  nlohmann::ordered_json out{{"source", source},
                             {"target", target},
                             {"type", type},
                             {"calibrated", calibrated},
                             {"stored_bytes", sizes.stored},
                             {"bytes", sizes.bytes},
                             {"bits_per_weight", sizes.bits()},
                             {"tensors", nlohmann::ordered_json::array()}};
  for (const QuantizedEntry& t : tensors) {
    out["tensors"].push_back({{"name", t.name},
                              {"shape", std::vector<int64_t>(t.shape.begin(), t.shape.end())},
                              {"stored", t.stored},
                              {"type", t.type},
                              {"stored_bytes", t.stored_bytes},
                              {"bytes", t.bytes},
                              {"error", t.error}});
  }
  if (text) {
    out["text"] = {{"tokens", text->tokens},
                   {"original_perplexity", finite_or_null(text->original_perplexity())},
                   {"perplexity", finite_or_null(text->perplexity())},
                   {"perplexity_change", finite_or_null(change(*text))},
                   {"kl_divergence", text->kl},
                   {"largest_kl_divergence", text->largest_kl},
                   {"same_best_token", text->same_best}};
  }
  return out;
}

std::string QuantizeReport::table() const {
  size_t widest = 6;
  for (const QuantizedEntry& t : tensors) widest = std::max(widest, t.name.size());
  std::string out = fmt::format("{:<{}}  {:>16}  {:<8} {:<15} {:>12}  {:>8}\n", "tensor", widest, "shape",
                                "from", "to", "bytes", "error");
  for (const QuantizedEntry& t : tensors) {
    const std::string error = t.error > 0 ? fmt::format("{:.3f} %", 100 * t.error) : "-";
    out += fmt::format("{:<{}}  {:>16}  {:<8} {:<15} {:>12}  {:>8}\n", t.name, widest,
                       fmt::format("{}", t.shape), t.stored, t.type, t.bytes, error);
  }
  const Sizes sizes = sizes_of(tensors);
  out += fmt::format("\n{} to {}{}: {:.1f} MB to {:.1f} MB, {:.2f} bits a weight\n", source, type,
                     calibrated ? ", calibrated" : "", static_cast<double>(sizes.stored) / 1e6,
                     static_cast<double>(sizes.bytes) / 1e6, sizes.bits());
  if (text) {
    out += fmt::format(
        "on {} tokens: perplexity {:.4f}, was {:.4f} ({:+.3f} %); KL divergence {:.3g} nats, at most {:.3g}; "
        "the same "
        "best token {:.2f} %\n",
        text->tokens, text->perplexity(), text->original_perplexity(), 100 * change(*text), text->kl,
        text->largest_kl, 100 * text->same_best);
  }
  return out;
}

}  // namespace ssm::app

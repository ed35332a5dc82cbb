#include "ssm/runtime/calibrate.h"

#include "ssm/runtime/sequence_runner.h"

namespace ssm {
namespace {

using Moments = std::map<std::string, std::shared_ptr<nn::ColumnMoments>>;

// Hands every Linear its moments of `all`, or takes them away where `all` has none.
class Watcher final : public nn::Visitor {
 public:
  Watcher(Moments& all, bool on) : all_(all), on_(on) {}

 protected:
  void on_linear(const std::string& module, nn::Linear& linear) override {
    linear.moments = on_ ? all_[module] = std::make_shared<nn::ColumnMoments>() : nullptr;
  }
  void on_weight(const std::string&, Weight&, const Shape&) override {}
  void on_tensor(const std::string&, Tensor&, const Shape&, nn::Storage) override {}

 private:
  Moments& all_;
  bool on_;
};

}  // namespace

std::map<std::string, std::vector<float>, std::less<>> column_importance(const LoadedModel& loaded,
                                                                         std::span<const int32_t> ids,
                                                                         const OnProgress& progress) {
  SSM_CHECK(!ids.empty(), "nothing to calibrate with: the text is empty");
  CausalLm& model = *loaded.model;
  Moments moments;
  Watcher watch(moments, true), leave(moments, false);
  nn::ColumnMoments head;  // of the hidden states themselves: logits of each token would cost much more
  StatePool pool(model, 1, DType::f32, loaded.kv_bytes);
  SequenceRunner runner(model, pool);
  model.visit(watch);
  try {
    runner.read_all({pool.acquire(), ids}, [&](int64_t begin, const Tensor& hidden) {
      head.add(hidden);
      if (progress) progress(begin + hidden.size(0), std::ssize(ids));
    });
  } catch (...) {
    model.visit(leave);
    throw;
  }
  model.visit(leave);
  std::map<std::string, std::vector<float>, std::less<>> importance;
  for (const auto& [module, seen] : moments) {
    if (std::vector<float> means = seen->means(); !means.empty())
      importance[module + ".weight"] = std::move(means);
  }
  importance[(model.tied() ? model.names().embeddings : model.names().head) + ".weight"] = head.means();
  return importance;
}

}  // namespace ssm

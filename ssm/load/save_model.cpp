#include "ssm/load/save_model.h"

#include "ssm/io/checkpoint_writer.h"
#include "ssm/load/tokenizer.h"

namespace ssm {
namespace {

class Lister final : public nn::Visitor {
 public:
  Lister(DType stored, const ParameterOverride& override) : stored_(stored), override_(override) {}
  std::vector<io::LazyTensor> tensors;

 protected:
  void on_weight(const std::string& name, Weight& weight, const Shape& shape) override {
    add(name, dense(weight, "saving in float"), shape, stored_);
  }
  void on_tensor(const std::string& name, Tensor& tensor, const Shape& shape, nn::Storage) override {
    add(name, tensor, shape, DType::f32);
  }

 private:
  void add(const std::string& name, const Tensor& own, const Shape& shape, DType dtype) {
    const Tensor better = override_ ? override_(name) : Tensor();
    const Tensor value = better.defined() ? better : own;
    tensors.push_back({name, dtype, shape, [value, dtype] { return value.to(kCpu).row_major().to(dtype); }});
  }

  DType stored_;
  const ParameterOverride& override_;
};

}  // namespace

std::vector<io::LazyTensor> lazy_parameters(CausalLm& model, DType stored,
                                            const ParameterOverride& override) {
  Lister lister(stored, override);
  model.visit(lister);
  return std::move(lister.tensors);
}

void save_model(const std::filesystem::path& folder, CausalLm& model, const nlohmann::json& config,
                DType stored, const std::filesystem::path& tokenizer_folder,
                const ParameterOverride& override) {
  io::write_checkpoint(folder, config, stored, lazy_parameters(model, stored, override));
  if (!tokenizer_folder.empty()) copy_tokenizer(tokenizer_folder, folder);
}

}  // namespace ssm

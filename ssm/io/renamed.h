// A WeightSource under other names: one map of names for a layout.
#pragma once

#include <map>

#include "ssm/core/error.h"
#include "ssm/io/bytes.h"
#include "ssm/io/weight_source.h"

namespace ssm::io {

class RenamedSource : public WeightSource {
 public:
  // Throws Error where two tensors of the source get the same name.
  RenamedSource(std::unique_ptr<WeightSource> source, std::string (*rename)(std::string_view))
      : source_(std::move(source)) {
    for (const std::string& name : source_->names()) {
      const auto [at, is_new] = file_name_.emplace(rename(name), name);
      SSM_CHECK(is_new, "{} and {} are the same tensor", source_->describe(name), printable(at->second));
    }
  }
  std::optional<Tensor> find(std::string_view name) const override {
    const auto found = file_name_.find(name);
    return found == file_name_.end() ? std::nullopt : source_->find(found->second);
  }
  std::optional<QuantizedTensor> find_packed(std::string_view name) const override {
    const auto found = file_name_.find(name);
    return found == file_name_.end() ? std::nullopt : source_->find_packed(found->second);
  }
  std::vector<std::string> names() const override {
    std::vector<std::string> result;
    result.reserve(file_name_.size());
    for (const auto& [name, in_file] : file_name_) result.push_back(name);
    return result;
  }
  std::string describe(std::string_view name) const override {
    const auto found = file_name_.find(name);
    return source_->describe(found == file_name_.end() ? name : found->second);
  }

 private:
  std::unique_ptr<WeightSource> source_;
  std::map<std::string, std::string, std::less<>> file_name_;
};

}  // namespace ssm::io

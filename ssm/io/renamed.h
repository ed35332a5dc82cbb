// A WeightSource under other names: one map of names for a layout.
#pragma once

#include <functional>
#include <map>

#include "ssm/core/error.h"
#include "ssm/io/bytes.h"
#include "ssm/io/weight_source.h"

namespace ssm::io {

class RenamedSource : public WeightSource {
 public:
  // Throws Error where two tensors of the source get the same name.
  RenamedSource(std::shared_ptr<const WeightSource> source,
                const std::function<std::string(std::string_view)>& rename)
      : source_(std::move(source)) {
    for (const std::string& name : source_->names()) {
      const auto [at, is_new] = file_name_.emplace(rename(name), name);
      SSM_CHECK(is_new, "{} and {} are the same tensor", source_->describe(name), printable(at->second));
    }
  }
  std::optional<Tensor> find(std::string_view name) const override {
    const std::string* in_file = name_in_file(name);
    return in_file ? source_->find(*in_file) : std::nullopt;
  }
  std::optional<QuantizedTensor> find_packed(std::string_view name) const override {
    const std::string* in_file = name_in_file(name);
    return in_file ? source_->find_packed(*in_file) : std::nullopt;
  }
  std::vector<std::string> names() const override {
    std::vector<std::string> result;
    result.reserve(file_name_.size());
    for (const auto& [name, in_file] : file_name_) result.push_back(name);
    return result;
  }
  std::string describe(std::string_view name) const override {
    const std::string* in_file = name_in_file(name);
    return source_->describe(in_file ? *in_file : name);
  }

 protected:
  const std::string* name_in_file(std::string_view name) const {  // null: no such tensor
    const auto found = file_name_.find(name);
    return found == file_name_.end() ? nullptr : &found->second;
  }

 private:
  std::shared_ptr<const WeightSource> source_;
  std::map<std::string, std::string, std::less<>> file_name_;
};

}  // namespace ssm::io

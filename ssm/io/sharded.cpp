#include "ssm/io/sharded.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "ssm/io/json.h"
#include "ssm/io/mapped_file.h"
#include "ssm/io/safetensors.h"
#include "ssm/io/torch_zip.h"

namespace ssm::io {
namespace {

class ShardedSource : public WeightSource {
 public:
  explicit ShardedSource(const std::filesystem::path& index);

  std::optional<Tensor> find(std::string_view name) const override {
    const auto found = owner_.find(name);
    return found == owner_.end() ? std::nullopt : found->second->find(name);
  }
  std::optional<QuantizedTensor> find_packed(std::string_view name) const override {
    const auto found = owner_.find(name);
    return found == owner_.end() ? std::nullopt : found->second->find_packed(name);
  }
  std::vector<std::string> names() const override {
    std::vector<std::string> result;
    result.reserve(owner_.size());
    for (const auto& [name, shard] : owner_) result.push_back(name);
    return result;
  }
  std::string describe(std::string_view name) const override {
    const auto found = owner_.find(name);
    return found == owner_.end() ? fmt::format("{}: tensor {}", index_, printable(name))
                                 : found->second->describe(name);
  }

 private:
  std::string index_;
  std::vector<std::unique_ptr<WeightSource>> shards_;
  std::map<std::string, const WeightSource*, std::less<>> owner_;
};

std::unique_ptr<WeightSource> open_shard(const std::filesystem::path& path) {
  if (path.extension() == ".safetensors") return SafetensorsFile::open(path);
  return TorchFile::open(path);
}

ShardedSource::ShardedSource(const std::filesystem::path& path) : index_(printable(path.string())) {
  const nlohmann::json index = parse_json(map_file(path).text(), index_);
  SSM_CHECK(index.is_object() && index.contains("weight_map"), "{}: weight_map is missing", index_);
  const nlohmann::json& map = index["weight_map"];
  SSM_CHECK(map.is_object() && !map.empty(), "{}: weight_map is {}, not an object of tensor names", index_,
            shown(map));
  std::map<std::string, std::vector<std::string>> tensors_of;
  for (const auto& [tensor, file] : map.items()) {
    SSM_CHECK(file.is_string() && is_plain_file_name(file.get_ref<const std::string&>()),
              "{}: weight_map: {}: {} is not the plain name of a file in the same folder", index_,
              printable(tensor), shown(file));
    tensors_of[file.get<std::string>()].push_back(tensor);
  }
  for (const auto& [file, tensors] : tensors_of) {
    const std::filesystem::path shard_path = path.parent_path() / file;
    std::error_code ignored;
    SSM_CHECK(std::filesystem::exists(shard_path, ignored), "{}: weight_map: {}: the file {} is missing",
              index_, printable(tensors.front()), printable(file));
    shards_.push_back(open_shard(shard_path));
    std::vector<std::string> held = shards_.back()->names();
    std::sort(held.begin(), held.end());
    for (const std::string& tensor : tensors) {
      SSM_CHECK(std::binary_search(held.begin(), held.end(), tensor),
                "{}: weight_map: tensor {} is not in {}", index_, printable(tensor), printable(file));
      owner_.emplace(tensor, shards_.back().get());
    }
  }
}

}  // namespace

bool is_plain_file_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == name.npos;
}

std::unique_ptr<WeightSource> open_sharded(const std::filesystem::path& index) {
  return std::make_unique<ShardedSource>(index);
}

}  // namespace ssm::io

#include "ssm/io/packed_folder.h"

#include <algorithm>

#include "ssm/core/error.h"
#include "ssm/io/bytes.h"
#include "ssm/io/json.h"

namespace ssm::io {
namespace {

using nlohmann::json;

constexpr const char* kMethod = "ssm.cpp";
constexpr int64_t kVersion = 1, kLongest = int64_t{1} << 31;

bool is_whole(const json& value, int64_t low, int64_t high) {
  return value.is_number_integer() && value >= low && value <= high;
}

PackedEntry entry_of(const json& value, const std::string& where) {
  SSM_CHECK(value.is_object(), "{} is {}, not an object", where, shown(value));
  const json type = value.value("type", json()), group = value.value("group", json()),
             shape = value.value("shape", json());
  SSM_CHECK(type.is_string(), "{}: type is {}", where, shown(type));
  SSM_CHECK(group.is_null() || is_whole(group, 1, 128), "{}: group is {}", where, shown(group));
  const std::optional<QuantFormat> format =
      quant_format(type.get_ref<const std::string&>(), group.is_null() ? 0 : group.get<int64_t>());
  SSM_CHECK(format, "{}: there is no type {} of group {}", where, shown(type), shown(group));
  SSM_CHECK(shape.is_array() && shape.size() == 2 && is_whole(shape[0], 1, kLongest) &&
                is_whole(shape[1], 1, kLongest),
            "{}: shape is {}, not two sizes", where, shown(shape));
  const PackedEntry entry{*format, {shape[0].get<int64_t>(), shape[1].get<int64_t>()}};
  SSM_CHECK(ssm::fits(entry.format, entry.shape[1]), "{}: rows of {} weights cannot be stored as {}", where,
            entry.shape[1], name_of(entry.format));
  return entry;
}

class PackedSource final : public WeightSource {
 public:
  PackedSource(std::unique_ptr<WeightSource> source, PackedEntries entries)
      : source_(std::move(source)), entries_(std::move(entries)) {
    std::vector<std::string> held = source_->names();
    std::sort(held.begin(), held.end());
    for (const auto& [name, entry] : entries_) {
      SSM_CHECK(std::binary_search(held.begin(), held.end(), name),
                "{}: missing, though the config says how it is packed", source_->describe(name));
    }
  }

  std::optional<Tensor> find(std::string_view name) const override {
    return entries_.contains(name) ? std::nullopt : source_->find(name);
  }
  std::optional<QuantizedTensor> find_packed(std::string_view name) const override {
    const auto found = entries_.find(name);
    if (found == entries_.end()) return source_->find_packed(name);
    const auto& [format, shape] = found->second;
    const std::optional<Tensor> bytes = source_->find(name);
    const Shape expected{shape[0], row_bytes(format, shape[1])};
    SSM_CHECK(bytes && bytes->dtype() == DType::u8 && bytes->shape() == expected,
              "{}: {} of {} is stored as u8 {}, not {} {}", source_->describe(name), name_of(format), shape,
              expected, bytes ? name_of(bytes->dtype()) : "nothing", bytes ? bytes->shape() : Shape{});
    return packed_view(format, shape, bytes->row_major());
  }
  std::vector<std::string> names() const override { return source_->names(); }
  std::string describe(std::string_view name) const override { return source_->describe(name); }

 private:
  std::unique_ptr<WeightSource> source_;
  PackedEntries entries_;
};

}  // namespace

PackedEntries packed_entries(const json& config, const std::string& file) {
  const json quantization = config.is_object() ? config.value("quantization_config", json()) : json();
  PackedEntries entries;
  if (quantization.is_null()) return entries;
  const std::string where = file + ": quantization_config";
  SSM_CHECK(quantization.is_object(), "{} is {}, not an object", where, shown(quantization));
  const json method = quantization.value("quant_method", json()),
             version = quantization.value("version", json()), tensors = quantization.value("tensors", json());
  SSM_CHECK(method == kMethod,
            "{}: quant_method is {}: weights quantized by another program are not supported", where,
            shown(method));
  SSM_CHECK(version == kVersion, "{}: version is {}, this program reads {}", where, shown(version), kVersion);
  SSM_CHECK(tensors.is_object(), "{}: tensors is {}, not an object", where, shown(tensors));
  for (const auto& [name, value] : tensors.items())
    entries.emplace(name, entry_of(value, fmt::format("{}: tensors: {}", where, printable(name))));
  return entries;
}

nlohmann::ordered_json quantization_config(const PackedEntries& entries) {
  nlohmann::ordered_json tensors = nlohmann::ordered_json::object();
  for (const auto& [name, entry] : entries) {
    const std::string full = name_of(entry.format), type = full.substr(0, full.find(' '));
    nlohmann::ordered_json value{{"type", type}};
    if (entry.format.type == QuantType::int4 || entry.format.type == QuantType::int8)
      value["group"] = entry.format.group;
    value["shape"] = {entry.shape[0], entry.shape[1]};
    tensors[name] = value;
  }
  return {{"quant_method", kMethod}, {"version", kVersion}, {"tensors", tensors}};
}

std::unique_ptr<WeightSource> with_packed(std::unique_ptr<WeightSource> source, PackedEntries entries) {
  if (entries.empty()) return source;
  return std::make_unique<PackedSource>(std::move(source), std::move(entries));
}

}  // namespace ssm::io

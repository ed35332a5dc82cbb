#include "ssm/io/gguf.h"

#include <algorithm>
#include <cmath>
#include <fstream>

#include "ssm/io/mapped_file.h"

namespace ssm::io {
namespace {

std::string_view name_of(GgufValueType type) {
  constexpr std::string_view kNames[]{"u8",   "i8",   "u16",  "i16", "u32", "i32", "f32",
                                      "flag", "text", "list", "u64", "i64", "f64"};
  return kNames[static_cast<size_t>(type)];
}

// The double that has the float's shortest decimal: what whoever wrote the file had in mind.
double as_written(float value) { return std::isfinite(value) ? std::stod(fmt::format("{}", value)) : value; }

}  // namespace

bool is_gguf(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) return false;
  std::ifstream file(path, std::ios::binary);
  char magic[4] = {};
  return file.read(magic, sizeof magic) && std::string_view(magic, sizeof magic) == "GGUF";
}

std::unique_ptr<GgufFile> GgufFile::open(const std::filesystem::path& path) {
  return std::make_unique<GgufFile>(map_file(path));
}

GgufFile::GgufFile(Bytes bytes) : bytes_(std::move(bytes)) {
  GgufHeader header = parse_gguf_header(bytes_);
  values_ = std::move(header.values);
  entries_ = std::move(header.entries);
  data_offset_ = header.data_offset;
  for (size_t i = 0; i < entries_.size(); ++i) {
    SSM_CHECK(index_.emplace(entries_[i].name, i).second, "{}: is there twice", describe(entries_[i].name));
  }
}

const GgufFile::Entry* GgufFile::entry(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &entries_[found->second];
}

std::optional<Tensor> GgufFile::find(std::string_view name) const {
  const Entry* found = entry(name);
  if (!found) return std::nullopt;
  const GgmlType& type = *ggml_type(found->type);
  SSM_CHECK(type.dense || type.packed, "{}: type {} is not supported", describe(name), type.name);
  if (type.packed) return std::nullopt;
  return tensor_at(bytes_, data_offset_ + static_cast<size_t>(found->offset), found->shape, *type.dense);
}

std::optional<QuantizedTensor> GgufFile::find_packed(std::string_view name) const {
  const Entry* found = entry(name);
  if (!found) return std::nullopt;
  const GgmlType& type = *ggml_type(found->type);
  SSM_CHECK(type.dense || type.packed, "{}: type {} is not supported", describe(name), type.name);
  if (type.dense) return std::nullopt;
  const Shape& shape = found->shape;
  SSM_CHECK(shape.rank() == 1 || shape.rank() == 2, "{}: is {} of shape {}, and only matrices can be packed",
            describe(name), type.name, shape);
  const int64_t N = shape.rank() == 2 ? shape[0] : 1, K = shape[shape.rank() - 1];
  const QuantFormat format = type.format();
  return packed_view(format, {N, K},
                     tensor_at(bytes_, data_offset_ + static_cast<size_t>(found->offset),
                               {N, row_bytes(format, K)}, DType::u8));
}

std::vector<std::string> GgufFile::names() const {
  std::vector<std::string> result;
  result.reserve(entries_.size());
  for (const Entry& e : entries_) result.push_back(e.name);
  return result;
}

std::string GgufFile::describe(std::string_view name) const {
  return fmt::format("{}: tensor {}", bytes_.name, printable(name));
}

std::string GgufFile::describe_key(std::string_view key) const {
  return fmt::format("{}: key {}", bytes_.name, printable(key));
}

const GgufFile::Value* GgufFile::value(std::string_view key) const {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

std::optional<int64_t> GgufFile::integer(std::string_view key) const {
  const Value* v = value(key);
  if (!v) return std::nullopt;
  const auto read = [&]<class T>(T) -> std::optional<int64_t> {
    const T number = load_le<T>(bytes_.data, v->position);
    SSM_CHECK(std::in_range<int64_t>(number), "{} is {}", describe_key(key), number);
    return static_cast<int64_t>(number);
  };
  switch (v->type) {
    case GgufValueType::u8:
      return read(uint8_t{});
    case GgufValueType::i8:
      return read(int8_t{});
    case GgufValueType::u16:
      return read(uint16_t{});
    case GgufValueType::i16:
      return read(int16_t{});
    case GgufValueType::u32:
      return read(uint32_t{});
    case GgufValueType::i32:
      return read(int32_t{});
    case GgufValueType::u64:
      return read(uint64_t{});
    case GgufValueType::i64:
      return read(int64_t{});
    default:
      fail("{} is of type {}, not a whole number", describe_key(key), name_of(v->type));
  }
}

std::optional<double> GgufFile::real(std::string_view key) const {
  const Value* v = value(key);
  if (!v) return std::nullopt;
  if (v->type == GgufValueType::f32) return as_written(load_le<float>(bytes_.data, v->position));
  SSM_CHECK(v->type == GgufValueType::f64, "{} is of type {}, not a number", describe_key(key),
            name_of(v->type));
  return load_le<double>(bytes_.data, v->position);
}

std::optional<bool> GgufFile::flag(std::string_view key) const {
  const Value* v = value(key);
  if (!v) return std::nullopt;
  SSM_CHECK(v->type == GgufValueType::flag, "{} is of type {}, not true or false", describe_key(key),
            name_of(v->type));
  return load_le<uint8_t>(bytes_.data, v->position) != 0;
}

std::optional<std::string_view> GgufFile::text(std::string_view key) const {
  const Value* v = value(key);
  if (!v) return std::nullopt;
  SSM_CHECK(v->type == GgufValueType::text, "{} is of type {}, not a text", describe_key(key),
            name_of(v->type));
  return bytes_.text().substr(v->position + 8, load_le<uint64_t>(bytes_.data, v->position));
}

const GgufFile::Value* GgufFile::list(std::string_view key,
                                      std::initializer_list<GgufValueType> items) const {
  const Value* v = value(key);
  if (!v) return nullptr;
  const bool fits =
      v->type == GgufValueType::array && std::find(items.begin(), items.end(), v->item) != items.end();
  SSM_CHECK(fits, "{} is of type {} of {}, not a list of {}", describe_key(key), name_of(v->type),
            name_of(v->item), name_of(*items.begin()));
  return v;
}

std::vector<std::string_view> GgufFile::texts(std::string_view key) const {
  std::vector<std::string_view> result;
  const Value* v = list(key, {GgufValueType::text});
  if (!v) return result;
  result.reserve(v->count);
  size_t at = v->position;
  for (uint64_t i = 0; i < v->count; ++i) {
    const auto size = load_le<uint64_t>(bytes_.data, at);
    result.push_back(bytes_.text().substr(at + 8, size));
    at += 8 + static_cast<size_t>(size);
  }
  return result;
}

std::vector<int32_t> GgufFile::integers(std::string_view key) const {
  std::vector<int32_t> result;
  const Value* v = list(key, {GgufValueType::i32, GgufValueType::u32});
  if (!v) return result;
  result.resize(v->count);
  if (v->count > 0) std::memcpy(result.data(), bytes_.data.data() + v->position, v->count * sizeof(int32_t));
  return result;
}

std::vector<float> GgufFile::reals(std::string_view key) const {
  std::vector<float> result;
  const Value* v = list(key, {GgufValueType::f32});
  if (!v) return result;
  result.resize(v->count);
  if (v->count > 0) std::memcpy(result.data(), bytes_.data.data() + v->position, v->count * sizeof(float));
  return result;
}

}  // namespace ssm::io

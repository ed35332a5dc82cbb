#include "ssm/io/gguf_writer.h"

#include "ssm/io/atomic_file.h"

namespace ssm::io {
namespace {

constexpr uint64_t kAlignment = 32;
constexpr uint32_t kVersion = 3;

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void put_text(std::string& out, std::string_view text) {
  put<uint64_t>(out, text.size());
  out.append(text);
}

std::string padding(uint64_t size) {
  return std::string((kAlignment - size % kAlignment) % kAlignment, '\0');
}

const GgmlType* type_of(const LazyWeight& weight) {
  return std::visit([](const auto& type) { return ggml_type(type); }, weight.type);
}

uint64_t size_of_data(const LazyWeight& weight) {
  if (const DType* dtype = std::get_if<DType>(&weight.type))
    return static_cast<uint64_t>(weight.shape.numel()) * size_of(*dtype);
  const int64_t K = weight.shape[weight.shape.rank() - 1];
  return static_cast<uint64_t>(weight.shape.numel() / K * row_bytes(std::get<QuantFormat>(weight.type), K));
}

// The bytes of what a LazyWeight made, which must be what it announced.
Tensor bytes_of(const LazyWeight& weight, const std::string& file) {
  const Weight made = weight.make();
  const auto* packed = std::get_if<QuantizedTensor>(&made);
  const bool as_announced = packed ? std::holds_alternative<QuantFormat>(weight.type) &&
                                         packed->format == std::get<QuantFormat>(weight.type)
                                   : std::holds_alternative<DType>(weight.type) &&
                                         std::get<Tensor>(made).dtype() == std::get<DType>(weight.type);
  SSM_CHECK(as_announced && shape_of(made) == weight.shape, "{}: tensor {} is {} {}, not what was announced",
            file, printable(weight.name), type_name(made), shape_of(made));
  const Tensor& bytes = packed ? packed->bytes : std::get<Tensor>(made);
  return bytes.contiguous() ? bytes : bytes.clone();
}

}  // namespace

GgufWriter::GgufWriter(std::filesystem::path path)
    : path_(std::move(path)), file_(printable(path_.string())) {}

void GgufWriter::key(std::string_view name, GgufValueType type) {
  SSM_CHECK(names_.emplace(name).second, "{}: key {} would be written twice", file_, printable(name));
  put_text(keys_, name);
  put(keys_, static_cast<uint32_t>(type));
}

void GgufWriter::list(std::string_view name, GgufValueType item, uint64_t count) {
  key(name, GgufValueType::array);
  put(keys_, static_cast<uint32_t>(item));
  put(keys_, count);
}

void GgufWriter::u32(std::string_view name, int64_t value) {
  SSM_CHECK(std::in_range<uint32_t>(value), "{}: key {} cannot be {}", file_, printable(name), value);
  key(name, GgufValueType::u32);
  put(keys_, static_cast<uint32_t>(value));
}

void GgufWriter::f32(std::string_view name, double value) {
  key(name, GgufValueType::f32);
  put(keys_, static_cast<float>(value));
}

void GgufWriter::flag(std::string_view name, bool value) {
  key(name, GgufValueType::flag);
  put<uint8_t>(keys_, value ? 1 : 0);
}

void GgufWriter::text(std::string_view name, std::string_view value) {
  key(name, GgufValueType::text);
  put_text(keys_, value);
}

void GgufWriter::texts(std::string_view name, std::span<const std::string> values) {
  list(name, GgufValueType::text, values.size());
  for (const std::string& value : values) put_text(keys_, value);
}

void GgufWriter::integers(std::string_view name, std::span<const int32_t> values) {
  list(name, GgufValueType::i32, values.size());
  for (const int32_t value : values) put(keys_, value);
}

void GgufWriter::reals(std::string_view name, std::span<const float> values) {
  list(name, GgufValueType::f32, values.size());
  for (const float value : values) put(keys_, value);
}

void GgufWriter::tensor(LazyWeight weight) {
  if (!type_of(weight)) {
    const auto* packed = std::get_if<QuantFormat>(&weight.type);
    fail("{}: tensor {}: GGUF has no type {}", file_, printable(weight.name),
         packed ? name_of(*packed) : std::string(name_of(std::get<DType>(weight.type))));
  }
  tensors_.push_back(std::move(weight));
}

void GgufWriter::write() {
  std::string header = "GGUF";
  put(header, kVersion);
  put<uint64_t>(header, tensors_.size());
  put<uint64_t>(header, names_.size());
  header.append(keys_);
  uint64_t offset = 0;
  std::set<std::string_view> written;
  for (const LazyWeight& t : tensors_) {
    SSM_CHECK(written.insert(t.name).second, "{}: tensor {} would be written twice", file_,
              printable(t.name));
    put_text(header, t.name);
    put(header, static_cast<uint32_t>(t.shape.rank()));
    for (int i = t.shape.rank() - 1; i >= 0; --i) put(header, static_cast<uint64_t>(t.shape[i]));
    put(header, type_of(t)->id);
    put(header, offset);
    const uint64_t size = size_of_data(t);
    offset += size + (kAlignment - size % kAlignment) % kAlignment;
  }
  AtomicFile out(path_);
  out.write(header.append(padding(header.size())));
  for (const LazyWeight& t : tensors_) {
    const Tensor data = bytes_of(t, file_);
    out.write(std::span<const std::byte>(data.raw(), data.bytes()));
    out.write(padding(data.bytes()));
  }
  out.commit();
}

}  // namespace ssm::io

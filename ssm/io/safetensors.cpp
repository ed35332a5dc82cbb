#include "ssm/io/safetensors.h"

#include <algorithm>
#include <array>

#include "ssm/io/mapped_file.h"

namespace ssm::io {
namespace {

constexpr uint64_t kLongestHeader = 100'000'000;

struct Type {
  std::string_view name;
  int bits;
  std::optional<DType> dtype;  // nothing: the library has no such type
};
constexpr std::array<Type, 22> kTypes{{
    {"F32", 32, DType::f32},
    {"BF16", 16, DType::bf16},
    {"F16", 16, DType::f16},
    {"F64", 64, DType::f64},
    {"U8", 8, DType::u8},
    {"I8", 8, DType::i8},
    {"I32", 32, DType::i32},
    {"I64", 64, DType::i64},
    {"BOOL", 8, std::nullopt},
    {"I16", 16, std::nullopt},
    {"U16", 16, std::nullopt},
    {"U32", 32, std::nullopt},
    {"U64", 64, std::nullopt},
    {"F8_E5M2", 8, std::nullopt},
    {"F8_E4M3", 8, std::nullopt},
    {"F8_E5M2FNUZ", 8, std::nullopt},
    {"F8_E4M3FNUZ", 8, std::nullopt},
    {"F8_E8M0", 8, std::nullopt},
    {"F4", 4, std::nullopt},
    {"F6_E2M3", 6, std::nullopt},
    {"F6_E3M2", 6, std::nullopt},
    {"C64", 64, std::nullopt},
}};

const Type* type_named(std::string_view name) {
  const auto* type =
      std::find_if(kTypes.begin(), kTypes.end(), [&](const Type& t) { return t.name == name; });
  return type == kTypes.end() ? nullptr : type;
}

void check_size(const SafetensorsFile::Entry& entry, const std::string& file) {
  const Type* type = type_named(entry.dtype);
  if (!type) return;  // of unknown size; find() refuses it
  const std::string name = printable(entry.name);
  int64_t bits = type->bits;
  for (const int64_t dim : entry.shape) {
    SSM_CHECK(!__builtin_mul_overflow(bits, dim, &bits), "{}: tensor {}: shape {} overflows", file, name,
              entry.shape);
  }
  const uint64_t size = entry.end - entry.begin;
  SSM_CHECK(bits % 8 == 0 && static_cast<uint64_t>(bits) / 8 == size,
            "{}: tensor {}: data_offsets span {} bytes, but {} of shape {} has {}", file, name, size,
            entry.dtype, entry.shape, (static_cast<uint64_t>(bits) + 7) / 8);
}

// The tensors, sorted by position, must fill the data without holes or overlaps.
void check_layout(std::span<const SafetensorsFile::Entry> entries, uint64_t data_size,
                  const std::string& file) {
  uint64_t position = 0;
  for (const auto& entry : entries) {
    const std::string name = printable(entry.name);
    SSM_CHECK(entry.begin >= position, "{}: tensor {}: data_offsets [{}, {}] overlap another tensor's", file,
              name, entry.begin, entry.end);
    SSM_CHECK(entry.begin == position, "{}: tensor {}: data_offsets [{}, {}] leave a hole after byte {}",
              file, name, entry.begin, entry.end, position);
    SSM_CHECK(entry.end <= data_size,
              "{}: tensor {}: data_offsets [{}, {}] go past the end: the file holds {} bytes of data "
              "(truncated?)",
              file, name, entry.begin, entry.end, data_size);
    position = entry.end;
  }
  SSM_CHECK(position == data_size, "{}: the tensors' data_offsets end at byte {}, the file's data at {}",
            file, position, data_size);
}

}  // namespace

std::unique_ptr<SafetensorsFile> SafetensorsFile::open(const std::filesystem::path& path) {
  return std::make_unique<SafetensorsFile>(map_file(path));
}

SafetensorsFile::SafetensorsFile(Bytes bytes) : bytes_(std::move(bytes)) {
  const std::string& file = bytes_.name;
  SSM_CHECK(bytes_.size() >= 8, "{}: {} bytes are too short for a safetensors file", file, bytes_.size());
  const auto length = load_le<uint64_t>(bytes_.data, 0);
  SSM_CHECK(length <= kLongestHeader, "{}: header length {} (at most {}); not a safetensors file?", file,
            length, kLongestHeader);
  SSM_CHECK(fits(8, length, bytes_.size()), "{}: header length {} goes past the end of the file ({} bytes)",
            file, length, bytes_.size());
  data_offset_ = 8 + static_cast<size_t>(length);
  SafetensorsHeader header = parse_safetensors_header(bytes_.text().substr(8, length), file);
  entries_ = std::move(header.entries);
  metadata_ = std::move(header.metadata);
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  for (const Entry& entry : entries_) check_size(entry, file);
  check_layout(entries_, bytes_.size() - data_offset_, file);
  for (size_t i = 0; i < entries_.size(); ++i) index_.emplace(entries_[i].name, i);
}

std::optional<Tensor> SafetensorsFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  if (found == index_.end()) return std::nullopt;
  const Entry& entry = entries_[found->second];
  const Type* type = type_named(entry.dtype);
  SSM_CHECK(type && type->dtype, "{}: dtype {} is not supported", describe(name), printable(entry.dtype));
  return tensor_at(bytes_, data_offset_ + static_cast<size_t>(entry.begin), entry.shape, *type->dtype);
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> result;
  result.reserve(entries_.size());
  for (const Entry& entry : entries_) result.push_back(entry.name);
  return result;
}

std::string SafetensorsFile::describe(std::string_view name) const {
  return fmt::format("{}: tensor {}", bytes_.name, printable(name));
}

}  // namespace ssm::io

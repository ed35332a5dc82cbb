#include <algorithm>
#include <array>

#include "ssm/io/gguf.h"

namespace ssm::io {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint64_t kLongestName = 65535;
constexpr uint32_t kMostDims = 4;
constexpr uint64_t kDefaultAlignment = 32, kLargestAlignment = 1 << 20;
// The least that one entry of each table takes.
constexpr uint64_t kSmallestValue = 8 + 1 + 4 + 1, kSmallestTensor = 8 + 1 + 4 + 4 + 8;

uint64_t size_of_value(GgufValueType type) {
  switch (type) {
    case GgufValueType::u8:
    case GgufValueType::i8:
    case GgufValueType::flag:
      return 1;
    case GgufValueType::u16:
    case GgufValueType::i16:
      return 2;
    case GgufValueType::u32:
    case GgufValueType::i32:
    case GgufValueType::f32:
      return 4;
    case GgufValueType::u64:
    case GgufValueType::i64:
    case GgufValueType::f64:
    case GgufValueType::text:  // its length
      return 8;
    case GgufValueType::array:
      break;
  }
  return 0;
}

// Reads on from one place; `what` is what errors say was being read.
class Cursor {
 public:
  explicit Cursor(const Bytes& bytes) : bytes_(bytes) {}

  size_t position() const { return at_; }
  uint64_t left() const { return bytes_.size() - at_; }
  template <class T>
  T number(std::string_view what) {
    const size_t at = skip(sizeof(T), what);
    return load_le<T>(bytes_.data, at);
  }
  std::string_view text(std::string_view what) {
    const auto size = number<uint64_t>(what);
    SSM_CHECK(size <= left(), "{}: {} has {} bytes, but {} are left in the file", bytes_.name,
              printable(what), size, left());
    return bytes_.text().substr(skip(size, what), size);
  }
  // Where `size` bytes stand that are then behind.
  size_t skip(uint64_t size, std::string_view what) {
    SSM_CHECK(size <= left(), "{}: ends inside {}", bytes_.name, printable(what));
    const size_t at = at_;
    at_ += static_cast<size_t>(size);
    return at;
  }

 private:
  const Bytes& bytes_;
  size_t at_ = 0;
};

GgufValueType read_type(Cursor& cursor, const std::string& file, std::string_view what) {
  const auto type = cursor.number<uint32_t>(what);
  SSM_CHECK(type <= static_cast<uint32_t>(GgufValueType::f64), "{}: {} has the unknown type {}", file,
            printable(what), type);
  return static_cast<GgufValueType>(type);
}

void read_value(Cursor& cursor, const std::string& file, GgufHeader& header) {
  const std::string key(cursor.text(fmt::format("key {}", header.values.size())));
  SSM_CHECK(!key.empty() && key.size() <= kLongestName, "{}: key {} has {} bytes", file, header.values.size(),
            key.size());
  const std::string what = "key " + key;
  GgufFile::Value value{};
  value.type = value.item = read_type(cursor, file, what);
  if (value.type == GgufValueType::array) {
    value.item = read_type(cursor, file, what);
    value.count = cursor.number<uint64_t>(what);
    SSM_CHECK(value.item != GgufValueType::array, "{}: {} is a list of lists", file, printable(what));
  }
  const uint64_t size = size_of_value(value.item);
  SSM_CHECK(value.count <= cursor.left() / size, "{}: {} has {} items, but {} bytes are left in the file",
            file, printable(what), value.count, cursor.left());
  value.position = cursor.position();
  if (value.item == GgufValueType::text) {
    for (uint64_t i = 0; i < value.count; ++i) cursor.text(what);
  } else {
    cursor.skip(value.count * size, what);
  }
  SSM_CHECK(header.values.emplace(key, value).second, "{}: {} is there twice", file, printable(what));
}

// The bytes of a tensor; 0 for a type whose layout is not known here.
uint64_t size_of_tensor(const GgufFile::Entry& entry, const std::string& what) {
  const GgmlType* type = ggml_type(entry.type);
  SSM_CHECK(type, "{}: has the unknown type {}", what, entry.type);
  int64_t numel = 1;
  for (const int64_t dim : entry.shape)
    SSM_CHECK(!__builtin_mul_overflow(numel, dim, &numel), "{}: shape {} overflows", what, entry.shape);
  int64_t size = 0;
  if (type->dense) {
    SSM_CHECK(!__builtin_mul_overflow(numel, static_cast<int64_t>(size_of(*type->dense)), &size),
              "{}: shape {} overflows", what, entry.shape);
  } else if (type->packed) {
    const QuantFormat format = type->format();
    const int64_t K = entry.shape.rank() > 0 ? entry.shape[entry.shape.rank() - 1] : 1;
    SSM_CHECK(fits(format, K), "{}: rows of {} weights are not whole blocks of {}", what, K, type->name);
    SSM_CHECK(!__builtin_mul_overflow(numel / K, row_bytes(format, K), &size), "{}: shape {} overflows", what,
              entry.shape);
  }
  return static_cast<uint64_t>(size);
}

GgufFile::Entry read_entry(Cursor& cursor, const std::string& file, size_t number) {
  GgufFile::Entry entry;
  entry.name = cursor.text(fmt::format("the name of tensor {}", number));
  SSM_CHECK(!entry.name.empty() && entry.name.size() <= kLongestName,
            "{}: the name of tensor {} has {} bytes", file, number, entry.name.size());
  const std::string what = fmt::format("{}: tensor {}", file, printable(entry.name));
  const auto rank = cursor.number<uint32_t>("tensor " + entry.name);
  SSM_CHECK(rank <= kMostDims, "{}: has {} dimensions, at most {} are possible", what, rank, kMostDims);
  std::array<int64_t, kMostDims> dims{};
  for (uint32_t i = 0; i < rank; ++i) {
    const auto dim = cursor.number<uint64_t>("tensor " + entry.name);
    SSM_CHECK(dim > 0 && dim <= INT64_MAX, "{}: dimension {} is {}", what, i, dim);
    dims[rank - 1 - i] = static_cast<int64_t>(dim);
  }
  entry.shape = Shape(std::span<const int64_t>(dims.data(), rank));
  entry.type = cursor.number<uint32_t>("tensor " + entry.name);
  entry.offset = cursor.number<uint64_t>("tensor " + entry.name);
  entry.size = size_of_tensor(entry, what);
  return entry;
}

uint64_t alignment_of(const GgufHeader& header, const Bytes& bytes) {
  const auto found = header.values.find("general.alignment");
  if (found == header.values.end()) return kDefaultAlignment;
  SSM_CHECK(found->second.type == GgufValueType::u32, "{}: key general.alignment is not a u32", bytes.name);
  const auto alignment = load_le<uint32_t>(bytes.data, found->second.position);
  SSM_CHECK(alignment > 0 && (alignment & (alignment - 1)) == 0 && alignment <= kLargestAlignment,
            "{}: key general.alignment is {}, not a power of two up to {}", bytes.name, alignment,
            kLargestAlignment);
  return alignment;
}

void check_places(const GgufHeader& header, uint64_t data_size, uint64_t alignment, const std::string& file) {
  std::vector<const GgufFile::Entry*> order;
  for (const auto& entry : header.entries) {
    SSM_CHECK(entry.offset % alignment == 0, "{}: tensor {}: offset {} is not a multiple of {}", file,
              printable(entry.name), entry.offset, alignment);
    SSM_CHECK(fits(entry.offset, entry.size, data_size),
              "{}: tensor {}: offset {} and {} bytes go past the end: the file holds {} bytes of data "
              "(truncated?)",
              file, printable(entry.name), entry.offset, entry.size, data_size);
    order.push_back(&entry);
  }
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    SSM_CHECK(order[i - 1]->offset + order[i - 1]->size <= order[i]->offset,
              "{}: tensor {}: its bytes overlap those of {}", file, printable(order[i]->name),
              printable(order[i - 1]->name));
  }
}

}  // namespace

GgufHeader parse_gguf_header(const Bytes& bytes) {
  const std::string& file = bytes.name;
  Cursor cursor(bytes);
  SSM_CHECK(bytes.size() >= 24 && cursor.number<uint32_t>("the magic") == kMagic, "{}: is not a GGUF file",
            file);
  const auto version = cursor.number<uint32_t>("the version");
  SSM_CHECK((version & 0xFFFF) != 0, "{}: is a big-endian GGUF file, which is not supported", file);
  SSM_CHECK(version == 2 || version == 3, "{}: GGUF version {} is not supported, only 2 and 3 are", file,
            version);
  const auto tensors = cursor.number<uint64_t>("the number of tensors");
  const auto values = cursor.number<uint64_t>("the number of keys");
  SSM_CHECK(values <= cursor.left() / kSmallestValue, "{}: {} keys cannot stand in {} bytes", file, values,
            cursor.left());
  GgufHeader header;
  for (uint64_t i = 0; i < values; ++i) read_value(cursor, file, header);
  SSM_CHECK(tensors <= cursor.left() / kSmallestTensor, "{}: {} tensors cannot stand in {} bytes", file,
            tensors, cursor.left());
  for (uint64_t i = 0; i < tensors; ++i) header.entries.push_back(read_entry(cursor, file, i));
  const uint64_t alignment = alignment_of(header, bytes);
  const uint64_t data_offset = (cursor.position() + alignment - 1) / alignment * alignment;
  // A file without tensors (a vocabulary) may end before the data would begin.
  header.data_offset = static_cast<size_t>(std::min<uint64_t>(data_offset, bytes.size()));
  check_places(header, bytes.size() - header.data_offset, alignment, file);
  return header;
}

}  // namespace ssm::io

// The GGUF format, versions 2 and 3: keys with typed values, a table of tensors, then the tensors' bytes,
// each at a multiple of general.alignment (32). Little-endian. Opening reads the table and checks it against
// the file: counts and lengths against the bytes that are left, no key and no tensor twice, every tensor of a
// known type aligned, inside the file and off every other one. Values are read when asked for. Throws Error
// naming the file and the key or tensor.
#pragma once

#include <filesystem>
#include <map>

#include "ssm/io/bytes.h"
#include "ssm/io/ggml_types.h"
#include "ssm/io/weight_source.h"

namespace ssm::io {

// As numbered in the file.
enum class GgufValueType : uint32_t { u8, i8, u16, i16, u32, i32, f32, flag, text, array, u64, i64, f64 };

class GgufFile : public WeightSource {
 public:
  static std::unique_ptr<GgufFile> open(const std::filesystem::path& path);
  explicit GgufFile(Bytes bytes);

  // Under the file's own names; shapes are in this library's order, the reverse of GGUF's. Throw Error for a
  // tensor of a type that this library does not have (IQ4_XS, ...).
  std::optional<Tensor> find(std::string_view name) const override;
  std::optional<QuantizedTensor> find_packed(std::string_view name) const override;
  std::vector<std::string> names() const override;  // in the order of the table
  std::string describe(std::string_view name) const override;

  // A key's value; nothing where it is absent. Throws Error for another type, or a number out of range.
  std::optional<int64_t> integer(std::string_view key) const;
  std::optional<double> real(
      std::string_view key) const;  // of an f32: its shortest decimal, 1e-5 and not 9.99..e-6
  std::optional<bool> flag(std::string_view key) const;
  std::optional<std::string_view> text(std::string_view key) const;
  std::vector<std::string_view> texts(std::string_view key) const;  // lists: empty where absent
  std::vector<int32_t> integers(std::string_view key) const;
  std::vector<float> reals(std::string_view key) const;
  std::string describe_key(std::string_view key) const;  // "model.gguf: key mamba.block_count"

  const std::string& file() const { return bytes_.name; }
  size_t header_size() const { return data_offset_; }  // in bytes, all but the tensors

  struct Value {
    GgufValueType type;
    GgufValueType item;   // of an array
    uint64_t count = 1;   // of an array's items
    size_t position = 0;  // of the first of them
  };
  struct Entry {
    std::string name;
    uint32_t type = 0;  // ggml_type() may know it
    Shape shape;
    uint64_t offset = 0;  // from the beginning of the data
    uint64_t size = 0;    // in bytes; 0 where the type is not known
  };
  const Entry* entry(std::string_view name) const;  // nothing: no such tensor

 private:
  const Value* value(std::string_view key) const;
  const Value* list(std::string_view key, std::initializer_list<GgufValueType> items) const;

  Bytes bytes_;
  std::map<std::string, Value, std::less<>> values_;
  std::vector<Entry> entries_;
  std::map<std::string, size_t, std::less<>> index_;
  size_t data_offset_ = 0;
};

// What stands before the data. Used by GgufFile.
struct GgufHeader {
  std::map<std::string, GgufFile::Value, std::less<>> values;
  std::vector<GgufFile::Entry> entries;
  size_t data_offset = 0;
};
GgufHeader parse_gguf_header(const Bytes& bytes);

// Whether a file begins as GGUF files do.
bool is_gguf(const std::filesystem::path& path);

}  // namespace ssm::io

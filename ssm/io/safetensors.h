// The safetensors format: 8 bytes of header length, a JSON header, then the tensors' bytes without holes.
// The reader refuses a file that breaks any of that (Error naming the file and the tensor); the writer is
// atomic and its output depends on nothing but its input.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <span>

#include "ssm/io/bytes.h"
#include "ssm/io/weight_source.h"

namespace ssm::io {

using Metadata = std::map<std::string, std::string>;

class SafetensorsFile : public WeightSource {
 public:
  static std::unique_ptr<SafetensorsFile> open(const std::filesystem::path& path);
  explicit SafetensorsFile(Bytes bytes);

  // Refuses, by name, a dtype that this library does not have (BOOL, F8_E4M3, ...).
  std::optional<Tensor> find(std::string_view name) const override;
  std::vector<std::string> names() const override;  // in the order of their bytes
  std::string describe(std::string_view name) const override;
  const Metadata& metadata() const { return metadata_; }

  struct Entry {
    std::string name;
    std::string dtype;  // as in the file
    Shape shape;
    uint64_t begin = 0;  // from the end of the header
    uint64_t end = 0;
  };

 private:
  Bytes bytes_;
  size_t data_offset_ = 0;
  std::vector<Entry> entries_;
  std::map<std::string, size_t, std::less<>> index_;
  Metadata metadata_;
};

// Entries in header order and the metadata; checks each entry by itself. Used by SafetensorsFile.
struct SafetensorsHeader {
  std::vector<SafetensorsFile::Entry> entries;
  Metadata metadata;
};
SafetensorsHeader parse_safetensors_header(std::string_view json, const std::string& file);

struct NamedTensor {
  std::string name;
  Tensor tensor;
};
// A tensor made when its turn to be written comes, so that a conversion holds one tensor at a time.
struct LazyTensor {
  std::string name;
  DType dtype;
  Shape shape;
  std::function<Tensor()> make;
};

// What `t` makes, row by row. Throws Error naming `file` where that is not what it said.
Tensor made_as_announced(const LazyTensor& t, const std::string& file);

// Tensors are laid out by descending element size, then name, as the Python library does; the data begins at
// a multiple of 64.
void write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                       const Metadata& metadata = {});
void write_safetensors(const std::filesystem::path& path, std::span<const LazyTensor> tensors,
                       const Metadata& metadata = {});

}  // namespace ssm::io

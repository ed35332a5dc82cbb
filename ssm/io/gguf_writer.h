// Writes a GGUF file, version 3: keys and tensors in the order they were added, each tensor at a multiple of
// 32. Atomic, one tensor in memory at a time, and its output depends on nothing but its input. Throws Error
// naming the file.
#pragma once

#include <filesystem>
#include <set>
#include <span>
#include <vector>

#include "ssm/io/gguf.h"
#include "ssm/io/lazy_weight.h"

namespace ssm::io {

class GgufWriter {
 public:
  explicit GgufWriter(std::filesystem::path path);

  void u32(std::string_view key, int64_t value);  // refuses what is none
  void f32(std::string_view key, double value);
  void flag(std::string_view key, bool value);
  void text(std::string_view key, std::string_view value);
  void texts(std::string_view key, std::span<const std::string> values);
  void integers(std::string_view key, std::span<const int32_t> values);
  void reals(std::string_view key, std::span<const float> values);

  // Under the name that it shall have in the file; refuses a type that GGUF has not (int4 and int8 by group).
  void tensor(LazyWeight weight);

  void write();  // once

  const std::string& file() const { return file_; }

 private:
  void key(std::string_view name, GgufValueType type);
  void list(std::string_view name, GgufValueType item, uint64_t count);

  std::filesystem::path path_;
  std::string file_, keys_;
  std::set<std::string, std::less<>> names_;  // of keys
  std::vector<LazyWeight> tensors_;
};

}  // namespace ssm::io

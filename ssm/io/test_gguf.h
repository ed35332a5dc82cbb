// GGUF files put together by hand, wrong ones included.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "ssm/io/gguf.h"
#include "ssm/io/test_zip.h"

namespace ssm::io {

class GgufBuilder {
 public:
  uint32_t version = 3;
  uint64_t alignment = 32;

  static std::string packed(std::string_view text) {
    std::string out;
    append_le<uint64_t>(out, text.size());
    return out.append(text);
  }
  static std::string type(GgufValueType type) {
    std::string out;
    append_le(out, static_cast<uint32_t>(type));
    return out;
  }
  template <class T>
  GgufBuilder& number(std::string_view key, GgufValueType kind, T value) {
    append_le(keys_.append(packed(key)).append(type(kind)), value);
    ++key_count_;
    return *this;
  }
  GgufBuilder& u32(std::string_view key, uint32_t value) { return number(key, GgufValueType::u32, value); }
  GgufBuilder& f32(std::string_view key, float value) { return number(key, GgufValueType::f32, value); }
  GgufBuilder& text(std::string_view key, std::string_view value) {
    return raw(key, type(GgufValueType::text) + packed(value));
  }
  GgufBuilder& raw(std::string_view key, std::string_view type_and_value) {
    keys_.append(packed(key)).append(type_and_value);
    ++key_count_;
    return *this;
  }
  // Placed behind the tensors before it; `dims` as GGUF has them, the fastest first.
  GgufBuilder& tensor(std::string_view name, uint32_t type, const std::vector<uint64_t>& dims,
                      std::string_view data) {
    return entry(name, type, dims, data_.size(), data);
  }
  GgufBuilder& entry(std::string_view name, uint32_t type, const std::vector<uint64_t>& dims, uint64_t offset,
                     std::string_view data) {
    entries_.append(packed(name));
    append_le(entries_, static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims) append_le(entries_, dim);
    append_le(entries_, type);
    append_le(entries_, offset);
    data_.append(data);
    data_.append((alignment - data_.size() % alignment) % alignment, '\0');
    ++entry_count_;
    return *this;
  }

  std::string bytes() const { return bytes(entry_count_, key_count_); }
  // With counts that need not be right.
  std::string bytes(uint64_t entries, uint64_t keys) const {
    std::string out = "GGUF";
    append_le(out, version);
    append_le(out, entries);
    append_le(out, keys);
    out.append(keys_).append(entries_);
    out.append((alignment - out.size() % alignment) % alignment, '\0');
    return out.append(data_);
  }

 private:
  std::string keys_, entries_, data_;
  uint64_t key_count_ = 0, entry_count_ = 0;
};

inline std::string floats(const std::vector<float>& values) {
  std::string out;
  for (const float v : values) append_le(out, v);
  return out;
}

}  // namespace ssm::io

// Checksums by which the hub names file contents.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace ssm::hub {

class Checksum {
 public:
  // Of contents of `size` bytes: an etag of 64 hex digits is their SHA-256, one of 40 git's SHA-1 of a blob.
  // Nothing can be said of another etag: matches() is then true.
  Checksum(std::string_view etag, int64_t size);
  ~Checksum();
  Checksum(const Checksum&) = delete;
  Checksum& operator=(const Checksum&) = delete;

  void add(std::string_view bytes);
  bool matches();  // once, after all bytes

 private:
  struct Context;
  std::unique_ptr<Context> context_;  // null: not known
  std::string expected_;
};

}  // namespace ssm::hub

// A file mapped read-only for as long as someone holds it. A file that shrinks while it is mapped ends the
// process with SIGBUS, as it does every program that maps files.
#pragma once

#include <filesystem>
#include <memory>

#include "ssm/io/bytes.h"

namespace ssm::io {

class MappedFile {
 public:
  // Throws Error naming the path: missing, a folder, unreadable, empty.
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  // Tells the kernel that the whole pages inside [data, data + size) are not needed for now: they leave
  // memory and are read again from the file when touched. Ignored for memory outside the mapping.
  void release(const void* data, size_t size) const;

 private:
  MappedFile(const std::byte* data, size_t size) : data_(data), size_(size) {}

  const std::byte* data_;
  size_t size_;
};

// The mapped file as Bytes that own the mapping, named by its path.
Bytes map_file(const std::filesystem::path& path);

}  // namespace ssm::io

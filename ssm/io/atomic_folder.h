// A folder that appears whole or not at all: filled beside its target under a temporary name and renamed by
// commit(). Without commit() the temporary is removed and nothing changes. Throws Error naming the target.
#pragma once

#include <filesystem>

namespace ssm::io {

class AtomicFolder {
 public:
  explicit AtomicFolder(std::filesystem::path target);  // must not exist
  ~AtomicFolder();
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;

  const std::filesystem::path& path() const { return temporary_; }  // where to write
  void commit();

 private:
  std::filesystem::path target_;
  std::filesystem::path temporary_;
};

}  // namespace ssm::io

// A file that appears whole or not at all: written beside its target under a temporary name, synced to disk
// and renamed by commit(). Without commit() (an exception, say) the temporary is removed and whatever stood
// at the target is untouched. A device or a pipe is no such file: it is written into, never replaced. A
// symbolic link stays one: the file that it stands for is written.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>

namespace ssm {

class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path target);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  // All three throw Error naming the target.
  void write(std::span<const std::byte> data);
  void write(std::string_view text);
  void commit();

 private:
  std::filesystem::path target_;
  std::filesystem::path temporary_;  // empty: the target itself is written
  int fd_ = -1;
};

// Throws Error where write_whole would fail now, and changes nothing: to be known before long work, not
// after.
void check_writable(const std::filesystem::path& target);

void write_whole(const std::filesystem::path& target, std::string_view text);

// A rename, or a new or removed file, survives a power cut only once its folder is synced; some filesystems
// refuse that, and are left alone.
void sync_folder(const std::filesystem::path& folder);

}  // namespace ssm

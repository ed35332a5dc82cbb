#include "ssm/core/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <system_error>

#include "ssm/core/error.h"
#include "ssm/core/printable.h"

namespace ssm {
namespace {

[[noreturn]] void fail_with(const std::filesystem::path& target, std::string_view what, int error) {
  fail("{}: cannot {}: {}", printable(target.string()), what, std::generic_category().message(error));
}

bool is_device_or_pipe(const std::filesystem::path& target) {
  std::error_code ignored;
  return std::filesystem::is_other(std::filesystem::status(target, ignored));
}

// The file that a chain of symbolic links stands for, there or not.
std::filesystem::path behind_links(std::filesystem::path target) {
  constexpr int kMostLinks = 40;  // of Linux
  const std::filesystem::path given = target;
  std::error_code error;
  for (int links = 0; std::filesystem::is_symlink(target, error); ++links) {
    SSM_CHECK(links < kMostLinks, "{}: cannot write: too many symbolic links", printable(given.string()));
    const std::filesystem::path to = std::filesystem::read_symlink(target, error);
    if (error) break;
    target = target.parent_path() / to;  // an absolute one stays as it is
  }
  return target;
}

}  // namespace

AtomicFile::AtomicFile(std::filesystem::path target) : target_(std::move(target)) {
  static std::atomic<uint64_t> counter{0};
  std::error_code ignored;
  SSM_CHECK(!std::filesystem::is_directory(target_, ignored), "{}: cannot write: is a folder",
            printable(target_.string()));
  if (is_device_or_pipe(target_)) {
    fd_ = ::open(target_.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd_ < 0) fail_with(target_, "open", errno);
    return;
  }
  target_ = behind_links(target_);
  for (int attempt = 0; attempt < 100 && fd_ < 0; ++attempt) {
    temporary_ = target_;
    temporary_ += fmt::format(".tmp-{}-{}", ::getpid(), counter++);
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd_ < 0 && errno != EEXIST) fail_with(target_, "create", errno);
  }
  if (fd_ < 0) fail_with(target_, "create", EEXIST);
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> data) {
  SSM_CHECK(fd_ >= 0, "{}: write after commit", printable(target_.string()));
  while (!data.empty()) {
    const ssize_t n = ::write(fd_, data.data(), data.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_with(target_, "write", errno);
    data = data.subspan(static_cast<size_t>(n));
  }
}

void AtomicFile::write(std::string_view text) { write(std::as_bytes(std::span(text))); }

void AtomicFile::commit() {
  SSM_CHECK(fd_ >= 0, "{}: committed twice", printable(target_.string()));
  if (!temporary_.empty() && ::fsync(fd_) != 0) fail_with(target_, "write to disk", errno);
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0) fail_with(target_, "write to disk", errno);
  if (temporary_.empty()) return;
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail_with(target_, "rename into place", errno);
  temporary_.clear();
  sync_folder(target_.has_parent_path() ? target_.parent_path() : ".");
}

void check_writable(const std::filesystem::path& target) {
  if (!is_device_or_pipe(target)) AtomicFile never_committed(target);
}

void write_whole(const std::filesystem::path& target, std::string_view text) {
  AtomicFile file(target);
  file.write(text);
  file.commit();
}

void sync_folder(const std::filesystem::path& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

}  // namespace ssm

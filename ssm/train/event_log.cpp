// TensorBoard's files. A record is
//   u64 length, u32 masked crc32c of the length, the bytes, u32 masked crc32c of the bytes      little-endian
// (tensorflow/core/lib/io/record_writer.h), the bytes are a tensorflow.Event (event.proto) in protobuf's wire
// format: wall_time 1 (double), step 2 (int64), file_version 3, summary 5, session_log 7.
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "ssm/core/clock.h"
#include "ssm/core/crc32c.h"
#include "ssm/core/error.h"
#include "ssm/io/bytes.h"
#include "ssm/train/metrics.h"

namespace ssm::train {
namespace {

enum Wire { varint = 0, fixed64 = 1, length_delimited = 2, fixed32 = 5 };

template <class T>
void put_bytes(std::string& out, T value) {
  static_assert(std::endian::native == std::endian::little);
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

void put_key(std::string& out, uint64_t field, Wire wire) { put_varint(out, field << 3 | wire); }

void put_text(std::string& out, uint64_t field, std::string_view text) {
  put_key(out, field, length_delimited);
  put_varint(out, text.size());
  out += text;
}

void put_scalar(std::string& summary, std::string_view tag, double value) {
  std::string scalar;
  put_text(scalar, 1, tag);
  put_key(scalar, 2, fixed32);
  put_bytes(scalar, static_cast<float>(value));
  put_text(summary, 1, scalar);
}

uint32_t masked(uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u; }

}  // namespace

EventLog::EventLog(const std::filesystem::path& folder, int64_t step) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  SSM_CHECK(!error, "{}: cannot create this folder: {}", printable(folder.string()), error.message());
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  // TensorBoard reads the files of a folder in the order of their names.
  const auto micros = static_cast<int64_t>(unix_time() * 1e6);
  path_ = folder / fmt::format("events.out.tfevents.{}.{:06}.{}.{}", micros / 1000000, micros % 1000000,
                               host.data(), ::getpid());
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
  SSM_CHECK(fd_ >= 0, "{}: cannot create: {}", printable(path_.string()),
            std::generic_category().message(errno));
  std::string version;
  put_text(version, 3, "brain.Event:2");
  write_event(version, 0);
  if (step == 0) return;
  std::string start, log;
  put_key(start, 1, varint);
  put_varint(start, 1);  // SessionLog.START: forget what came after its step
  put_text(log, 7, start);
  write_event(log, step + 1);
}

EventLog::~EventLog() { ::close(fd_); }

void EventLog::write(const Metrics& metrics) {
  std::string summary;
  const auto put = [&](std::string_view tag, const std::optional<double>& value) {
    if (value) put_scalar(summary, tag, *value);
  };
  put("train/loss", metrics.loss);
  put("train/lr", metrics.lr);
  put("train/grad_norm", metrics.grad_norm);
  put("train/tokens_per_second", metrics.tokens_per_second);
  put("validation/loss", metrics.validation_loss);
  if (summary.empty()) return;
  std::string fields;
  put_text(fields, 5, summary);
  write_event(fields, metrics.step);
}

void EventLog::write_event(std::string_view fields, int64_t step) {
  std::string event;
  put_key(event, 1, fixed64);
  put_bytes(event, unix_time());
  put_key(event, 2, varint);
  put_varint(event, static_cast<uint64_t>(step));
  event += fields;
  std::string record;
  put_bytes(record, uint64_t{event.size()});
  put_bytes(record, masked(crc32c(record)));
  record += event;
  put_bytes(record, masked(crc32c(event)));
  const ssize_t n = ::write(fd_, record.data(), record.size());
  SSM_CHECK(n == std::ssize(record), "{}: cannot write: {}", printable(path_.string()),
            n < 0 ? std::generic_category().message(errno) : "no space");
}

}  // namespace ssm::train

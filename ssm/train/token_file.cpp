#include "ssm/train/token_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <system_error>

#include "ssm/core/error.h"
#include "ssm/io/mapped_file.h"
#include "ssm/text/vocab.h"

namespace ssm::train {
namespace {

constexpr std::string_view kMagic = "SSM-TOKS", kEndMagic = "SSM-TEND";
constexpr uint32_t kVersion = 1;
constexpr size_t kHeaderBytes = 64;
constexpr size_t kBufferBytes = size_t{1} << 20;
constexpr int64_t kMostIds = int64_t{std::numeric_limits<int32_t>::max()};

struct Trailer {
  uint64_t tokens, documents, vocab, identity_bytes;
  uint32_t has_mask, token_bytes;
  uint64_t hash;
  uint64_t zero;
  char magic[8];

  uint64_t own_hash() const {
    return text::hash_bytes({reinterpret_cast<const char*>(this), offsetof(Trailer, hash)});
  }
};
static_assert(sizeof(Trailer) == 64);

uint64_t round_up(uint64_t n, uint64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
size_t token_bytes_for(int64_t vocab) { return vocab <= 65536 ? 2 : 4; }

}  // namespace

TokenFile::TokenFile(io::Bytes bytes) : bytes_(std::move(bytes)) {
  const std::string& name = bytes_.name;
  const std::string_view text = bytes_.text();
  const uint64_t size = bytes_.size();
  SSM_CHECK(size >= kHeaderBytes + sizeof(Trailer) && text.starts_with(kMagic), "{}: not a file of tokens",
            name);
  const auto version = io::load_le<uint32_t>(bytes_.data, 8);
  SSM_CHECK(version == kVersion, "{}: version {} of the format, this program reads {}", name, version,
            kVersion);
  const auto trailer = io::load_le<Trailer>(bytes_.data, size - sizeof(Trailer));
  SSM_CHECK(text.ends_with(kEndMagic) && trailer.hash == trailer.own_hash(),
            "{}: damaged: its end is not as written", name);
  SSM_CHECK(trailer.vocab >= 1 && trailer.vocab <= static_cast<uint64_t>(kMostIds),
            "{}: a vocabulary of {} ids", name, trailer.vocab);
  vocab_ = static_cast<int64_t>(trailer.vocab);
  token_bytes_ = token_bytes_for(vocab_);
  SSM_CHECK(trailer.token_bytes == token_bytes_ && io::load_le<uint32_t>(bytes_.data, 12) == token_bytes_,
            "{}: tokens of {} bytes for a vocabulary of {} ids", name, trailer.token_bytes, vocab_);
  SSM_CHECK(trailer.has_mask <= 1, "{}: mask flag {}", name, trailer.has_mask);
  // Each below the file's size, so that the sums cannot wrap.
  SSM_CHECK(trailer.tokens <= size && trailer.documents <= size / 8 && trailer.identity_bytes <= size,
            "{}: {} tokens of {} documents in {} bytes", name, trailer.tokens, trailer.documents, size);
  const uint64_t offsets = round_up(kHeaderBytes + trailer.tokens * token_bytes_, 8);
  const uint64_t mask = offsets + (trailer.documents + 1) * 8;
  const uint64_t identity = mask + (trailer.has_mask ? round_up(trailer.tokens, 64) / 8 : 0);
  SSM_CHECK(identity + trailer.identity_bytes + sizeof(Trailer) == size,
            "{}: {} tokens of {} documents do not make {} bytes", name, trailer.tokens, trailer.documents,
            size);
  tokens_ = static_cast<int64_t>(trailer.tokens);
  documents_ = static_cast<int64_t>(trailer.documents);
  ids_ = bytes_.data.data() + kHeaderBytes;
  offsets_ = bytes_.data.data() + offsets;
  if (trailer.has_mask) mask_ = bytes_.data.data() + mask;
  identity_ = text.substr(identity, trailer.identity_bytes);
  check_offsets();
}

void TokenFile::check_offsets() const {
  int64_t last = begin(0);
  SSM_CHECK(last == 0, "{}: document 0 begins at token {}", bytes_.name, last);
  for (int64_t d = 1; d <= documents_; ++d) {
    const int64_t next = begin(d);
    SSM_CHECK(next >= last && next <= tokens_, "{}: document {} ends at token {} of {}", bytes_.name, d - 1,
              next, tokens_);
    last = next;
  }
  SSM_CHECK(last == tokens_, "{}: {} of {} tokens are in documents", bytes_.name, last, tokens_);
}

std::shared_ptr<const TokenFile> TokenFile::open(const std::filesystem::path& path) {
  return std::make_shared<const TokenFile>(io::map_file(path));
}

int64_t TokenFile::begin(int64_t document) const {
  int64_t value;
  std::memcpy(&value, offsets_ + document * 8, sizeof value);
  return value;
}

void TokenFile::read(int64_t begin, std::span<int32_t> ids) const {
  SSM_CHECK(begin >= 0 && io::fits(static_cast<uint64_t>(begin), ids.size(), static_cast<uint64_t>(tokens_)),
            "{}: tokens [{}, {}) of {}", bytes_.name, begin, begin + std::ssize(ids), tokens_);
  const auto copy = [&](auto zero) {
    using Id = decltype(zero);
    const std::byte* from = ids_ + static_cast<size_t>(begin) * sizeof(Id);
    for (size_t i = 0; i < ids.size(); ++i) {
      Id id;
      std::memcpy(&id, from + i * sizeof(Id), sizeof id);
      SSM_CHECK(int64_t{id} < vocab_, "{}: token {} is id {}, outside a vocabulary of {}", bytes_.name,
                static_cast<size_t>(begin) + i, id, vocab_);
      ids[i] = static_cast<int32_t>(id);
    }
  };
  if (token_bytes_ == 2) {
    copy(uint16_t{});
  } else {
    copy(uint32_t{});
  }
}

// Bytes that wait in a nameless file of the target's folder until the parts before them are complete.
class TokenFileWriter::Spill {
 public:
  Spill(const std::filesystem::path& target, std::string name) : name_(std::move(name)) {
    std::string path = target.string() + ".part-XXXXXX";
    fd_ = ::mkostemp(path.data(), O_CLOEXEC);
    SSM_CHECK(fd_ >= 0, "{}: cannot create: {}", name_, reason());
    ::unlink(path.c_str());
  }
  ~Spill() { ::close(fd_); }
  Spill(const Spill&) = delete;
  Spill& operator=(const Spill&) = delete;

  void add(uint64_t word) {
    waiting_.push_back(word);
    if (waiting_.size() * sizeof word >= kBufferBytes) flush();
  }

  // Gives every byte so far to sink(span).
  template <class Sink>
  void drain(const Sink& sink) {
    flush();
    SSM_CHECK(::lseek(fd_, 0, SEEK_SET) == 0, "{}: cannot read back: {}", name_, reason());
    std::vector<std::byte> block(kBufferBytes);
    for (;;) {
      const ssize_t n = ::read(fd_, block.data(), block.size());
      if (n < 0 && errno == EINTR) continue;
      SSM_CHECK(n >= 0, "{}: cannot read back: {}", name_, reason());
      if (n == 0) return;
      sink(std::span<const std::byte>(block).first(static_cast<size_t>(n)));
    }
  }

 private:
  static std::string reason() { return std::generic_category().message(errno); }

  void flush() {
    auto left = std::as_bytes(std::span<const uint64_t>(waiting_));
    while (!left.empty()) {
      const ssize_t n = ::write(fd_, left.data(), left.size());
      if (n < 0 && errno == EINTR) continue;
      SSM_CHECK(n >= 0, "{}: cannot write: {}", name_, reason());
      left = left.subspan(static_cast<size_t>(n));
    }
    waiting_.clear();
  }

  std::string name_;
  int fd_;
  std::vector<uint64_t> waiting_;
};

TokenFileWriter::TokenFileWriter(const std::filesystem::path& path, int64_t vocab)
    : name_(printable(path.string())), file_(path), vocab_(vocab), token_bytes_(token_bytes_for(vocab)) {
  SSM_CHECK(vocab >= 1 && vocab <= kMostIds, "{}: a vocabulary of {} ids", name_, vocab);
  offsets_ = std::make_unique<Spill>(path, name_);
  mask_ = std::make_unique<Spill>(path, name_);
  offsets_->add(0);
  buffer_.resize(kHeaderBytes);
  const uint32_t numbers[] = {kVersion, static_cast<uint32_t>(token_bytes_)};
  std::memcpy(buffer_.data(), kMagic.data(), kMagic.size());
  std::memcpy(buffer_.data() + kMagic.size(), numbers, sizeof numbers);
}

TokenFileWriter::~TokenFileWriter() = default;

void TokenFileWriter::append(std::span<const int32_t> ids, bool learn) {
  for (const int32_t id : ids) {
    SSM_CHECK(id >= 0 && id < vocab_, "{}: id {} is outside a vocabulary of {}", name_, id, vocab_);
    put_token(id);
    mask_word_ |= uint64_t{learn} << (tokens_ % 64);
    if (++tokens_ % 64 == 0) mask_->add(std::exchange(mask_word_, 0));
  }
  all_learned_ = all_learned_ && (learn || ids.empty());
}

void TokenFileWriter::put_token(int32_t id) {
  const size_t at = buffer_.size();
  buffer_.resize(at + token_bytes_);
  std::memcpy(buffer_.data() + at, &id, token_bytes_);  // little-endian: the low bytes come first
  if (buffer_.size() >= kBufferBytes) flush();
}

void TokenFileWriter::flush() {
  file_.write(buffer_);
  written_ += buffer_.size();
  buffer_.clear();
}

void TokenFileWriter::end_document() {
  ++documents_;
  offsets_->add(static_cast<uint64_t>(tokens_));
}

void TokenFileWriter::pad(size_t multiple) {
  flush();
  buffer_.resize(round_up(written_, multiple) - written_);
  flush();
}

void TokenFileWriter::commit(std::string_view identity) {
  pad(8);
  const auto write = [&](std::span<const std::byte> bytes) { file_.write(bytes); };
  offsets_->drain(write);
  if (!all_learned_) {
    if (tokens_ % 64 != 0) mask_->add(mask_word_);
    mask_->drain(write);
  }
  file_.write(identity);
  Trailer trailer{static_cast<uint64_t>(tokens_),
                  static_cast<uint64_t>(documents_),
                  static_cast<uint64_t>(vocab_),
                  identity.size(),
                  !all_learned_,
                  static_cast<uint32_t>(token_bytes_),
                  0,
                  0,
                  {}};
  trailer.hash = trailer.own_hash();
  std::memcpy(trailer.magic, kEndMagic.data(), kEndMagic.size());
  file_.write(std::as_bytes(std::span(&trailer, 1)));
  file_.commit();
}

}  // namespace ssm::train

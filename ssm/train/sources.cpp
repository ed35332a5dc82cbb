#include "ssm/train/sources.h"

#include <algorithm>

#include "ssm/core/error.h"

namespace ssm::train {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPieceBytes = size_t{1} << 20;
constexpr size_t kPieceCost = 64;  // counted for each piece, so that a round of tiny ones ends too

bool is_ascii_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

bool is_known(const fs::path& path) {
  const std::string extension = path.extension().string();
  return extension == ".txt" || extension == ".jsonl" || extension == ".ndjson" || extension == ".csv";
}

Source describe(const fs::path& path, RecordOptions options, bool raw_unknown) {
  const std::string name = printable(path.string());
  std::error_code error;
  SSM_CHECK(fs::exists(path, error), "{}: no such file or folder", name);
  SSM_CHECK(fs::is_regular_file(path, error), "{}: is not a regular file", name);
  if (raw_unknown && options.format.empty() && !is_known(path)) options.format = "raw";
  Source source{path, record_format(path, options), fs::file_size(path, error)};
  SSM_CHECK(!error, "{}: {}", name, error.message());
  SSM_CHECK(source.bytes > 0, "{}: the file is empty", name);
  return source;
}

std::vector<fs::path> known_files(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    if (is_known(it->path()) && it->is_regular_file(ignored)) files.push_back(it->path());
  }
  SSM_CHECK(!error, "{}: {}", printable(folder.string()), error.message());
  SSM_CHECK(!files.empty(), "{}: no .txt, .jsonl or .csv in this folder", printable(folder.string()));
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

std::vector<Source> find_sources(const std::vector<fs::path>& paths, const RecordOptions& options,
                                 bool raw_unknown) {
  SSM_CHECK(!paths.empty(), "no training data are given");
  std::vector<Source> sources;
  for (const fs::path& path : paths) {
    std::error_code error;
    if (!fs::is_directory(path, error)) {
      sources.push_back(describe(path, options, raw_unknown));
      continue;
    }
    for (const fs::path& file : known_files(path)) sources.push_back(describe(file, options, raw_unknown));
  }
  return sources;
}

bool TextPieces::next(TextPiece& piece) {
  if (!document_ && !next_document()) return false;
  const Part& part = (*document_)[part_];
  const std::string_view rest = part.view().substr(at_);
  const size_t size =
      cut_ == Cut::anywhere ? std::min(rest.size(), kPieceBytes) : tokenisable_prefix(rest, kPieceBytes);
  const size_t skip = at_ > 0 && cut_ == Cut::drop_space && rest.starts_with(' ') ? 1 : 0;
  piece = {rest.substr(skip, size - skip),
           part.learn,
           part.framed,
           part_ == 0 && at_ == 0,
           false,
           document_,
           reader_};
  at_ += size;
  if (at_ == part.view().size()) {
    at_ = 0;
    piece.ends_document = ++part_ == document_->size();
    if (piece.ends_document) document_ = nullptr;
  }
  last_ = piece.text;
  return true;
}

void TextPieces::next_round(size_t bytes, std::vector<TextPiece>& round) {
  round.clear();
  TextPiece piece;
  for (size_t taken = 0; taken < bytes && next(piece);) {
    taken += piece.text.size() + kPieceCost;
    round.push_back(std::move(piece));
  }
}

double TextPieces::fraction() const {
  uint64_t all = 0, done = 0;
  for (size_t i = 0; i < sources_.size(); ++i) {
    all += sources_[i].bytes;
    if (i + 1 < source_) done += sources_[i].bytes;
  }
  return static_cast<double>(done + consumed()) / static_cast<double>(all);
}

void TextPieces::release() const {
  if (file_) file_->release(file_->bytes().data(), consumed());
}

bool TextPieces::next_document() {
  for (;;) {
    auto document = std::make_shared<Document>();
    while (reader_ && reader_->next(*document)) {
      std::erase_if(*document, [](const Part& part) { return part.view().empty(); });
      if (document->empty()) continue;
      document_ = std::move(document);
      part_ = at_ = 0;
      return true;
    }
    if (source_ == sources_.size()) return false;
    open(sources_[source_++]);
  }
}

void TextPieces::open(const Source& source) {
  file_ = io::MappedFile::open(source.path);
  RecordOptions records = options_;
  records.format = source.format;
  reader_ = read_records({file_->bytes(), file_, printable(source.path.string())}, records);
  last_ = {};
}

// Of the file that is being read: up to the last piece, or where its text is no view, the reader's place.
size_t TextPieces::consumed() const {
  if (!file_) return 0;
  const auto base = reinterpret_cast<uintptr_t>(file_->bytes().data());
  const auto end = reinterpret_cast<uintptr_t>(last_.data()) + last_.size();
  return end > base && end - base <= file_->bytes().size() ? end - base : reader_->offset();
}

size_t tokenisable_prefix(std::string_view text, size_t limit) {
  if (text.size() <= limit) return text.size();
  for (size_t at = limit; at > limit / 2; --at) {
    if (text[at] == ' ' && is_ascii_letter(text[at - 1]) && at + 1 < text.size() &&
        is_ascii_letter(text[at + 1]))
      return at;
  }
  for (size_t at = limit; at + 4 > limit; --at) {  // else between two characters
    if ((static_cast<uint8_t>(text[at]) & 0xC0) != 0x80) return at;
  }
  return limit;
}

}  // namespace ssm::train

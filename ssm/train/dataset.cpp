#include "ssm/train/dataset.h"

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "ssm/core/error.h"
#include "ssm/core/log.h"
#include "ssm/core/parallel.h"
#include "ssm/io/mapped_file.h"
#include "ssm/text/tokenizer.h"
#include "ssm/text/utf8.h"
#include "ssm/text/vocab.h"

namespace ssm::train {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPieceBytes = size_t{1} << 20;
constexpr size_t kRoundBytes = size_t{4} << 20;  // tokenised together
constexpr size_t kHeadBytes = size_t{64} << 10;
constexpr int64_t kByteIds = 256;

struct Source {
  fs::path path;
  std::string format;
  uint64_t bytes = 0;
};

bool is_ascii_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

Source describe(const fs::path& path, const DatasetOptions& options) {
  const std::string name = io::printable(path.string());
  std::error_code error;
  SSM_CHECK(fs::exists(path, error), "{}: no such file or folder", name);
  SSM_CHECK(fs::is_regular_file(path, error), "{}: is not a regular file", name);
  RecordOptions records = options.records;
  const std::string extension = path.extension().string();
  const bool text =
      extension == ".txt" || extension == ".jsonl" || extension == ".ndjson" || extension == ".csv";
  if (options.tokenizer.empty() && records.format.empty() && !text) records.format = "raw";
  Source source{path, record_format(path, records), fs::file_size(path, error)};
  SSM_CHECK(!error, "{}: {}", name, error.message());
  SSM_CHECK(source.bytes > 0, "{}: the file is empty", name);
  return source;
}

std::vector<Source> describe_all(const std::vector<fs::path>& paths, const DatasetOptions& options) {
  SSM_CHECK(!paths.empty(), "no training data are given");
  std::vector<Source> sources;
  for (const fs::path& path : paths) {
    std::error_code error;
    if (!fs::is_directory(path, error)) {
      sources.push_back(describe(path, options));
      continue;
    }
    std::vector<fs::path> files;
    for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
      const std::string extension = it->path().extension().string();
      std::error_code ignored;
      const bool known =
          extension == ".txt" || extension == ".jsonl" || extension == ".ndjson" || extension == ".csv";
      if (known && it->is_regular_file(ignored)) files.push_back(it->path());
    }
    SSM_CHECK(!error, "{}: {}", io::printable(path.string()), error.message());
    SSM_CHECK(!files.empty(), "{}: no .txt, .jsonl or .csv in this folder", io::printable(path.string()));
    std::sort(files.begin(), files.end());
    for (const fs::path& file : files) sources.push_back(describe(file, options));
  }
  return sources;
}

std::string hex(uint64_t hash) { return fmt::format("{:016x}", hash); }

std::string hash_of_head(const fs::path& path, size_t limit) {
  const io::Bytes bytes = io::map_file(path);
  return hex(text::hash_bytes(bytes.text().substr(0, limit)));
}

nlohmann::ordered_json tokenizer_identity(const fs::path& tokenizer) {
  if (tokenizer.empty()) return "bytes";
  nlohmann::ordered_json files;
  std::error_code error;
  if (!fs::is_directory(tokenizer, error)) return hash_of_head(tokenizer, SIZE_MAX);
  std::vector<fs::path> found;
  for (fs::directory_iterator it(tokenizer, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::error_code ignored;
    if ((name == "tokenizer.json" || name.starts_with("tokenizer.model")) && it->is_regular_file(ignored)) {
      found.push_back(it->path());
    }
  }
  std::sort(found.begin(), found.end());
  for (const fs::path& file : found) files[file.filename().string()] = hash_of_head(file, SIZE_MAX);
  return files;
}

// What a cache file was made from, as it stands in the file.
std::string identity_of(const std::vector<Source>& sources, const DatasetOptions& options) {
  nlohmann::ordered_json files = nlohmann::ordered_json::array();
  for (const Source& source : sources) {
    std::error_code error;
    const auto modified = fs::last_write_time(source.path, error).time_since_epoch().count();
    SSM_CHECK(!error, "{}: {}", io::printable(source.path.string()), error.message());
    files.push_back({{"path", fs::absolute(source.path).lexically_normal().string()},
                     {"format", source.format},
                     {"bytes", source.bytes},
                     {"modified", static_cast<int64_t>(modified)},
                     {"head", hash_of_head(source.path, kHeadBytes)}});
  }
  const auto id = [](std::optional<int32_t> token) {
    return token ? nlohmann::ordered_json(*token) : nlohmann::ordered_json();
  };
  const nlohmann::ordered_json all{{"format", 1},
                                   {"sources", files},
                                   {"tokenizer", tokenizer_identity(options.tokenizer)},
                                   {"column", options.records.column},
                                   {"separator", options.records.separator},
                                   {"chat", options.records.chat ? options.records.chat_name : ""},
                                   {"bos", id(options.bos)},
                                   {"eos", id(options.eos)}};
  return all.dump(-1, ' ', true, nlohmann::ordered_json::error_handler_t::replace);
}

// A stretch of one part of one document, and what must live while it is looked at.
struct Piece {
  std::string_view text;
  bool learn = true;
  bool begins_document = false, ends_document = false;
  std::shared_ptr<const Document> document;
  std::shared_ptr<RecordReader> reader;
};

// The pieces of all documents of all sources, in order.
class Pieces {
 public:
  Pieces(const std::vector<Source>& sources, const DatasetOptions& options, bool drops_space)
      : sources_(sources), options_(options), drops_space_(drops_space) {}

  bool next(Piece& piece) {
    if (!document_ && !next_document()) return false;
    const Part& part = (*document_)[part_];
    std::string_view rest = part.view().substr(at_);
    const size_t size = options_.tokenizer.empty() ? std::min(rest.size(), kPieceBytes)
                                                   : tokenisable_prefix(rest, kPieceBytes);
    // Such a tokenizer puts a space before each text itself.
    const size_t skip = at_ > 0 && drops_space_ && rest.starts_with(' ') ? 1 : 0;
    piece = {rest.substr(skip, size - skip), part.learn, part_ == 0 && at_ == 0, false, document_, reader_};
    at_ += size;
    if (at_ == part.view().size()) {
      at_ = 0;
      piece.ends_document = ++part_ == document_->size();
      if (piece.ends_document) document_ = nullptr;
    }
    last_ = piece.text;
    return true;
  }

  double fraction() const {
    uint64_t all = 0, done = 0;
    for (size_t i = 0; i < sources_.size(); ++i) {
      all += sources_[i].bytes;
      if (i + 1 < source_) done += sources_[i].bytes;
    }
    return static_cast<double>(done + consumed()) / static_cast<double>(all);
  }

  // What was given is not needed any more: its pages may leave memory.
  void release() const {
    if (file_) file_->release(file_->bytes().data(), consumed());
  }

 private:
  bool next_document() {
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

  void open(const Source& source) {
    file_ = io::MappedFile::open(source.path);
    RecordOptions records = options_.records;
    records.format = source.format;
    reader_ = read_records({file_->bytes(), file_, io::printable(source.path.string())}, records);
  }

  // Of the file that is being read: up to the last piece, or where its text is no view, the reader's place.
  size_t consumed() const {
    if (!file_) return 0;
    const auto base = reinterpret_cast<uintptr_t>(file_->bytes().data());
    const auto end = reinterpret_cast<uintptr_t>(last_.data()) + last_.size();
    return end > base && end - base <= file_->bytes().size() ? end - base : reader_->offset();
  }

  const std::vector<Source>& sources_;
  const DatasetOptions& options_;
  const bool drops_space_;
  size_t source_ = 0;  // the next one
  std::shared_ptr<const io::MappedFile> file_;
  std::shared_ptr<RecordReader> reader_;
  std::shared_ptr<const Document> document_;
  size_t part_ = 0, at_ = 0;
  std::string_view last_;
};

std::vector<int32_t> encode(const text::Tokenizer* tokenizer, std::string_view text) {
  if (tokenizer) return tokenizer->encode(text);
  std::vector<int32_t> ids(text.size());
  std::transform(text.begin(), text.end(), ids.begin(), [](char c) { return static_cast<uint8_t>(c); });
  return ids;
}

void write_piece(const Piece& piece, const std::vector<int32_t>& ids, const DatasetOptions& options,
                 TokenFileWriter& writer) {
  if (piece.begins_document && options.bos) writer.append(std::span(&*options.bos, 1), piece.learn);
  writer.append(ids, piece.learn);
  if (!piece.ends_document) return;
  if (options.eos) writer.append(std::span(&*options.eos, 1));
  writer.end_document();
}

void tokenise(const std::vector<Source>& sources, const DatasetOptions& options, const std::string& identity,
              const fs::path& target) {
  std::unique_ptr<text::Tokenizer> tokenizer;
  if (!options.tokenizer.empty()) {
    tokenizer = text::open_tokenizer(options.tokenizer);
    SSM_CHECK(tokenizer, "{}: no tokenizer.json and no tokenizer.model in this folder",
              options.tokenizer.string());
  }
  const int64_t vocab = tokenizer ? tokenizer->size() : kByteIds;
  for (const auto& id : {options.bos, options.eos}) {
    SSM_CHECK(!id || (*id >= 0 && *id < vocab),
              "id {} before or after documents is outside a vocabulary of {}", id.value_or(0), vocab);
  }
  TokenFileWriter writer(target, vocab);
  Pieces pieces(sources, options, tokenizer && tokenizer->drops_first_space());
  std::vector<Piece> round;
  for (bool more = true; more;) {
    round.clear();
    for (size_t bytes = 0; more && bytes < kRoundBytes;) {
      Piece piece;
      more = pieces.next(piece);
      if (!more) break;
      bytes += piece.text.size() + 64;
      round.push_back(std::move(piece));
    }
    std::vector<std::vector<int32_t>> ids(round.size());
    parallel_for(std::ssize(round), 1, [&](int64_t begin, int64_t end) {
      for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
        ids[i] = encode(tokenizer.get(), round[i].text);
      }
    });
    for (size_t i = 0; i < round.size(); ++i) write_piece(round[i], ids[i], options, writer);
    pieces.release();
    if (options.progress) options.progress(more ? pieces.fraction() : 1.0);
  }
  writer.commit(identity);
}

std::shared_ptr<const TokenFile> open_cached(const fs::path& path, const std::string& identity) {
  std::error_code error;
  if (!fs::exists(path, error)) return nullptr;
  try {
    auto file = TokenFile::open(path);
    return file->identity() == identity ? file : nullptr;
  } catch (const Error& e) {
    log(LogLevel::warning, fmt::format("{}; tokenising again", e.what()));
    return nullptr;
  }
}

}  // namespace

size_t tokenisable_prefix(std::string_view text, size_t limit) {
  if (text.size() <= limit) return text.size();
  for (size_t at = limit; at > limit / 2; --at) {
    if (text[at] == ' ' && is_ascii_letter(text[at - 1]) &&
        is_ascii_letter(text[at + 1 < text.size() ? at + 1 : at]))
      return at;
  }
  for (size_t at = limit; at + 4 > limit; --at) {  // else between two characters
    if ((static_cast<uint8_t>(text[at]) & 0xC0) != 0x80) return at;
  }
  return limit;
}

fs::path dataset_cache_folder() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache && *cache == '/')
    return fs::path(cache) / "ssm/datasets";
  const char* home = std::getenv("HOME");
  SSM_CHECK(home && *home, "no folder for the tokenised data: neither XDG_CACHE_HOME nor HOME is set");
  return fs::path(home) / ".cache/ssm/datasets";
}

std::shared_ptr<const TokenFile> open_dataset(const std::vector<fs::path>& paths,
                                              const DatasetOptions& options) {
  const std::vector<Source> sources = describe_all(paths, options);
  const std::string identity = identity_of(sources, options);
  const fs::path folder = options.cache.empty() ? dataset_cache_folder() : options.cache;
  std::error_code error;
  fs::create_directories(folder, error);
  SSM_CHECK(!error, "{}: cannot create this folder: {}", io::printable(folder.string()), error.message());
  const fs::path target = folder / (sources[0].path.stem().string().substr(0, 64) + "-" +
                                    hex(text::hash_bytes(identity)) + ".tokens");
  auto file = open_cached(target, identity);
  if (!file) {
    tokenise(sources, options, identity, target);
    file = TokenFile::open(target);
  }
  SSM_CHECK(file->documents() > 0, "{}: no document with text in it",
            io::printable(sources[0].path.string()));
  return file;
}

}  // namespace ssm::train

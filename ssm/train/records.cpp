#include "ssm/train/records.h"

#include <algorithm>
#include <optional>

#include "ssm/core/error.h"
#include "ssm/io/json.h"
#include "ssm/train/csv.h"

namespace ssm::train {
namespace {

using nlohmann::json;

enum class Kind { text, pair, chat };

// What records with these fields hold. `where` is the file and line of the first.
template <class Has>
Kind kind_of(const RecordOptions& options, const std::string& where, const Has& has) {
  if (!options.column.empty()) {
    SSM_CHECK(has(options.column), "{}: no field \"{}\"", where, printable(options.column));
    return Kind::text;
  }
  if (has("messages")) return Kind::chat;
  if (has("prompt") && has("completion")) return Kind::pair;
  SSM_CHECK(has("text"),
            "{}: no field \"text\", \"messages\", or \"prompt\" and \"completion\" (--column names another)",
            where);
  return Kind::text;
}

// Lines without their LF or CRLF.
class Lines {
 public:
  explicit Lines(std::string_view text) : text_(text), at_(text.starts_with("\xEF\xBB\xBF") ? 3 : 0) {}

  bool next(std::string_view& line) {
    if (at_ >= text_.size()) return false;
    begin_ = at_;
    const size_t end = std::min(text_.find('\n', at_), text_.size());
    line = text_.substr(at_, end - at_);
    if (line.ends_with('\r')) line.remove_suffix(1);
    at_ = std::min(end + 1, text_.size());
    ++number_;
    return true;
  }
  size_t number() const { return number_; }  // of the last line, from 1
  size_t begin() const { return begin_; }    // where it begins
  size_t end() const { return at_; }         // where the next one does

 private:
  std::string_view text_;
  size_t at_, begin_ = 0, number_ = 0;
};

class TextReader final : public RecordReader {
 public:
  TextReader(io::Bytes bytes, std::string separator)
      : bytes_(std::move(bytes)), separator_(std::move(separator)), lines_(bytes_.text()) {
    begin_ = lines_.end();
  }

  bool next(Document& document) override {
    while (!done_) {
      const size_t begin = begin_;
      const size_t end = next_end();
      if (begin == end) continue;  // nothing between two separators
      document.clear();
      document.push_back({"", bytes_.text().substr(begin, end - begin), true});
      return true;
    }
    return false;
  }
  size_t offset() const override { return begin_; }

 private:
  size_t next_end() {
    std::string_view line;
    while (!separator_.empty() && lines_.next(line)) {
      if (line != separator_) continue;
      begin_ = lines_.end();
      return lines_.begin();
    }
    done_ = true;
    return begin_ = bytes_.size();
  }

  io::Bytes bytes_;
  std::string separator_;
  Lines lines_;
  size_t begin_ = 0;
  bool done_ = false;
};

class RawReader final : public RecordReader {
 public:
  explicit RawReader(io::Bytes bytes) : bytes_(std::move(bytes)) {}
  bool next(Document& document) override {
    if (done_ || bytes_.size() == 0) return false;
    done_ = true;
    document.clear();
    document.push_back({"", bytes_.text(), true});
    return true;
  }
  size_t offset() const override { return done_ ? bytes_.size() : 0; }

 private:
  io::Bytes bytes_;
  bool done_ = false;
};

class JsonLinesReader final : public RecordReader {
 public:
  JsonLinesReader(io::Bytes bytes, const RecordOptions& options)
      : bytes_(std::move(bytes)), options_(options), lines_(bytes_.text()) {}

  bool next(Document& document) override {
    std::string_view line;
    do {
      if (!lines_.next(line)) return false;
    } while (line.find_first_not_of(" \t") == line.npos);
    where_ = fmt::format("{}:{}", bytes_.name, lines_.number());
    // Python writes NaN and Infinity into fields that may be none of ours.
    const bool special = line.find("NaN") != line.npos || line.find("Infinity") != line.npos;
    const json object =
        io::parse_json(line, where_, special ? io::SpecialFloats::allow : io::SpecialFloats::refuse);
    SSM_CHECK(object.is_object(), "{}: not an object", where_);
    if (!kind_)
      kind_ = kind_of(options_, where_, [&](const std::string& field) { return object.contains(field); });
    document.clear();
    if (*kind_ == Kind::chat) {
      document = conversation(line, object);
    } else if (*kind_ == Kind::pair) {
      document.push_back({string(object, "prompt", where_), {}, false});
      document.push_back({string(object, "completion", where_), {}, true});
    } else {
      document.push_back(
          {string(object, options_.column.empty() ? "text" : options_.column, where_), {}, true});
    }
    return true;
  }
  size_t offset() const override { return lines_.end(); }

 private:
  static std::string string(const json& object, const std::string& field, const std::string& where) {
    const auto it = object.find(field);
    SSM_CHECK(it != object.end(), "{}: no field \"{}\"", where, printable(field));
    SSM_CHECK(it->is_string(), "{}: field \"{}\" is not a string", where, printable(field));
    return it->get<std::string>();
  }

  Document conversation(std::string_view line, const json& object) const {
    using Ordered = nlohmann::ordered_json;
    SSM_CHECK(options_.chat, "{}: field \"messages\": {}", where_, options_.why_no_chat);
    SSM_CHECK(object.contains("messages"), "{}: no field \"messages\"", where_);
    // Templates see keys in their order; where Python's NaN stands in the line, only their own.
    Ordered record = Ordered::parse(line, nullptr, false);
    if (record.is_discarded()) record = object;
    text::ChatOptions options;
    if (const auto tools = record.find("tools"); tools != record.end()) options.tools = *tools;
    Document document;
    try {
      for (text::ChatPiece& piece : options_.chat->pieces(record["messages"], options)) {
        document.push_back({std::move(piece.text), {}, piece.learn, true});
      }
    } catch (const Error& e) {
      fail("{}: {}", where_, e.what());
    }
    return document;
  }

  io::Bytes bytes_;
  RecordOptions options_;
  Lines lines_;
  std::string where_;
  std::optional<Kind> kind_;
};

class CsvRecords final : public RecordReader {
 public:
  CsvRecords(io::Bytes bytes, const RecordOptions& options)
      : bytes_(std::move(bytes)), csv_(bytes_.text(), bytes_.name) {
    SSM_CHECK(csv_.next(record_), "{}: no first record that names the columns", bytes_.name);
    for (const CsvField& field : record_) columns_.push_back(field.text());
    const auto has = [&](const std::string& name) {
      return std::find(columns_.begin(), columns_.end(), name) != columns_.end();
    };
    const std::string where = fmt::format("{}:{}", bytes_.name, csv_.line());
    const Kind kind = kind_of(options, where, has);
    SSM_CHECK(kind != Kind::chat, "{}: field \"messages\": conversations are read from .jsonl only", where);
    if (kind == Kind::pair) {
      wanted_ = {{column("prompt", where), false}, {column("completion", where), true}};
    } else {
      wanted_ = {{column(options.column.empty() ? "text" : options.column, where), true}};
    }
  }

  bool next(Document& document) override {
    if (!csv_.next(record_)) return false;
    SSM_CHECK(record_.size() == columns_.size(), "{}:{}: {} fields, but the file has {} columns", bytes_.name,
              csv_.line(), record_.size(), columns_.size());
    document.clear();
    for (const Wanted& wanted : wanted_) {
      const CsvField& field = record_[wanted.column];
      if (field.has_quotes) {
        document.push_back({field.text(), {}, wanted.learn});
      } else {
        document.push_back({"", field.raw, wanted.learn});
      }
    }
    return true;
  }
  size_t offset() const override { return csv_.offset(); }

 private:
  struct Wanted {
    size_t column;
    bool learn;
  };

  size_t column(const std::string& name, const std::string& where) const {
    const auto it = std::find(columns_.begin(), columns_.end(), name);
    SSM_CHECK(std::find(it + 1, columns_.end(), name) == columns_.end(), "{}: two columns are called \"{}\"",
              where, printable(name));
    return static_cast<size_t>(it - columns_.begin());
  }

  io::Bytes bytes_;
  CsvReader csv_;
  std::vector<CsvField> record_;
  std::vector<std::string> columns_;
  std::vector<Wanted> wanted_;
};

}  // namespace

std::string record_format(const std::filesystem::path& path, const RecordOptions& options) {
  std::string format = options.format;
  if (format.empty()) {
    std::string extension = path.extension().string();
    std::transform(extension.begin(), extension.end(), extension.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
    format = extension == ".ndjson" ? "jsonl" : extension.substr(extension.empty() ? 0 : 1);
  }
  SSM_CHECK(format == "txt" || format == "jsonl" || format == "csv" || format == "raw",
            "{}: training data are .txt, .jsonl or .csv", printable(path.string()));
  return format;
}

std::unique_ptr<RecordReader> read_records(io::Bytes bytes, const RecordOptions& options) {
  const std::string format = record_format(bytes.name, options);
  if (format == "txt") return std::make_unique<TextReader>(std::move(bytes), options.separator);
  if (format == "jsonl") return std::make_unique<JsonLinesReader>(std::move(bytes), options);
  if (format == "csv") return std::make_unique<CsvRecords>(std::move(bytes), options);
  return std::make_unique<RawReader>(std::move(bytes));
}

}  // namespace ssm::train

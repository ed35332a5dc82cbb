#include "ssm/train/csv.h"

#include "ssm/core/error.h"

namespace ssm::train {
namespace {

// A quote that is never closed would take the rest of the file for one field.
constexpr size_t kLongestField = size_t{64} << 20;
constexpr size_t kMostFields = 65536;

}  // namespace

std::string CsvField::text() const {
  std::string result(raw);
  if (!has_quotes) return result;
  size_t kept = 0;
  for (size_t i = 0; i < raw.size(); ++i) {
    result[kept++] = raw[i];
    if (raw[i] == '"') ++i;  // the second of two
  }
  result.resize(kept);
  return result;
}

CsvReader::CsvReader(std::string_view text, std::string name) : text_(text), name_(std::move(name)) {
  if (text_.starts_with("\xEF\xBB\xBF")) at_ = 3;
}

void CsvReader::fail_at(size_t field, std::string_view what) const {
  fail("{}:{}: field {}: {}", name_, record_line_, field, what);
}

CsvField CsvReader::quoted(size_t field) {
  CsvField result;
  const size_t begin = ++at_;
  for (;;) {
    const size_t quote = text_.substr(0, std::min(text_.size(), begin + kLongestField + 1)).find('"', at_);
    if (quote == text_.npos) {
      fail_at(field, text_.size() - begin > kLongestField
                         ? "a quoted field of over 64 MiB (is its end missing?)"
                         : "its closing quote is missing");
    }
    for (; at_ < quote; ++at_) line_ += text_[at_] == '\n';
    if (quote + 1 >= text_.size() || text_[quote + 1] != '"') break;
    result.has_quotes = true;
    at_ = quote + 2;
  }
  result.raw = text_.substr(begin, at_ - begin);
  ++at_;
  if (at_ < text_.size() && text_[at_] != ',' && text_[at_] != '\n' &&
      !text_.substr(at_).starts_with("\r\n")) {
    fail_at(field, "text behind its closing quote");
  }
  return result;
}

CsvField CsvReader::bare(size_t field) {
  size_t end = text_.find_first_of(",\"\n", at_);
  if (end == text_.npos) end = text_.size();
  if (end < text_.size() && text_[end] == '"')
    fail_at(field, "a quote inside a field that does not begin with one");
  const bool carriage_return =
      end > at_ && text_[end - 1] == '\r' && (end == text_.size() || text_[end] == '\n');
  CsvField result{text_.substr(at_, end - at_ - carriage_return)};
  at_ = end - carriage_return;
  return result;
}

bool CsvReader::next(std::vector<CsvField>& record) {
  record.clear();
  while (at_ < text_.size() && (text_[at_] == '\n' || text_.substr(at_).starts_with("\r\n"))) {
    at_ += text_[at_] == '\n' ? 1 : 2;
    ++line_;
  }
  record_line_ = line_;
  if (at_ == text_.size()) return false;
  for (;;) {
    if (record.size() == kMostFields) fail_at(kMostFields + 1, "a record of over 65536 fields");
    const bool quote = at_ < text_.size() && text_[at_] == '"';
    record.push_back(quote ? quoted(record.size() + 1) : bare(record.size() + 1));
    if (at_ < text_.size() && text_[at_] == ',') {
      ++at_;
      continue;
    }
    if (at_ < text_.size() && text_[at_] == '\r') ++at_;
    if (at_ < text_.size()) {
      ++at_;
      ++line_;
    }
    return true;
  }
}

}  // namespace ssm::train

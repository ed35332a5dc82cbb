// Comma-separated values as RFC 4180 has them: fields that a quote opens end at the next lone quote and may
// hold commas, line ends and doubled quotes. Lines end in LF or CRLF. Reads mapped text without copying it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ssm::train {

// A field as the file has it: between its quotes where it has them, doubled quotes still doubled.
struct CsvField {
  std::string_view raw;
  bool has_quotes = false;  // holds doubled quotes

  std::string text() const;
};

class CsvReader {
 public:
  // `name` is what errors call the file.
  CsvReader(std::string_view text, std::string name);

  // The next record that is no empty line; false at the end. Throws Error naming file, line and field.
  bool next(std::vector<CsvField>& record);
  size_t line() const { return record_line_; }  // where that record begins, from 1
  size_t offset() const { return at_; }         // of the text behind it

 private:
  CsvField quoted(size_t field);
  CsvField bare(size_t field);
  [[noreturn]] void fail_at(size_t field, std::string_view what) const;

  std::string_view text_;
  std::string name_;
  size_t at_ = 0;
  size_t line_ = 1, record_line_ = 1;
};

}  // namespace ssm::train

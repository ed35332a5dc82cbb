// The header's JSON read event by event into the one structure it may have: a hundred megabytes of anything
// else never become a tree in memory, and no key is lost to another of the same name.
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "ssm/io/safetensors.h"

namespace ssm::io {
namespace {

using nlohmann::json;

class HeaderReader : public json::json_sax_t {
 public:
  HeaderReader(const std::string& file, SafetensorsHeader& header) : file_(file), header_(header) {}

  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool binary(binary_t&) override { return unexpected("binary data"); }
  bool number_float(number_float_t, const string_t& raw) override { return unexpected(raw); }
  bool number_integer(number_integer_t value) override {
    return unexpected("the negative number " + std::to_string(value));
  }
  bool number_unsigned(number_unsigned_t value) override;
  bool string(string_t& value) override;
  bool start_object(std::size_t) override;
  bool end_object() override;
  bool start_array(std::size_t) override;
  bool end_array() override;
  bool key(string_t& value) override;
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    fail("{}: the header is not valid JSON at byte {}", file_, position);
  }

 private:
  enum class Where { start, root, metadata, entry, shape, offsets };

  bool unexpected(std::string_view what) const {
    fail("{}: {}: {} is not expected here", file_, place(), printable(what));
  }
  std::string place() const {
    const std::string owner = name_ == "__metadata__" ? "__metadata__" : "tensor " + printable(name_);
    switch (where_) {
      case Where::start:
      case Where::root:
        return name_.empty() ? "header" : owner;
      case Where::shape:
        return owner + ": shape";
      case Where::offsets:
        return owner + ": data_offsets";
      default:
        return field_.empty() ? owner : owner + ": " + printable(field_);
    }
  }
  void finish_entry();

  const std::string& file_;
  SafetensorsHeader& header_;
  Where where_ = Where::start;
  std::string name_;   // key of the root
  std::string field_;  // key inside it
  std::unordered_set<std::string> names_;
  std::unordered_set<std::string> fields_;
  SafetensorsFile::Entry entry_;
  std::vector<int64_t> numbers_;
};

bool HeaderReader::number_unsigned(number_unsigned_t value) {
  if (where_ != Where::shape && where_ != Where::offsets) return unexpected("a number");
  SSM_CHECK(value <= static_cast<uint64_t>(INT64_MAX), "{}: {}: {} is too large", file_, place(), value);
  const size_t most = where_ == Where::shape ? Shape::kMaxRank : 2;
  SSM_CHECK(numbers_.size() < most, "{}: {}: more than {} numbers", file_, place(), most);
  numbers_.push_back(static_cast<int64_t>(value));
  return true;
}

bool HeaderReader::string(string_t& value) {
  if (where_ == Where::metadata) {
    header_.metadata[field_] = std::move(value);
    return true;
  }
  if (where_ != Where::entry || field_ != "dtype") return unexpected("a string");
  entry_.dtype = std::move(value);
  return true;
}

bool HeaderReader::start_object(std::size_t) {
  if (where_ == Where::start) {
    where_ = Where::root;
  } else if (where_ == Where::root) {
    where_ = name_ == "__metadata__" ? Where::metadata : Where::entry;
    entry_ = {};
    entry_.name = name_;
    fields_.clear();
    field_.clear();
  } else {
    return unexpected("an object");
  }
  return true;
}

bool HeaderReader::end_object() {
  if (where_ == Where::entry) finish_entry();
  where_ = Where::root;
  return true;
}

void HeaderReader::finish_entry() {
  for (const char* field : {"dtype", "shape", "data_offsets"}) {
    SSM_CHECK(fields_.contains(field), "{}: tensor {}: {} is missing", file_, printable(name_), field);
  }
  SSM_CHECK(entry_.begin <= entry_.end, "{}: tensor {}: data_offsets [{}, {}] end before they begin", file_,
            printable(name_), entry_.begin, entry_.end);
  header_.entries.push_back(std::move(entry_));
}

bool HeaderReader::start_array(std::size_t) {
  if (where_ != Where::entry || (field_ != "shape" && field_ != "data_offsets")) {
    return unexpected("an array");
  }
  where_ = field_ == "shape" ? Where::shape : Where::offsets;
  numbers_.clear();
  return true;
}

bool HeaderReader::end_array() {
  if (where_ == Where::shape) {
    entry_.shape = Shape(std::span<const int64_t>(numbers_));
  } else {
    SSM_CHECK(numbers_.size() == 2, "{}: {}: {} numbers instead of 2", file_, place(), numbers_.size());
    entry_.begin = static_cast<uint64_t>(numbers_[0]);
    entry_.end = static_cast<uint64_t>(numbers_[1]);
  }
  where_ = Where::entry;
  return true;
}

bool HeaderReader::key(string_t& value) {
  if (where_ == Where::root) {
    name_ = value;
    SSM_CHECK(names_.insert(value).second, "{}: tensor {} appears twice", file_, printable(value));
    return true;
  }
  field_ = value;
  SSM_CHECK(fields_.insert(value).second, "{}: {} appears twice", file_, place());
  SSM_CHECK(where_ == Where::metadata || value == "dtype" || value == "shape" || value == "data_offsets",
            "{}: tensor {}: unknown field {}", file_, printable(name_), printable(value));
  return true;
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view text, const std::string& file) {
  SSM_CHECK(text.starts_with('{'), "{}: the header does not begin with '{{'", file);
  SafetensorsHeader header;
  HeaderReader reader(file, header);
  SSM_CHECK(json::sax_parse(text.begin(), text.end(), &reader), "{}: the header is not valid JSON", file);
  return header;
}

}  // namespace ssm::io

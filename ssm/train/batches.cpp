#include "ssm/train/batches.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "ssm/core/error.h"
#include "ssm/text/vocab.h"

namespace ssm::train {
namespace {

constexpr int64_t kMostRows = int64_t{1} << 20, kLongestRow = int64_t{1} << 40;
constexpr int64_t kNeverCut = std::numeric_limits<int64_t>::max();

const DocumentSet& checked(const DocumentSet& documents, const BatchOptions& options) {
  SSM_CHECK(options.rows >= 1 && options.rows <= kMostRows, "batches of {} rows", options.rows);
  SSM_CHECK(options.length >= 1 && options.length <= kLongestRow, "batches of length {}", options.length);
  SSM_CHECK(options.longest >= 0 && options.longest <= kLongestRow, "documents cut after {} inputs",
            options.longest);
  SSM_CHECK(options.epochs >= 0, "{} epochs", options.epochs);
  return documents;
}

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

int64_t whole_number(const nlohmann::json& object, const char* field, int64_t least,
                     const std::string& name) {
  const auto it = object.find(field);
  SSM_CHECK(it != object.end() && it->is_number_integer() &&
                (!it->is_number_unsigned() || it->get<uint64_t>() >> 62 == 0),
            "{}: \"{}\" is no whole number", name, field);
  const auto value = it->get<int64_t>();
  SSM_CHECK(value >= least, "{}: \"{}\" is {}", name, field, value);
  return value;
}

}  // namespace

nlohmann::json BatchPosition::to_json() const {
  nlohmann::json list = nlohmann::json::array();
  for (const Stream& stream : streams) {
    list.push_back({{"unit", stream.unit}, {"at", stream.at}, {"continues", stream.continues}});
  }
  return {{"data", fmt::format("{:016x}", data)},
          {"step", step},
          {"epoch", epoch},
          {"next", next},
          {"streams", list}};
}

BatchPosition BatchPosition::from_json(const nlohmann::json& json, const std::string& name) {
  SSM_CHECK(json.is_object(), "{}: not an object", name);
  BatchPosition position;
  const auto data = json.find("data");
  SSM_CHECK(data != json.end() && data->is_string(), "{}: \"data\" is no string", name);
  const auto& digits = data->get_ref<const std::string&>();
  SSM_CHECK(digits.size() == 16 && digits.find_first_not_of("0123456789abcdef") == digits.npos,
            "{}: \"data\" is no number of 16 hexadecimal digits", name);
  position.data = std::stoull(digits, nullptr, 16);
  position.step = whole_number(json, "step", 0, name);
  position.epoch = whole_number(json, "epoch", 0, name);
  position.next = whole_number(json, "next", 0, name);
  const auto streams = json.find("streams");
  SSM_CHECK(streams != json.end() && streams->is_array() && streams->size() <= static_cast<size_t>(kMostRows),
            "{}: \"streams\" is no list", name);
  for (const auto& stream : *streams) {
    SSM_CHECK(stream.is_object(), "{}: a stream is no object", name);
    const auto continues = stream.find("continues");
    SSM_CHECK(continues != stream.end() && continues->is_boolean(), "{}: \"continues\" is not true or false",
              name);
    position.streams.push_back({whole_number(stream, "unit", -1, name), whole_number(stream, "at", 0, name),
                                continues->get<bool>()});
  }
  return position;
}

DocumentPieces::DocumentPieces(const DocumentSet& documents, int64_t longest, bool last_is_input)
    : documents_(&documents), longest_(longest), last_is_input_(last_is_input) {
  for (int64_t i = 0; i < documents.size(); ++i) {
    const int64_t inputs = inputs_of(documents[i]);
    inputs_ += inputs;
    if (inputs > longest_) {
      long_.push_back({i, size_});
      size_ += (inputs - 1) / longest_ + 1;
    } else {
      ++size_;
    }
  }
}

int64_t DocumentPieces::inputs_of(const TokenRange& document) const {
  return std::max<int64_t>(0, document.size() - 1 + last_is_input_);
}

DocumentPieces::Piece DocumentPieces::operator[](int64_t i) const {
  // The last long document that begins at piece i or before; every other document is one piece.
  auto after = std::upper_bound(long_.begin(), long_.end(), i, [](int64_t piece, const Long& document) {
    return piece < document.first_piece;
  });
  int64_t document = i, within = 0;
  if (after != long_.begin()) {
    const Long& before = *std::prev(after);
    const int64_t pieces = (inputs_of((*documents_)[before.document]) - 1) / longest_ + 1;
    within = i - before.first_piece;
    document = within < pieces ? before.document : before.document + 1 + (within - pieces);
    if (within >= pieces) within = 0;
  }
  const TokenRange range = (*documents_)[document];
  const int64_t inputs = inputs_of(range);
  if (inputs <= longest_) return {range, 0, inputs};
  return {range, within * longest_, std::min(inputs, (within + 1) * longest_)};
}

int64_t Batches::longest_piece(const DocumentSet& documents, const BatchOptions& options) {
  if (options.mode == BatchMode::documents) return kNeverCut;
  if (options.mode == BatchMode::packed) return options.length;
  if (options.longest > 0) return round_up(options.longest, options.length);
  return round_up(std::max<int64_t>(1, documents.tokens() / (4 * options.rows)), options.length);
}

Batches::Batches(DocumentSet documents, const BatchOptions& options)
    : documents_(std::move(documents)),
      options_(options),
      pieces_(checked(documents_, options_), longest_piece(documents_, options_), flows()) {
  SSM_CHECK(pieces_.inputs() > 0, "{}: no document has two tokens", documents_.file().name());
  position_.data = text::hash_bytes(fmt::format(
      "{:x}|{}|{}|{}|{}|{}|{}|{}", documents_.fingerprint(), static_cast<int>(options_.mode), options_.rows,
      options_.length, options_.seed, options_.shuffle, options_.reset_at_documents, options_.longest));
  if (options_.mode != BatchMode::documents) {
    position_.streams.resize(options_.mode == BatchMode::stream ? static_cast<size_t>(options_.rows) : 1);
  }
  set_order();
}

void Batches::set_order() {
  if (options_.shuffle) {
    order_ = Permutation(pieces_.size(), options_.seed, static_cast<uint64_t>(position_.epoch));
  }
}

void Batches::seek(const BatchPosition& position) {
  SSM_CHECK(position.data == position_.data && position.streams.size() == position_.streams.size(),
            "{}: the position is one of other data, or of batches of another kind", documents_.file().name());
  SSM_CHECK(
      position.step >= 0 && position.epoch >= 0 && position.next >= 0 && position.next <= pieces_.size(),
      "{}: piece {} of {}", documents_.file().name(), position.next, pieces_.size());
  for (const auto& stream : position.streams) {
    const bool inside = stream.unit >= 0 && stream.unit < pieces_.size();
    const int64_t size = inside ? pieces_[stream.unit].end - pieces_[stream.unit].begin : 0;
    SSM_CHECK(stream.unit == -1 || (inside && stream.at >= 0 && stream.at < size), "{}: input {} of piece {}",
              documents_.file().name(), stream.at, stream.unit);
  }
  position_ = position;
  set_order();
}

bool Batches::take(BatchPosition::Stream& stream) {
  for (;;) {
    if (options_.epochs > 0 && position_.epoch >= options_.epochs) return false;
    if (position_.next == pieces_.size()) {
      ++position_.epoch;
      position_.next = 0;
      set_order();
      continue;
    }
    const int64_t i = position_.next++;
    stream.unit = options_.shuffle ? order_(i) : i;
    stream.at = 0;
    const auto piece = pieces_[stream.unit];
    if (piece.begin < piece.end) return true;
    stream.unit = -1;
  }
}

void Batches::append(const DocumentPieces::Piece& piece, int64_t at, int64_t count, Batch& batch) {
  const TokenFile& file = documents_.file();
  const int64_t first = piece.document.begin + piece.begin + at;
  const bool ends = first + count == piece.document.end;  // the last input has no token behind it
  tokens_.resize(static_cast<size_t>(count + !ends));
  file.read(first, tokens_);
  batch.ids.insert(batch.ids.end(), tokens_.begin(), tokens_.begin() + count);
  for (int64_t i = 1; i <= count; ++i) {
    const bool learn = i < std::ssize(tokens_) && file.learned(first + i);
    batch.targets.push_back(learn ? tokens_[static_cast<size_t>(i)] : -1);
    batch.learned += learn;
  }
}

void Batches::fill_row(size_t number, int64_t room, Batch& batch) {
  BatchPosition::Stream& stream = position_.streams[number];
  const bool keeps_state = options_.mode == BatchMode::stream;
  bool first = true;
  while (room > 0 && (stream.unit >= 0 || take(stream))) {
    const auto piece = pieces_[stream.unit];
    const int64_t size = piece.end - piece.begin;
    const int64_t count = std::min(room, size - stream.at);
    append(piece, stream.at, count, batch);
    room -= count;
    stream.at += count;
    const bool done = stream.at == size;
    if (flows() && !first) {
      batch.lengths.back() += count;
    } else {
      batch.lengths.push_back(count);
      batch.streams.push_back(keeps_state ? static_cast<int32_t>(number)
                                          : static_cast<int32_t>(batch.streams.size()));
      batch.continues.push_back(first && stream.continues);
      batch.carries_on.push_back(0);
    }
    first = false;
    stream.continues = keeps_state && (flows() || !done);
    batch.carries_on.back() = stream.continues;
    if (done) stream.unit = -1, stream.at = 0;
  }
}

void Batches::fill_documents(Batch& batch) {
  BatchPosition::Stream stream;
  for (int32_t row = 0; row < options_.rows && take(stream); ++row) {
    const auto piece = pieces_[stream.unit];
    const int64_t count = std::min(piece.end - piece.begin, options_.length);
    append(piece, 0, count, batch);
    batch.lengths.push_back(count);
    batch.streams.push_back(row);
    batch.continues.push_back(0);
    batch.carries_on.push_back(0);
  }
}

bool Batches::next(Batch& batch) {
  batch.ids.clear();
  batch.targets.clear();
  batch.lengths.clear();
  batch.streams.clear();
  batch.continues.clear();
  batch.carries_on.clear();
  batch.learned = 0;
  if (options_.mode == BatchMode::documents) {
    fill_documents(batch);
  } else if (options_.mode == BatchMode::packed) {
    fill_row(0, options_.rows * options_.length, batch);
  } else {
    for (size_t stream = 0; stream < position_.streams.size(); ++stream)
      fill_row(stream, options_.length, batch);
  }
  if (batch.ids.empty()) return false;
  ++position_.step;
  return true;
}

int64_t Batches::steps_per_epoch() const {
  if (options_.mode == BatchMode::documents) return (pieces_.size() + options_.rows - 1) / options_.rows;
  const int64_t step = options_.rows * options_.length;
  return (pieces_.inputs() + step - 1) / step;
}

double Batches::epochs_done() const {
  return static_cast<double>(position_.epoch) +
         static_cast<double>(position_.next) / static_cast<double>(pieces_.size());
}

}  // namespace ssm::train

#include "ssm/text/tokenizer_json.h"

#include "ssm/core/error.h"

namespace ssm::text {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 64;

// A SAX handler: nlohmann's parser keeps no recursion, and this one refuses depth before it builds a tree.
class Reader final : public nlohmann::json_sax<json> {
 public:
  Reader(TokenizerJson& out, const std::string& name) : out_(out), name_(name) {}

  bool null() override { return value(nullptr); }
  bool boolean(bool v) override { return value(v); }
  bool number_integer(number_integer_t v) override { return value(v); }
  bool number_float(number_float_t v, const string_t&) override { return value(v); }
  bool binary(binary_t&) override { fail("{}: binary values are no JSON", name_); }

  bool number_unsigned(number_unsigned_t v) override {
    if (place_ != Place::vocab) return value(v);
    SSM_CHECK(v <= kMaxTokenId, "{}: model.vocab[\"{}\"] is {}, over {}", name_, vocab_key_, v, kMaxTokenId);
    out_.vocab.add(vocab_key_, static_cast<int32_t>(v));
    return true;
  }

  bool string(string_t& v) override {
    if (place_ == Place::merge_pair) {
      SSM_CHECK(pair_parts_ < 2, "{}: model.merges[{}] has more than two parts", name_, merge_count());
      ++pair_parts_;
      add_merge_part(v);
      return true;
    }
    if (place_ != Place::merges) return value(v);
    const size_t space = v.find(' ');
    // A line of an old merges.txt may have come along.
    if (v.starts_with("#version")) return true;
    SSM_CHECK(space != v.npos && v.find(' ', space + 1) == v.npos,
              "{}: model.merges[{}] is not two parts with a space between", name_, merge_count());
    add_merge_part(std::string_view(v).substr(0, space));
    add_merge_part(std::string_view(v).substr(space + 1));
    return true;
  }

  bool start_object(size_t) override {
    if (place_ == Place::tree && at_model_field("vocab")) {
      out_.has_vocab = true;
      return enter(Place::vocab);
    }
    return open(json::object());
  }
  bool key(string_t& v) override {
    if (place_ == Place::vocab) {
      vocab_key_ = v;
      return true;
    }
    if (place_ == Place::skip) return true;
    SSM_CHECK(!stack_.back()->contains(v), "{}: \"{}\" twice in one object", name_, v);
    key_ = v;
    return true;
  }
  bool end_object() override { return close(); }

  bool start_array(size_t) override {
    if (place_ == Place::tree && at_model_field("merges")) {
      out_.has_merges = true;
      return enter(Place::merges);
    }
    // A Unigram model's vocabulary; the type is refused by name later.
    if (place_ == Place::tree && at_model_field("vocab")) return enter(Place::skip);
    if (place_ == Place::merges) {
      place_ = Place::merge_pair;
      return true;
    }
    return open(json::array());
  }
  bool end_array() override {
    if (place_ == Place::merge_pair) {
      SSM_CHECK(pair_parts_ == 2, "{}: model.merges[{}] has not two parts", name_, merge_count());
      place_ = Place::merges;
      pair_parts_ = 0;
      return true;
    }
    return close();
  }

  bool parse_error(size_t position, const std::string&, const json::exception&) override {
    fail("{}: not JSON at byte {}", name_, position);
  }

 private:
  enum class Place { tree, vocab, merges, merge_pair, skip };

  // The number of the merge being read.
  size_t merge_count() const { return (out_.merges.size() - pair_parts_) / 2; }
  void add_merge_part(std::string_view part) {
    out_.merge_bytes.append(part);
    out_.merges.push_back(out_.merge_bytes.size());
  }

  bool at_model_field(std::string_view field) const {
    return stack_.size() == 2 && stack_[1]->is_object() && model_ == stack_[1] && key_ == field;
  }

  bool enter(Place place) {
    // Leaves a mark, so that the field coming twice is seen.
    (*stack_.back())[key_] = nullptr;
    place_ = place;
    skip_depth_ = 0;
    return true;
  }

  bool value(json v) {
    if (place_ == Place::skip) return true;
    SSM_CHECK(place_ != Place::vocab, "{}: model.vocab[\"{}\"] is not an id", name_, vocab_key_);
    SSM_CHECK(place_ == Place::tree, "{}: model.merges[{}] is not a merge", name_, merge_count());
    put(std::move(v));
    return true;
  }

  json* put(json v) {
    SSM_CHECK(!stack_.empty(), "{} is not a JSON object", name_);
    json& parent = *stack_.back();
    if (parent.is_object()) return &(parent[key_] = std::move(v));
    parent.push_back(std::move(v));
    return &parent.back();
  }

  bool open(json container) {
    if (place_ == Place::skip) {
      SSM_CHECK(++skip_depth_ < kMaxDepth, "{}: nested deeper than {}", name_, kMaxDepth);
      return true;
    }
    SSM_CHECK(place_ != Place::vocab, "{}: model.vocab[\"{}\"] is not an id", name_, vocab_key_);
    SSM_CHECK(place_ == Place::tree, "{}: model.merges[{}] is not a merge", name_, merge_count());
    SSM_CHECK(stack_.size() < kMaxDepth, "{}: nested deeper than {}", name_, kMaxDepth);
    if (stack_.empty()) {
      SSM_CHECK(container.is_object(), "{} is not a JSON object", name_);
      out_.rest = std::move(container);
      stack_.push_back(&out_.rest);
      return true;
    }
    const bool is_model = stack_.size() == 1 && key_ == "model";
    stack_.push_back(put(std::move(container)));
    if (is_model) model_ = stack_.back();
    return true;
  }

  bool close() {
    if (place_ == Place::tree) {
      stack_.pop_back();
    } else if (place_ == Place::skip && skip_depth_ > 0) {
      --skip_depth_;
    } else {
      place_ = Place::tree;
    }
    return true;
  }

  TokenizerJson& out_;
  const std::string& name_;
  Place place_ = Place::tree;
  std::vector<json*>
      stack_;  // the open objects and lists of the tree: a parent never moves while one is open
  const json* model_ = nullptr;
  std::string key_, vocab_key_;
  size_t pair_parts_ = 0, skip_depth_ = 0;
};

}  // namespace

TokenizerJson read_tokenizer_json(std::string_view text, const std::string& name) {
  SSM_CHECK(text.size() <= kMaxTokenizerBytes, "{}: {} bytes are more than a tokenizer may have ({})", name,
            text.size(), kMaxTokenizerBytes);
  TokenizerJson out;
  out.vocab.reserve(text.size() / 4, text.size() / 40);
  out.merge_bytes.reserve(text.size() / 4);
  out.merges.reserve(text.size() / 20);
  Reader reader(out, name);
  try {
    json::sax_parse(text.begin(), text.end(), &reader);
  } catch (const json::exception&) {
    fail("{}: not JSON", name);
  }
  return out;
}

}  // namespace ssm::text

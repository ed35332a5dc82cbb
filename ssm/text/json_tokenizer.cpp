#include "ssm/text/json_tokenizer.h"

#include <algorithm>
#include <deque>
#include <unordered_map>

#include "ssm/text/word_ids.h"

namespace ssm::text {
namespace {

constexpr uint64_t kMissing = uint64_t{1} << 63;

// A gap in the ids costs memory, and a hostile file may not have much of it.
constexpr size_t largest_id_for(size_t tokens) { return tokens * 16 + 65536; }

MergeTable read_merges(const TokenizerJson& json, const std::string& name) {
  MergeTable table;
  table.reserve(json.merges.size() / 2);
  const auto part = [&](size_t i) {
    const size_t begin = i == 0 ? 0 : json.merges[i - 1];
    return std::string_view(json.merge_bytes).substr(begin, json.merges[i] - begin);
  };
  const auto entry_of = [&](std::string_view token, size_t merge, size_t guess) {
    const auto entry = json.vocab.find_entry(token, guess);
    SSM_CHECK(entry, "{}: model.merges[{}] makes or takes \"{}\", which is not in model.vocab", name, merge,
              token);
    return *entry;
  };
  size_t made = 0;  // mostly behind what the merge before made
  for (size_t i = 0; i + 1 < json.merges.size(); i += 2) {
    const std::string_view left = part(i), right = part(i + 1);
    const std::string_view joined{left.data(), left.size() + right.size()};
    const size_t merge = i / 2;
    const size_t left_entry = entry_of(left, merge, 0), right_entry = entry_of(right, merge, 0);
    made = entry_of(joined, merge, made + 1);
    table.add(json.vocab.id(left_entry), json.vocab.id(right_entry),
              {static_cast<uint32_t>(merge), json.vocab.id(made)});
  }
  return table;
}

Bpe make_bpe(const JsonObject& model, TokenizerJson& json, const std::string& name) {
  const auto absent_or_empty = [&](const char* field) {
    const auto* value = model.find(field);
    return !value || (value->is_string() && value->get_ref<const std::string&>().empty());
  };
  for (const char* field : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    SSM_CHECK(absent_or_empty(field), "{} is not supported", model.name_of(field));
  }
  if (const auto* dropout = model.find("dropout")) {
    SSM_CHECK(dropout->is_number() && dropout->get<double>() == 0, "{} is not supported",
              model.name_of("dropout"));
  }
  Bpe::Options options;
  options.fuse_unk = model.boolean("fuse_unk", false);
  options.byte_fallback = model.boolean("byte_fallback", false);
  options.ignore_merges = model.boolean("ignore_merges", false);
  if (model.find("unk_token")) {
    options.unk = json.vocab.find(model.string("unk_token"));
    SSM_CHECK(options.unk, "{} is not in the vocabulary", model.name_of("unk_token"));
  }
  MergeTable merges = read_merges(json, name);
  return Bpe(std::move(json.vocab), std::move(merges), options);
}

}  // namespace

JsonTokenizer::JsonTokenizer(TokenizerJson json, const std::string& name) {
  const JsonObject root(json.rest, name);
  const JsonObject model(root.at("model"), name + ": model");
  if (model.find("type")) {
    SSM_CHECK(model.string("type") == "BPE", "{}: model.type \"{}\" is not supported, only BPE is", name,
              model.string("type"));
  }
  SSM_CHECK(json.has_vocab, "{}: model.vocab is not an object", name);
  SSM_CHECK(json.has_merges, "{}: model.merges is not a list", name);
  const auto field = [&](const char* key) { return json.rest.value(key, nlohmann::json()); };
  normalizer_ = parse_normalizer(field("normalizer"), name + ": normalizer");
  pre_tokenizers_ = PreTokenizers(field("pre_tokenizer"), name + ": pre_tokenizer");
  decoder_ = parse_decoder(field("decoder"), name + ": decoder");

  const auto twice = json.vocab.index();
  SSM_CHECK(!twice, "{}: model.vocab has \"{}\" twice", name, twice.value_or(""));
  read_added_tokens(root, json.vocab);
  check_ids(json.vocab, name);
  fill_token_bytes(json.vocab);
  index_added_tokens(name);
  bpe_.emplace(make_bpe(model, json, name));
}

void JsonTokenizer::read_added_tokens(const JsonObject& root, const Vocab& vocab) {
  if (!root.find("added_tokens")) return;
  size_t i = 0;
  for (const auto& json : root.array("added_tokens")) {
    const JsonObject object(json, fmt::format("{}: added_tokens[{}]", root.name, i++));
    AddedToken token;
    token.content = object.string("content");
    token.id = static_cast<int32_t>(object.count("id", kMaxTokenId));
    token.special = object.boolean("special", false);
    token.single_word = object.boolean("single_word", false);
    token.lstrip = object.boolean("lstrip", false);
    token.rstrip = object.boolean("rstrip", false);
    token.normalized = object.boolean("normalized", !token.special);
    if (token.content.empty()) continue;  // as in the reference
    SSM_CHECK(token.content.size() <= AddedTokenFinder::kMaxContentBytes, "{} is longer than {} bytes",
              object.name_of("content"), AddedTokenFinder::kMaxContentBytes);
    const auto known = vocab.find(token.content);
    SSM_CHECK(!known || *known == token.id, "{}: \"{}\" has id {} here and {} in model.vocab", object.name,
              token.content, token.id, known.value_or(-1));
    added_.push_back(std::move(token));
  }
}

void JsonTokenizer::check_ids(const Vocab& vocab, const std::string& name) const {
  const size_t count = vocab.count() + added_.size();
  SSM_CHECK(count > 0, "{}: the vocabulary is empty", name);
  std::vector<bool> taken;
  const auto take = [&](int32_t id, std::string_view token) {
    SSM_CHECK(static_cast<size_t>(id) <= largest_id_for(count),
              "{}: the id {} of \"{}\" is too large for {} tokens", name, id, token, count);
    if (taken.size() <= static_cast<size_t>(id)) taken.resize(static_cast<size_t>(id) + 1);
    SSM_CHECK(!taken[static_cast<size_t>(id)], "{}: the id {} of \"{}\" is another token's too", name, id,
              token);
    taken[static_cast<size_t>(id)] = true;
  };
  for (size_t i = 0; i < vocab.count(); ++i) take(vocab.id(i), vocab.token(i));
  for (const AddedToken& token : added_) {
    if (!vocab.find(token.content)) take(token.id, token.content);
  }
}

void JsonTokenizer::fill_token_bytes(const Vocab& vocab) {
  constexpr size_t kNone = ~size_t{0};
  std::vector<size_t> token_of;  // by id: an entry of the vocabulary, or behind these an added token
  const auto place = [&](int32_t id, size_t token) {
    const auto i = static_cast<size_t>(id);
    if (token_of.size() <= i) token_of.resize(i + 1, kNone);
    token_of[i] = token;
  };
  token_of.reserve(vocab.count() + added_.size());
  for (size_t i = 0; i < vocab.count(); ++i) place(vocab.id(i), i);
  for (size_t i = 0; i < added_.size(); ++i) place(added_[i].id, vocab.count() + i);
  token_end_.reserve(token_of.size());
  is_added_.resize(token_of.size());
  for (size_t i = 0; i < token_of.size(); ++i) {
    const size_t token = token_of[i];
    is_added_[i] = token != kNone && token >= vocab.count();
    if (is_added_[i])
      token_bytes_.append(added_[token - vocab.count()].content);
    else if (token != kNone)
      append_decoded(decoder_, vocab.token(token), token_bytes_);
    token_end_.push_back(token_bytes_.size() | (token == kNone ? kMissing : 0));
  }
}

void JsonTokenizer::index_added_tokens(const std::string& name) {
  for (const AddedToken& token : added_) {
    added_ids_.add(token.content, token.id);
    const std::string pattern = token.normalized ? normalize(token.content) : token.content;
    auto& finder = token.normalized ? normalized_finder_ : raw_finder_;
    SSM_CHECK(!pattern.empty() && finder.add(pattern, token), "{}: added token \"{}\" is there twice", name,
              token.content);
  }
  const auto twice = added_ids_.index();
  SSM_CHECK(!twice, "{}: added token \"{}\" is there twice", name, twice.value_or(""));
}

std::optional<int32_t> JsonTokenizer::find(std::string_view token) const {
  const auto added = added_ids_.find(token);
  return added ? added : bpe_->vocab().find(token);
}

std::string_view JsonTokenizer::bytes_of(int32_t id) const {
  const auto i = static_cast<size_t>(id);
  SSM_CHECK(id >= 0 && i < token_end_.size() && (token_end_[i] & kMissing) == 0,
            "the tokenizer has no token with the id {}", id);
  const size_t begin = i == 0 ? 0 : token_end_[i - 1] & ~kMissing;
  return std::string_view(token_bytes_).substr(begin, token_end_[i] - begin);
}

bool JsonTokenizer::drops_space_after(int32_t id) const {
  return decoder_.drops_first_space && normalizer_.prepends_space && is_added_[static_cast<size_t>(id)];
}

std::string JsonTokenizer::normalize(std::string_view text) const {
  std::string out(text);
  for (const auto& part : normalizer_.parts) out = part->apply(out);
  return out;
}

// One call of encode.
class JsonTokenizer::Encoding {
 public:
  explicit Encoding(const JsonTokenizer& tokenizer) : tokenizer_(tokenizer) {}

  std::vector<int32_t> run(std::string_view text) {
    tokenizer_.raw_finder_.split(text, [&](std::string_view part, std::optional<int32_t> id) {
      if (id) return ids_.push_back(*id);
      normalized_part(part, part.data() == text.data());
    });
    return std::move(ids_);
  }

 private:
  void normalized_part(std::string_view text, bool begins_text) {
    for (const auto& part : tokenizer_.normalizer_.parts) {
      if (!part->unchanged(text)) text = scratch_.made.emplace_back(part->apply(text));
    }
    tokenizer_.normalized_finder_.split(text, [&](std::string_view part, std::optional<int32_t> id) {
      if (id) return ids_.push_back(*id);
      const Piece whole{part, false, begins_text && part.data() == text.data()};
      tokenizer_.pre_tokenizers_.split(whole, scratch_, word_sink_);
    });
  }

  void word(const Piece& piece) {
    words_.append(piece.text, [&] { tokenizer_.bpe_->encode(piece.text, piece.byte_level, ids_); });
  }

  const JsonTokenizer& tokenizer_;
  std::vector<int32_t> ids_;
  SplitScratch scratch_;
  WordIds words_{ids_};
  const PieceSink word_sink_ = [this](const Piece& piece) { word(piece); };
};

std::vector<int32_t> JsonTokenizer::encode(std::string_view text) const { return Encoding(*this).run(text); }

std::unique_ptr<Tokenizer> parse_tokenizer_json(std::string_view json, std::string_view name) {
  const std::string named(name);
  return std::make_unique<JsonTokenizer>(read_tokenizer_json(json, named), named);
}

}  // namespace ssm::text

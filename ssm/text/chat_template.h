// How a model's conversations are written as text: its own Jinja template, or one of those built in.
//
//   chatml   <|im_start|>ROLE\nTEXT<|im_end|>\n ...
//   mistral  <s>[INST]TEXT[/INST]TEXT</s>[INST] ...           (Codestral; a system message goes into the
//   first
//                                                               user's, two newlines behind it)
//   plain    User: TEXT\nAssistant: TEXT\nUser: ...           for a model that knows no other
//
// A template's special tokens are written as text, and a tokenizer recognises them there: nothing is to be
// added in front or behind. Templates are hostile input (jinja/template.h).
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "ssm/text/jinja/template.h"
#include "ssm/text/tokenizer.h"

namespace ssm::text {

// bos_token, eos_token, ... as templates call them, and their text.
using SpecialTokens = std::map<std::string, std::string>;

struct ChatOptions {
  nlohmann::ordered_json tools;        // a list, or null: none
  bool add_generation_prompt = false;  // end with what stands before the assistant's answer
  std::optional<std::tm> now;          // without it a template finds no strftime_now
};

// A stretch of a conversation; `learn`: the assistant has written it.
struct ChatPiece {
  std::string text;
  bool learn = false;
};

class ChatTemplate {
 public:
  // `name` is what errors and people call it. Throws Error beginning with "NAME:LINE: ".
  ChatTemplate(std::string_view source, std::string name, SpecialTokens tokens);

  const std::string& name() const { return name_; }
  const std::string& source() const { return source_; }
  bool is_plain() const { return plain_; }  // the built-in one for models without any

  // `messages` is a list of objects with a `role` and, mostly, a `content`; more fields reach the template.
  // Throws Error where they are not, and where the template refuses them.
  std::string render(const nlohmann::ordered_json& messages, const ChatOptions& options = {}) const;

  // The whole conversation with the assistant's part of it marked: what generation blocks of the template
  // write, or, where it has none, what each assistant message adds to the text before it. Throws Error where
  // that cannot be told because the template writes earlier messages otherwise once a later one is there.
  std::vector<ChatPiece> pieces(const nlohmann::ordered_json& messages,
                                const ChatOptions& options = {}) const;

 private:
  friend ChatTemplate built_in_chat_template(const std::string&, SpecialTokens);

  jinja::Rendered rendered(const nlohmann::ordered_json& messages, const ChatOptions& options) const;

  std::string name_, source_;
  jinja::Template template_;
  SpecialTokens tokens_;
  bool plain_ = false;
};

// chatml, mistral or plain. Throws Error for another name.
ChatTemplate built_in_chat_template(const std::string& name, SpecialTokens tokens);

// The template of a model: the first of `folders` that holds one has it (chat_template.jinja, else
// chat_template.json, else the field of tokenizer_config.json); without any, what the vocabulary speaks for:
// mistral where it has [INST], chatml where it has <|im_start|>, else plain.
//
// `choice` replaces that: a built-in name, the name of one of several of the model's, or a file.
ChatTemplate open_chat_template(const std::vector<std::filesystem::path>& folders, const Tokenizer* tokenizer,
                                const std::string& choice = "");

// Whether `folder` holds a template of its own.
bool has_chat_template(const std::filesystem::path& folder);

}  // namespace ssm::text

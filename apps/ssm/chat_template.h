// How a conversation is written as tokens. Two forms are built in: Mistral's [INST], and a plain one for
// models that know none. Templates of tokenizer_config.json are not read yet.
//
//   plain:    User: MESSAGE\nAssistant: REPLY\nUser: ...      a reply ends before "\nUser:" or at an end
//   token mistral:  <s>[INST] MESSAGE[/INST] REPLY</s>[INST] ...
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ssm/runtime/generate.h"

namespace ssm::app {

// Whether a text for this model begins with its bos token: Mistral's do, others where the folder says so.
bool begins_with_bos(const LoadedModel& model);
// Whether the folder carries a chat template.
bool has_chat_template(const LoadedModel& model);

class ChatTemplate {
 public:
  explicit ChatTemplate(const LoadedModel& model);

  std::string_view name() const { return instruct_ ? "[INST]" : "User/Assistant"; }
  std::vector<std::string> stops() const;

  // A conversation is beginning(), then for each message turn(), the reply, closing(). Every closed reply
  // ends alike, so that a saved state can go on without knowing how its last one ended.
  std::vector<int32_t> beginning() const;
  std::vector<int32_t> turn(const std::string& message) const;
  std::vector<int32_t> reply(const std::string& message) const;  // an earlier one, closed
  struct Closing {
    bool drop_end;  // take the reply's end token back first
    std::vector<int32_t> ids;
  };
  Closing closing(StopReason reason) const;

 private:
  const LoadedModel& model_;
  bool instruct_;
};

}  // namespace ssm::app

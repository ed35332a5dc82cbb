// A conversation that a model's state follows: what is to be read next when the user says something, so that
// a turn costs its own length only.
//
// Each turn the whole conversation is rendered, with a mark where the last answer stands; what follows the
// mark is new to the state. Where a template writes earlier messages otherwise than before (some move the
// system message, or drop an answer's thoughts), everything has to be read anew, and say() tells so.
#pragma once

#include <string>

#include "ssm/text/chat_template.h"

namespace ssm::text {

class ChatHistory {
 public:
  // `system`: a message of that role at the beginning; empty: none. Both must outlive this.
  ChatHistory(const ChatTemplate& chat, const Tokenizer& tokenizer, std::string system = "",
              ChatOptions options = {});

  struct Turn {
    std::string text;   // to be read, then the answer is written
    bool anew = false;  // by a state that has read nothing
  };
  // A user's message, or more than one message; none of them is the assistant's last word. Throws Error where
  // the template refuses them; nothing has changed then.
  Turn say(const std::string& message);
  Turn say_all(const nlohmann::ordered_json& messages);

  // The answer to the last say(). `behind`: what the model itself has written behind it, stop() say.
  void answered(const std::string& text, std::string behind = "");

  // What there is to remember after an answer, and how to go on from it with the same template.
  struct Past {
    nlohmann::ordered_json messages;
    std::string prompt;  // of the last turn; empty: none yet, or not known
    std::string read;    // of what stands behind the last answer
  };
  const Past& past() const { return past_; }
  void go_on(Past past);

  // What always stands behind an answer, as far as it was not read yet: a state that is kept for later reads
  // it first, so that all kept states end alike.
  std::string close();
  // Goes on from such a state. What was said is not known then.
  void resume();
  // Forgets everything but the system message.
  void reset();

  // A text that tells that an answer is over: the template's token behind it, or else all up to the next
  // user's message. Empty where nothing stands there.
  const std::string& stop() const { return stop_; }

 private:
  void find_closing(const Tokenizer& tokenizer);

  const ChatTemplate& chat_;
  std::string system_;
  ChatOptions options_;
  std::string closing_, stop_;
  Past past_;
  bool known_ = true;  // every message is
};

}  // namespace ssm::text

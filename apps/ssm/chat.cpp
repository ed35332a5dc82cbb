// ssm chat: a conversation, line by line. The model's state is kept, so a turn reads only what is new.
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <memory>

#include "apps/ssm/chat_template.h"
#include "apps/ssm/commands.h"
#include "apps/ssm/interrupt.h"
#include "apps/ssm/model_options.h"
#include "apps/ssm/output.h"
#include "apps/ssm/sampling_options.h"

namespace ssm::app {
namespace {

struct Arguments {
  ModelOptions model;
  SamplingOptions sampling;
  int64_t max_new_tokens = 512;
};

class Conversation {
 public:
  Conversation(const LoadedModel& model, const GenerateOptions& options)
      : model_(model), template_(model), options_(options) {
    options_.stop = template_.stops();
    reset();
  }

  std::string_view template_name() const { return template_.name(); }

  void reset() {
    generator_ = std::make_unique<Generator>(model_, 1);
    started_ = false;
  }

  void say(const std::string& message) {
    std::vector<int32_t> ids = template_.turn(message);
    if (started_) {
      generator_->extend(0, ids);
    } else {
      const std::vector<int32_t> beginning = template_.beginning();
      ids.insert(ids.begin(), beginning.begin(), beginning.end());
      generator_->add(ids);
      started_ = true;
    }
    InterruptScope interrupt;
    std::string shown;
    bool begun = false;
    auto show = [&](std::string_view text) {
      shown += text;
      if (!begun) text.remove_prefix(std::min(text.find_first_not_of(" \n"), text.size()));
      begun |= !text.empty();
      standard_output().write(text);
      standard_output().flush();
    };
    const Generated reply = generator_->run(options_, [&](size_t, int32_t, std::string_view text) {
      show(text);
      return !interrupt.requested();
    })[0];
    if (reply.text.size() > shown.size()) show(std::string_view(reply.text).substr(shown.size()));
    standard_output().write("\n");
    standard_output().flush();
    const ChatTemplate::Closing closing = template_.closing(reply.reason);
    if (!closing.ids.empty()) generator_->extend(0, closing.ids, closing.drop_end);
  }

  void save(const std::string& path) const {
    SSM_CHECK(started_, "nothing was said yet");
    generator_->save(0, path);
  }

  void load(const std::string& path) {
    auto loaded = std::make_unique<Generator>(model_, 1);
    loaded->add({}, path);
    generator_ = std::move(loaded);
    started_ = true;
  }

 private:
  const LoadedModel& model_;
  ChatTemplate template_;
  GenerateOptions options_;
  std::unique_ptr<Generator> generator_;
  bool started_ = false;
};

// A line that begins with '/'. False: the conversation is over.
bool obey(const std::string& line, Conversation& conversation) {
  const size_t space = std::min(line.find(' '), line.size());
  const std::string verb = line.substr(0, space), file = line.substr(std::min(space + 1, line.size()));
  if (verb == "/quit" || verb == "/exit") return false;
  if (verb == "/reset") {
    conversation.reset();
  } else if ((verb == "/save" || verb == "/load") && !file.empty()) {
    verb == "/save" ? conversation.save(file) : conversation.load(file);
  } else {
    note("/reset, /save FILE, /load FILE and /quit are known; another line is a message");
  }
  return true;
}

void greet(const LoadedModel& model, const Conversation& conversation) {
  if (has_chat_template(model)) {
    note(fmt::format("warning: this model's own chat template is not read yet; {} is used instead",
                     conversation.template_name()));
  }
  if (stderr_is_terminal()) {
    note(fmt::format("template {}; /reset, /save FILE, /load FILE, /quit; Ctrl-C ends a reply",
                     conversation.template_name()));
  }
}

void run(Arguments& arguments) {
  SSM_CHECK(!arguments.model.json, "chat has no --json");
  const LoadedModel model = load(arguments.model);
  Conversation conversation(
      model,
      {.sampling = arguments.sampling.with_seed(), .max_new_tokens = arguments.max_new_tokens, .stop = {}});
  greet(model, conversation);
  const bool interactive = stdin_is_terminal();
  std::string line;
  for (;;) {
    if (interactive) fmt::print(stderr, "> ");
    if (!std::getline(std::cin, line)) break;
    if (line.ends_with('\r')) line.pop_back();
    if (line.empty()) continue;
    try {
      if (line.front() != '/') {
        conversation.say(line);
      } else if (!obey(line, conversation)) {
        break;
      }
    } catch (const Error& e) {
      if (!interactive) throw;  // a script must notice
      note(e.what());
    }
  }
}

}  // namespace

void add_chat(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* verb = program.add_subcommand("chat", "A conversation, line by line");
  add_model_argument(*verb, arguments->model);
  verb->add_option("-n,--max-new-tokens", arguments->max_new_tokens,
                   "Of one reply; -1: no limit; default 512")
      ->transform(integer_between(-1, std::numeric_limits<int64_t>::max()))
      ->option_text("N");
  add_sampling_flags(*verb, arguments->sampling);
  add_adapter_flag(*verb, arguments->model);
  add_quantize_flags(*verb, arguments->model);
  add_model_flags(*verb, arguments->model);
  verb->footer(
      "Every line of standard input is a message; replies go to standard output. Lines that begin with a "
      "slash:\n"
      "  /reset  forget everything     /save FILE  /load FILE  keep the state, go on from it     /quit\n"
      "The state has a fixed size: a turn reads only the new message, however long the conversation.\n"
      "A model with Mistral's [INST] tokens is written to in that form, every other one as\n"
      "\"User: MESSAGE\\nAssistant:\"; templates in tokenizer_config.json are not read yet. A model that was "
      "not\n"
      "trained on conversations, as the bundled one, just continues the text.\n\n"
      "Examples:\n"
      "  ssm chat ./my-model\n"
      "  printf 'Hello\\nTell me more\\n' | ssm chat ./my-model --temperature 0");
  verb->callback([arguments] { run(*arguments); });
}

}  // namespace ssm::app

// ssm chat: a conversation, line by line. The model's state is kept, so a turn reads only what is new.
#include <unistd.h>

#include <cstdio>
#include <ctime>
#include <iostream>
#include <memory>

#include "apps/ssm/commands.h"
#include "apps/ssm/flags.h"
#include "apps/ssm/interrupt.h"
#include "apps/ssm/model_options.h"
#include "apps/ssm/output.h"
#include "apps/ssm/sampling_options.h"
#include "ssm/load/chat.h"
#include "ssm/runtime/generate.h"
#include "ssm/text/chat_history.h"

namespace ssm::app {
namespace {

struct Arguments {
  ModelOptions model;
  SamplingOptions sampling;
  std::string chat_template, system;
  int64_t max_new_tokens = 512;
};

std::tm local_time() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  return local;
}

class Conversation {
 public:
  Conversation(const LoadedModel& model, Arguments& arguments)
      : model_(model),
        template_(open_chat_template(model, arguments.model.adapter, arguments.chat_template)),
        history_(template_, model.need_tokenizer(), arguments.system, {.tools = {}, .now = local_time()}),
        options_{.sampling = arguments.sampling.with_seed(),
                 .max_new_tokens = arguments.max_new_tokens,
                 .stop = {}} {
    if (!history_.stop().empty()) options_.stop = {history_.stop()};
    reset();
  }

  const std::string& template_name() const { return template_.name(); }

  void reset() {
    generator_ = std::make_unique<Generator>(model_, 1);
    history_.reset();
    started_ = drop_end_ = false;
  }

  void say(const std::string& message) {
    const text::ChatHistory::Turn turn = history_.say(message);
    const std::vector<int32_t> ids = encode_chat(model_, template_, turn.text, turn.anew);
    if (!turn.anew) {
      generator_->extend(0, ids, drop_end_);
    } else {
      if (started_) note("this template writes what was said before otherwise now: everything is read again");
      generator_->clear();
      generator_->add(ids);
    }
    started_ = true;
    const Generated reply = answer();
    history_.answered(reply.text, reply.reason == StopReason::stop ? history_.stop() : "");
    drop_end_ = reply.reason == StopReason::eos;  // the template writes what ends an answer
  }

  void save(const std::string& path) {
    SSM_CHECK(started_, "nothing was said yet");
    const std::vector<int32_t> ids = model_.need_tokenizer().encode(history_.close());
    if (!ids.empty()) {
      generator_->extend(0, ids, drop_end_);
      drop_end_ = false;
    }
    generator_->save(0, path);
  }

  void load(const std::string& path) {
    auto loaded = std::make_unique<Generator>(model_, 1);
    loaded->add({}, path);
    generator_ = std::move(loaded);
    history_.resume();
    started_ = true;
    drop_end_ = false;
  }

 private:
  Generated answer() {
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
    Generated reply = generator_->run(options_, [&](size_t, int32_t, std::string_view text) {
      show(text);
      return !interrupt.requested();
    })[0];
    if (reply.text.size() > shown.size()) show(std::string_view(reply.text).substr(shown.size()));
    standard_output().write("\n");
    standard_output().flush();
    return reply;
  }

  const LoadedModel& model_;
  text::ChatTemplate template_;
  text::ChatHistory history_;
  GenerateOptions options_;
  std::unique_ptr<Generator> generator_;
  bool started_ = false;
  bool drop_end_ = false;  // the last answer's end token was not read yet, and is not to be
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

void run(Arguments& arguments) {
  const LoadedModel model = load(arguments.model);
  Conversation conversation(model, arguments);
  if (stderr_is_terminal()) {
    note(fmt::format("template {}; /reset, /save FILE, /load FILE, /quit; Ctrl-C ends a reply",
                     conversation.template_name()));
  }
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
  add_chat_template_flag(*verb, arguments->chat_template);
  verb->add_option("--system", arguments->system, "A system message at the conversation's beginning")
      ->option_text("TEXT");
  add_sampling_flags(*verb, arguments->sampling);
  add_adapter_flag(*verb, arguments->model);
  add_quantize_flags(*verb, arguments->model);
  add_tokenizer_flag(*verb, arguments->model);
  add_machine_flags(*verb, arguments->model);
  verb->footer(
      "Every line of standard input is a message; replies go to standard output. Lines that begin with a "
      "slash:\n"
      "  /reset  forget everything     /save FILE  /load FILE  keep the state, go on from it     /quit\n"
      "The state has a fixed size: a turn reads only the new message, however long the conversation.\n"
      "Messages are written as the model's chat template says; without one in its folder as its tokens tell\n"
      "([INST] or ChatML), else as \"User: MESSAGE\\nAssistant:\". A model that was not trained on\n"
      "conversations, as the bundled one, just continues the text.\n\n"
      "Examples:\n"
      "  ssm chat ./my-model\n"
      "  printf 'Hello\\nTell me more\\n' | ssm chat ./my-model --temperature 0");
  verb->callback([arguments] { run(*arguments); });
}

}  // namespace ssm::app

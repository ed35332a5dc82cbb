// ssm serve: the model over HTTP, as OpenAI's clients speak it.
#include "ssm/serve/server.h"

#include <fmt/format.h>

#include <algorithm>

#include "apps/ssm/commands.h"
#include "apps/ssm/flags.h"
#include "apps/ssm/model_options.h"
#include "apps/ssm/output.h"
#include "apps/ssm/resolve_model.h"
#include "apps/ssm/token_list.h"
#include "ssm/load/chat.h"
#include "ssm/text/chat_history.h"

namespace ssm::app {
namespace {

struct Arguments {
  ModelOptions model;
  serve::ServerOptions server;
  std::string api_key_file, chat_template, prefix_cache_dtype = "f32";
  int64_t prefix_cache_mb = 256, session_mb = 256, max_body_mb = 8, stream_ms = 10;
  bool verbose = false;
};

std::string name_of_model(const std::string& model) {
  if (model.empty()) return kBundledModel;
  const std::filesystem::path path(model);
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return model;  // a name of the cache
  const std::filesystem::path name = std::filesystem::weakly_canonical(path, error).filename();
  return error || name.empty() ? model : name.string();
}

std::string read_key(const std::string& file) {
  std::string key = read_text_file(file);
  while (!key.empty() && (key.back() == '\n' || key.back() == '\r')) key.pop_back();
  SSM_CHECK(!key.empty(), "{}: the file of the API key is empty", file);
  return key;
}

void run(Arguments& a) {
  serve::ServerOptions& options = a.server;
  if (!a.api_key_file.empty()) options.api_key = read_key(a.api_key_file);
  options.model_name = name_of_model(a.model.model);
  options.prefix_cache_bytes = static_cast<size_t>(a.prefix_cache_mb) << 20;
  options.prefix_cache_dtype = *dtype_from_name(a.prefix_cache_dtype);
  options.session_bytes = static_cast<size_t>(a.session_mb) << 20;
  options.max_body_bytes = static_cast<size_t>(a.max_body_mb) << 20;
  options.stream_seconds = static_cast<double>(a.stream_ms) / 1000;
  if (a.verbose) options.log = [](std::string_view line) { note(line); };
  const LoadedModel model = load(a.model);
  options.begins_with_bos = begins_with_bos(model);
  options.warn = [](std::string_view line) { note(fmt::format("warning: {}", line)); };
  if (model.tokenizer) {
    options.chat.format = std::make_shared<const text::ChatTemplate>(
        open_chat_template(model, a.model.adapter, a.chat_template));
    options.chat.stop = text::ChatHistory(*options.chat.format, *model.tokenizer).stop();
  }
  serve::Server server(model, options);
  const bool v6 = options.host.find(':') != std::string::npos;
  note(fmt::format("serving {} on http://{}{}{}:{}", options.model_name, v6 ? "[" : "", options.host,
                   v6 ? "]" : "", server.port()));
  const bool loopback = options.host == "127.0.0.1" || options.host == "::1" || options.host == "localhost";
  if (!loopback && options.api_key.empty())
    note("warning: anybody who reaches this address can use it: no --api-key");
  server.run(true);
}

}  // namespace

void add_serve(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  Arguments& a = *arguments;
  serve::ServerOptions& s = a.server;
  CLI::App* verb = program.add_subcommand("serve", "The model over HTTP, as OpenAI's clients speak it");
  add_model_argument(*verb, a.model);
  verb->add_option("--host", s.host, "Address to listen on; default 127.0.0.1, this machine alone")
      ->option_text("ADDRESS");
  verb->add_option("--port", s.port, "Default 8080; 0: any free one")
      ->transform(integer_between(0, 65535))
      ->option_text("N");
  CLI::Option* key =
      verb->add_option("--api-key", s.api_key, "Clients must give this key")
          ->check([](const std::string& text) { return text.empty() ? "the key is empty" : ""; })
          ->option_text("KEY");
  verb->add_option("--api-key-file", a.api_key_file, "The same, from a file that others cannot read")
      ->option_text("FILE")
      ->excludes(key);
  repeatable(
      verb->add_option("--allow-host", s.hosts, "A name by which browsers may know this server; repeatable"))
      ->option_text("NAME");
  const auto count = [&](const char* flag, int64_t& value, int64_t low, const std::string& text) {
    verb->add_option(flag, value, fmt::format("{}; default {}", text, value))
        ->transform(integer_between(low, int64_t{1} << 32))
        ->option_text("N");
  };
  count("--max-sequences", s.max_sequences, 1, "Texts at the same time; each has its state in memory");
  count("--max-waiting", s.max_waiting, 0, "Texts that may wait beyond those; more get status 429");
  count("--prefix-cache-mb", a.prefix_cache_mb, 0, "MiB for states of known prompts; 0: none");
  verb->add_option("--prefix-cache-dtype", a.prefix_cache_dtype,
                   "How those states are kept; default f32. 16 bits hold twice as many")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}))
      ->option_text("f32|bf16|f16");
  verb->add_option("--session-dir", s.session_dir, "Keep sessions in this folder; default: in memory alone")
      ->option_text("FOLDER");
  count("--max-sessions", s.max_sessions, 0, "Sessions, at most");
  count("--session-mb", a.session_mb, 0, "MiB for states of sessions in memory");
  count("--max-tokens", s.max_new_tokens, 1, "New tokens of a text, at most");
  count("--max-prompt-tokens", s.max_prompt_tokens, 1, "Tokens of a prompt, at most");
  count("--max-n", s.max_choices, 1, "Choices of a prompt, at most");
  count("--max-body-mb", a.max_body_mb, 1, "MiB of a request, at most");
  count("--max-connections", s.max_connections, 1, "Open connections, at most");
  count("--stream-ms", a.stream_ms, 0, "Tokens of a stream that follow within so many ms go out together");
  const auto seconds = [&](const char* flag, double& value, const char* text) {
    verb->add_option(flag, value, fmt::format("{}; default {}", text, value))
        ->check(number_between(0.001, 1e6))
        ->option_text("SECONDS");
  };
  seconds("--max-seconds", s.request_seconds, "A text that takes longer ends there");
  seconds("--drain-seconds", s.drain_seconds, "On SIGTERM what runs may finish within this time");
  verb->add_flag("-v,--verbose", a.verbose, "A line on stderr for each request, without its text");
  add_chat_template_flag(*verb, a.chat_template);
  add_adapter_flag(*verb, a.model);
  add_quantize_flags(*verb, a.model);
  add_tokenizer_flag(*verb, a.model);
  add_machine_flags(*verb, a.model);
  verb->footer(
      "Paths: / (a page), /v1/completions, /v1/chat/completions, /v1/embeddings, /v1/models, /v1/sessions,\n"
      "/tokenize, /detokenize, /health, /metrics, /openapi.json. See docs/serving.md.\n\n"
      "Examples:\n"
      "  ssm serve\n"
      "  ssm serve ./my-model --port 9000 --api-key-file key.txt --max-sequences 256\n"
      "  curl localhost:8080/v1/completions -d '{\"prompt\": \"Once upon a time\", \"max_tokens\": 50}'");
  verb->callback([arguments] { run(*arguments); });
}

}  // namespace ssm::app

// ssm chat: states kept, loaded and saved; templates of the folder, of a file, by name; what a template
// refuses.
#include <gtest/gtest.h>

#include <fstream>

#include "tests/command_runner.h"

namespace ssm::test {
namespace {

namespace fs = std::filesystem;

const std::vector<std::string> kGreedy{"--temperature", "0", "-n", "12", "--dtype", "f32"};

CommandResult chat(const std::vector<std::string>& arguments, const std::string& input) {
  std::vector<std::string> all{"chat"};
  all.insert(all.end(), arguments.begin(), arguments.end());
  all.insert(all.end(), kGreedy.begin(), kGreedy.end());
  return ssm(all, input);
}

// What the bundled model writes after exactly this text, shown as chat shows it.
std::string continued(const std::string& text) {
  std::vector<std::string> arguments{"generate", kBundled, "--json", "--prompt", text};
  arguments.insert(arguments.end(), kGreedy.begin(), kGreedy.end());
  const CommandResult result = ssm(arguments);
  EXPECT_EQ(result.code, 0) << result.err;
  const auto reply = result.json()["text"].get<std::string>();
  return reply.substr(std::min(reply.find_first_not_of(" \n"), reply.size())) + "\n";
}

void write(const fs::path& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
}

// The bundled model's files in a folder that may hold more.
void link_bundled(const fs::path& folder) {
  for (const auto& entry : fs::directory_iterator(kBundled)) {
    fs::create_symlink(entry.path(), folder / entry.path().filename());
  }
}

TEST(CommandChat, ReadsLinesAndKeepsAState) {
  TempFolder folder;
  const std::string state = folder / "state";
  const CommandResult through = chat({kBundled}, "Hello\nTell me a tale\n");
  EXPECT_EQ(through.code, 0) << through.err;
  EXPECT_EQ(through.err, "");
  const CommandResult saved = chat({kBundled}, "Hello\n/save " + state + "\n/reset\n/load " + state +
                                                   "\nTell me a tale\n/quit\nnot read\n");
  EXPECT_EQ(saved.out, through.out);
  EXPECT_EQ(chat({kBundled}, std::string("/load ").append(folder / "nothing")).code, 1);
}

TEST(CommandChat, WritesAsTheTemplateSays) {
  TempFolder folder;
  const std::string file = folder / "mine.jinja";
  write(file,
        "{% for m in messages %}{{ m.role }} says: {{ m.content }}. {% endfor %}"
        "{% if add_generation_prompt %}assistant says:{% endif %}");
  EXPECT_EQ(chat({kBundled}, "Hello\n").out, continued("User: Hello\nAssistant:"));
  EXPECT_EQ(chat({kBundled, "--chat-template", file, "--system", "Be kind"}, "Hello\n").out,
            continued("system says: Be kind. user says: Hello. assistant says:"));
  link_bundled(folder.path());
  write(folder / "chat_template.jinja", "Once {{ messages[0].content }}");
  EXPECT_EQ(chat({folder.path()}, "upon a time\n").out, continued("Once upon a time"));
  EXPECT_EQ(chat({folder.path(), "--chat-template", "plain"}, "Hello\n").out,
            continued("User: Hello\nAssistant:"));
}

TEST(CommandChat, ATurnGoesOnFromTheState) {
  const std::string first = chat({kBundled}, "Hello\n").out;
  const std::string both = chat({kBundled}, "Hello\nMore\n").out;
  ASSERT_TRUE(both.starts_with(first));
  // The answer was cut after 12 tokens: the template writes its end.
  const std::string reply = first.substr(0, first.size() - 1);
  EXPECT_EQ(both.substr(first.size()),
            continued("User: Hello\nAssistant: " + reply + "\nUser: More\nAssistant:"));
}

TEST(CommandChat, TemplatesFailWithOneLine) {
  TempFolder folder;
  const std::string file = folder / "t.jinja";
  write(file, "{% if messages|length > 1 %}\n{{ raise_exception('one message only') }}{% endif %}x");
  const CommandResult refused = chat({kBundled, "--chat-template", file}, "Hello\nAgain\n");
  EXPECT_EQ(refused.code, 1);
  EXPECT_EQ(refused.err, "ssm: " + file + ":2: the template refuses this: one message only\n");
  write(file, "\n{% import 'os' %}");
  EXPECT_EQ(chat({kBundled, "--chat-template", file}, "Hello\n").err,
            "ssm: " + file + ":2: the tag \"import\" is not supported\n");
  const CommandResult unknown = chat({kBundled, "--chat-template", "nosuch"}, "Hello\n");
  EXPECT_EQ(unknown.code, 1);
  EXPECT_EQ(unknown.err,
            "ssm: nosuch: neither a file nor a chat template; built in are chatml, mistral and plain\n");
}

}  // namespace
}  // namespace ssm::test

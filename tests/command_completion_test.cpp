// ssm completion and ssm man: what the parser knows, as shells and man read it.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>

#include "tests/command_runner.h"

namespace ssm::test {
namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

std::string output_of(const std::string& line) {
  FILE* pipe = popen(line.c_str(), "r");
  std::string out;
  std::array<char, 4096> block;
  for (size_t n = 0; (n = fread(block.data(), 1, block.size(), pipe)) > 0;) out.append(block.data(), n);
  return pclose(pipe) == 0 ? out : "failed: " + out;
}

bool is_there(const char* program) {
  return std::system(("command -v " + std::string(program) + " >/dev/null").c_str()) == 0;
}

// What bash offers for the last of these words, in `folder`.
std::set<std::string> offered(const fs::path& folder, const std::string& words) {
  const std::string script = "cd '" + folder.string() +
                             "' && source <('" SSM_COMMAND "' completion bash) && " + "COMP_WORDS=(ssm " +
                             words + ") && COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) && " +
                             "{ _ssm 2>/dev/null; printf '%s\\n' \"${COMPREPLY[@]}\"; }";
  std::ofstream(folder / ".script") << script;
  std::istringstream lines(output_of("bash '" + (folder / ".script").string() + "'"));
  std::set<std::string> all;
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty()) all.insert(line);
  }
  return all;
}

// Every flag that a verb's --help shows.
std::set<std::string> flags_of_help(const Words& verb) {
  Words words = verb;
  words.emplace_back("--help");
  const std::string help = ssm(words).out;
  std::set<std::string> flags;
  const std::regex line("\n  (-[^ ]*)");
  for (std::sregex_iterator it(help.begin(), help.end(), line), end; it != end; ++it) {
    std::istringstream names((*it)[1]);
    for (std::string name; std::getline(names, name, ',');) flags.insert(name);
  }
  return flags;
}

TEST(CommandCompletion, BashCompletesVerbsFlagsValuesAndFiles) {
  using Set = std::set<std::string>;
  const TempFolder folder;
  fs::create_directory(folder / "model");
  std::ofstream(folder / "my text.txt") << "a";
  const auto offers = [&](const std::string& words) { return offered(folder.path(), words); };
  EXPECT_EQ(offers("gen"), Set{"generate"});
  EXPECT_EQ(offers("tokenizer ''"), Set{"train"});
  EXPECT_EQ(offers("bench o"), Set{"ops"});
  EXPECT_EQ(offers("generate --max"), Set{"--max-new-tokens"});
  EXPECT_EQ(offers("generate --device ''"), (Set{"auto", "cpu", "cuda"}));
  EXPECT_EQ(offers("generate --device = c"), (Set{"cpu", "cuda"}));  // as bash cuts --device=c
  EXPECT_EQ(offers("quantize a b --group ''"), (Set{"32", "64", "128"}));
  EXPECT_EQ(offers("generate mo"), Set{"model"});
  EXPECT_EQ(offers("score --file my"), Set{"my text.txt"});
  EXPECT_EQ(offers("generate --seed ''"), Set{});
  EXPECT_EQ(offers("generate chat --sys"), Set{});  // a prompt is no verb
  EXPECT_EQ(offers("bench ops --th"), Set{"--threads"});
  for (const Words& verb : {Words{"train"}, Words{"serve"}, Words{"bench", "compare"}}) {
    std::string words;
    for (const std::string& word : verb) words += word + " ";
    EXPECT_EQ(offers(words + "-"), flags_of_help(verb)) << words;
  }
}

TEST(CommandCompletion, IsWhatTheShellsCanRead) {
  const TempFolder folder;
  for (const std::string shell : {"bash", "zsh", "fish"}) {
    const CommandResult made = ssm({"completion", shell});
    ASSERT_EQ(made.code, 0);
    EXPECT_NE(made.out.find("save-state"), std::string::npos) << shell;
    EXPECT_NE(made.out.find("cuda"), std::string::npos) << shell;
    std::ofstream(folder / shell) << made.out;
    if (!is_there(shell.c_str())) continue;
    EXPECT_EQ(output_of(shell + " -n '" + (folder / shell).string() + "' 2>&1"), "");
  }
  if (is_there("fish")) {
    const std::string fish = "fish -c \"source '" + (folder / "fish").string() + "'; complete -C '";
    EXPECT_EQ(output_of(fish + "ssm tokenizer '\" | cut -f1"), "train\n");
    EXPECT_EQ(output_of(fish + "ssm generate --device cp'\" | cut -f1"), "cpu\n");
  }
  EXPECT_EQ(ssm({"completion", "csh"}).code, 2);
}

TEST(CommandMan, EveryVerbHasAPageWithAllOfItsFlags) {
  const TempFolder folder;
  ASSERT_EQ(ssm({"man", "--out", folder / "man1"}).code, 0);
  for (const Words& verb :
       {Words{}, Words{"generate"}, Words{"train"}, Words{"finetune"}, Words{"serve"}, Words{"bench"},
        Words{"bench", "ops"}, Words{"tokenizer", "train"}, Words{"man"}}) {
    std::string name = "ssm";
    Words words{"man"};
    for (const std::string& word : verb) {
      name += "-" + word;
      words.push_back(word);
    }
    std::ifstream in(folder / ("man1/" + name + ".1"));
    const std::string page{std::istreambuf_iterator<char>(in), {}};
    EXPECT_EQ(page, ssm(words).out) << name;
    EXPECT_NE(page.find("\n.SH NAME\n"), std::string::npos) << name;
    const std::string plain = std::regex_replace(page, std::regex(R"(\\(f[BIR]|&)|\\(?=-))"), "");
    for (const std::string& flag : flags_of_help(verb))
      EXPECT_NE(plain.find(flag), std::string::npos) << flag;
  }
  if (is_there("groff")) {
    EXPECT_EQ(output_of("groff -man -ww -z '" + folder.path().string() + "'/man1/*.1 2>&1"), "");
  }
  const CommandResult none = ssm({"man", "nosuch"});
  EXPECT_EQ(none.code, 2);
  EXPECT_NE(none.err.find("nosuch: no such verb"), std::string::npos) << none.err;
}

}  // namespace
}  // namespace ssm::test

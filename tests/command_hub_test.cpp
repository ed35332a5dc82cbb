// Names of the hub where a MODEL goes, against a hub of this machine.
#include <gtest/gtest.h>

#include <fstream>

#include "ssm/core/test_folder.h"
#include "ssm/hub/test_hub.h"
#include "tests/command_runner.h"

namespace ssm::test {
namespace {

namespace fs = std::filesystem;

CommandResult with(const std::vector<std::pair<std::string, std::string>>& environment,
                   std::vector<std::string> arguments) {
  Command command(std::move(arguments));
  command.environment = environment;
  return command.run();
}

TEST(CommandHub, ANameIsPulledOnceAndFoundEverAfter) {
  const TempFolder root;
  FakeHub hub;
  for (const char* name : {"config.json", "model.safetensors"}) {
    std::ifstream in(fs::path(kTiny) / name, std::ios::binary);
    hub.files[name] = {{std::istreambuf_iterator<char>(in), {}}, std::string("etag-of-") + name};
  }
  std::vector<std::pair<std::string, std::string>> environment{{"HF_ENDPOINT", hub.endpoint()},
                                                               {"HF_HUB_CACHE", root / "hub"},
                                                               {"HTTP_PROXY", ""},
                                                               {"http_proxy", ""}};
  const std::vector<std::string> rest{"--tokens", "1,2,3", "--json"};
  const auto score = [&](const std::string& model) {
    return with(environment, {"score", model, rest[0], rest[1], rest[2]});
  };
  environment.emplace_back("HF_HUB_OFFLINE", "1");
  const CommandResult refused = score("o/m");
  EXPECT_NE(refused.code, 0);
  EXPECT_NE(refused.err.find("HF_HUB_OFFLINE"), std::string::npos) << refused.err;
  EXPECT_TRUE(hub.seen().empty());
  environment.back().second = "0";
  const CommandResult pulled = score("o/m");
  ASSERT_EQ(pulled.code, 0) << pulled.err;
  EXPECT_EQ(pulled.out, score(kTiny).out);
  environment.back().second = "1";
  const size_t asked = hub.seen().size();
  EXPECT_EQ(score("o/m").out, pulled.out);
  EXPECT_EQ(score("o/m@main").out, pulled.out);
  EXPECT_EQ(hub.seen().size(), asked);
}

}  // namespace
}  // namespace ssm::test

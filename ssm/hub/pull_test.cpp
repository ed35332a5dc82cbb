#include "ssm/hub/pull.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>

#include "ssm/core/test_folder.h"
#include "ssm/hub/test_hub.h"

namespace ssm::hub {
namespace {

namespace fs = std::filesystem;

// What `git hash-object` and `sha256sum` print of the contents.
constexpr const char* kConfigText = "{\"model_type\": \"mamba\"}\n";
constexpr const char* kWeightsEtag = "0cee1f221c9bbc2933b9b47e4ff6ef65d285117a154d9f944ed4119d325c3d0a";
constexpr const char* kConfigEtag = "4532635ef03de03d1dc15392655238cbab934f5c";

std::string text_of(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class PullTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* variable :
         {"HF_HOME", "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy"})
      unsetenv(variable);
    setenv("HF_HUB_CACHE", (root_ / "hub").c_str(), 1);
    options_.endpoint = hub_.endpoint();
    options_.first_pause = 0.01;
    hub_.files["config.json"] = {kConfigText, kConfigEtag};
    hub_.files["README.md"] = {"words", "a0"};
    hub_.files["pytorch_model.bin"] = {"not needed", "b0"};
    std::string weights;
    for (int64_t i = 0; i < 100'000; ++i) weights.push_back(static_cast<char>((i * i + 7 * i) % 251));
    hub_.files["model.safetensors"] = {weights, kWeightsEtag, true};
  }
  fs::path get(const char* name = "o/m") { return pull(*parse_hub_name(name), options_); }
  std::string error(const char* name = "o/m") {
    try {
      get(name);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }
  size_t requests(const std::string& beginning) const {
    const auto seen = hub_.seen();
    return static_cast<size_t>(std::count_if(seen.begin(), seen.end(),
                                             [&](const std::string& s) { return s.starts_with(beginning); }));
  }

  test::TempFolder root_;
  test::FakeHub hub_;
  PullOptions options_;
};

TEST_F(PullTest, LeavesWhatHuggingfaceHubWouldLeave) {
  const fs::path folder = get();
  EXPECT_EQ(folder, root_ / "hub/models--o--m/snapshots" / hub_.commit);
  EXPECT_EQ(text_of(folder / "config.json"), kConfigText);
  EXPECT_EQ(fs::read_symlink(folder / "config.json"), fs::path("../../blobs") / kConfigEtag);
  EXPECT_EQ(text_of(folder / "model.safetensors"), hub_.files["model.safetensors"].content);
  EXPECT_FALSE(fs::exists(folder / "README.md"));
  EXPECT_FALSE(fs::exists(folder / "pytorch_model.bin"));
  EXPECT_EQ(text_of(root_ / "hub/models--o--m/refs/main"), hub_.commit);
  EXPECT_EQ(find_cached_model("o/m"), folder);
  // What is here is not fetched again.
  const size_t before = requests("GET /o/m/resolve") + requests("GET /cdn");
  EXPECT_EQ(get("o/m@v1"), folder);
  EXPECT_EQ(requests("GET /o/m/resolve") + requests("GET /cdn"), before);
  EXPECT_EQ(find_cached_model("o/m@v1"), folder);
}

TEST_F(PullTest, GoesOnWhereATransferBroke) {
  hub_.files["model.safetensors"].cut_after = 30'000;
  EXPECT_EQ(text_of(get() / "model.safetensors"), hub_.files["model.safetensors"].content);
  EXPECT_EQ(requests("GET /cdn/model.safetensors bytes=30000-"), 1U);
  EXPECT_EQ(requests("GET /cdn/model.safetensors bytes=90000-"), 1U);
}

TEST_F(PullTest, GoesOnInALaterCallAndWithServersThatCannot) {
  hub_.files["model.safetensors"].cut_after = 30'000;
  options_.attempts = 1;
  EXPECT_NE(error().find("model.safetensors"), std::string::npos);
  EXPECT_FALSE(find_cached_model("o/m"));  // no half model under its name
  hub_.files["model.safetensors"].cut_after = 0;
  hub_.files["model.safetensors"].ignores_range = true;
  EXPECT_EQ(text_of(get() / "model.safetensors"), hub_.files["model.safetensors"].content);
  EXPECT_EQ(requests("GET /cdn/model.safetensors bytes=30000-"), 1U);
}

TEST_F(PullTest, RefusesContentsThatAreNotWhatTheHubSaid) {
  hub_.files["config.json"].content[3] ^= 1;
  EXPECT_NE(error().find("config.json: its checksum is wrong"), std::string::npos) << error();
  EXPECT_TRUE(fs::is_empty(root_ / "hub/models--o--m/blobs"));
  EXPECT_FALSE(find_cached_model("o/m"));
}

TEST_F(PullTest, WaitsWhileTheHubIsBusy) {
  hub_.files["config.json"].overloaded = 2;
  EXPECT_EQ(text_of(get() / "config.json"), kConfigText);
  hub_.files["config.json"].overloaded = 100;
  fs::remove_all(root_ / "hub");
  EXPECT_NE(error().find("503"), std::string::npos);
}

TEST_F(PullTest, TheTokenGoesToTheHubAlone) {
  hub_.token = "secret";
  EXPECT_NE(error().find("HF_TOKEN"), std::string::npos);
  options_.token = "secret";
  EXPECT_EQ(text_of(get() / "config.json"), kConfigText);
  EXPECT_EQ(requests("GET /cdn/model.safetensors token"), 0U);
  EXPECT_EQ(requests("GET /cdn/model.safetensors"), 1U);
  options_.token = "wrong";
  const std::string refused = error();
  EXPECT_EQ(refused.find("wrong"), std::string::npos) << refused;  // no secrets in messages
}

TEST_F(PullTest, SaysWhatIsMissing) {
  EXPECT_NE(error("o/other").find("o/other"), std::string::npos);
  EXPECT_NE(error("o/m@nothing").find("no such model, revision or file"), std::string::npos);
  options_.files = {"absent.gguf"};
  EXPECT_NE(error().find("has no file absent.gguf"), std::string::npos);
  options_.endpoint = "http://127.0.0.1:1";
  options_.attempts = 2;
  EXPECT_NE(error().find("2 attempts"), std::string::npos);
  options_.endpoint = "ftp://somewhere";
  EXPECT_NE(error().find("http"), std::string::npos);
}

TEST_F(PullTest, NeverWritesOutsideTheCache) {
  hub_.files["../../../evil"] = {"x", "c0"};
  hub_.files["/etc/evil"] = {"x", "c0"};
  get();
  options_.files = {"../../../evil"};
  EXPECT_NE(error().find("has no file"), std::string::npos);
  options_.files = {};
  hub_.files["config.json"].etag = "../../../evil";
  fs::remove_all(root_ / "hub");
  EXPECT_NE(error().find("etag"), std::string::npos);
  hub_.files["config.json"].etag = kConfigEtag;
  hub_.commit = "../../evil";
  EXPECT_NE(error().find("no commit"), std::string::npos);
}

TEST_F(PullTest, StopsWhenAsked) {
  int64_t done = 0;
  options_.progress = [&](const std::string&, int64_t now, int64_t) { done = now; };
  options_.stop = [&] { return done > 0; };
  EXPECT_NE(error().find("stopped"), std::string::npos);
}

TEST_F(PullTest, TheEnvironmentIsTheEcosystemsOwn) {
  setenv("HF_ENDPOINT", "http://mirror/", 1);
  setenv("HF_HOME", root_.path().c_str(), 1);
  std::ofstream(root_ / "token") << "from-file\n";
  EXPECT_EQ(pull_options_from_environment().endpoint, "http://mirror");
  EXPECT_EQ(pull_options_from_environment().token, "from-file");
  setenv("HF_TOKEN", "from-variable", 1);
  EXPECT_EQ(pull_options_from_environment().token, "from-variable");
  setenv("HF_HUB_OFFLINE", "1", 1);
  EXPECT_THROW(pull_options_from_environment(), Error);
}

TEST(NeededFiles, OneFormOfTheWeights) {
  using Files = std::vector<std::string>;
  EXPECT_EQ(
      needed_files({"config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                    "model.safetensors.index.json", "pytorch_model.bin"}),
      (Files{"config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
             "model.safetensors.index.json"}));
  EXPECT_EQ(needed_files({"params.json", "consolidated.safetensors", "tokenizer.model.v3"}),
            (Files{"params.json", "tokenizer.model.v3", "consolidated.safetensors"}));
  EXPECT_EQ(needed_files({"config.json", "pytorch_model.bin"}), (Files{"config.json", "pytorch_model.bin"}));
  EXPECT_EQ(needed_files({"m.Q8_0.gguf", "README.md"}), (Files{"m.Q8_0.gguf"}));
  EXPECT_THROW(needed_files({"a.gguf", "b.gguf"}), Error);
  EXPECT_THROW(needed_files({"config.json"}), Error);
}

}  // namespace
}  // namespace ssm::hub

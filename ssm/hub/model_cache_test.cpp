#include "ssm/hub/model_cache.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

namespace ssm::hub {
namespace {

namespace fs = std::filesystem;

class ModelCache : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = fs::temp_directory_path() / "ssm-hub-XXXXXX";
    root_ = mkdtemp(name.data());
    for (const char* variable : {"HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"}) unsetenv(variable);
    setenv("HF_HUB_CACHE", root_.c_str(), 1);
  }
  void TearDown() override { fs::remove_all(root_); }

  void put(const fs::path& file, const std::string& text) {
    fs::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file) << text;
  }

  fs::path root_;
};

TEST_F(ModelCache, FollowsRefsAndCommits) {
  put("models--o--m/refs/main", "abc123\n");
  put("models--o--m/snapshots/abc123/config.json", "{}");
  put("models--o--m/refs/v1.0", "def456");
  put("models--o--m/refs/refs/pr/9", "def456");
  put("models--o--m/snapshots/def456/config.json", "{}");
  EXPECT_EQ(find_cached_model("o/m"), root_ / "models--o--m/snapshots/abc123");
  EXPECT_EQ(find_cached_model("o/m@v1.0"), root_ / "models--o--m/snapshots/def456");
  EXPECT_EQ(find_cached_model("o/m@refs/pr/9"), root_ / "models--o--m/snapshots/def456");
  EXPECT_EQ(find_cached_model("o/m@def456"), root_ / "models--o--m/snapshots/def456");
  EXPECT_FALSE(find_cached_model("o/m@other"));
  EXPECT_FALSE(find_cached_model("o/n"));
}

TEST_F(ModelCache, NeverLeavesTheCache) {
  put("models--o--m/refs/main", "../../../outside");
  put("outside/config.json", "{}");
  EXPECT_FALSE(find_cached_model("o/m"));
  for (const char* name : {"", "/", "o", "o/", "/m", "o/m/n", "../m", "o/..", "o/m@", "o/m@..", "o/m@../x",
                           "o/m@a/../x", "o/m@/x", "o/.m", "o//m", "o/m@a@b", "o /m", "o/m\n", "-o/m"}) {
    EXPECT_FALSE(is_hub_name(name)) << name;
    EXPECT_FALSE(find_cached_model(name)) << name;
  }
  EXPECT_FALSE(is_hub_name(std::string("o/m\0x", 5)));
  EXPECT_FALSE(is_hub_name("o/" + std::string(1000, 'm')));
}

TEST_F(ModelCache, TheEnvironmentIsTheEcosystemsOwn) {
  EXPECT_EQ(cache_folder(), root_);
  unsetenv("HF_HUB_CACHE");
  setenv("XDG_CACHE_HOME", "/x", 1);
  EXPECT_EQ(cache_folder(), "/x/huggingface/hub");
  setenv("HF_HOME", "/h", 1);
  EXPECT_EQ(cache_folder(), "/h/hub");
  setenv("HF_HOME", "", 1);
  unsetenv("XDG_CACHE_HOME");
  setenv("HOME", "/home/a", 1);
  EXPECT_EQ(cache_folder(), "/home/a/.cache/huggingface/hub");
  setenv("HF_HOME", "~/h", 1);
  EXPECT_EQ(cache_folder(), "/home/a/h/hub");
}

}  // namespace
}  // namespace ssm::hub

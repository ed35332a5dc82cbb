#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cmath>
#include <fstream>
#include <limits>
#include <vector>

#include "ssm/core/atomic_file.h"
#include "ssm/core/crc32c.h"
#include "ssm/core/parallel.h"
#include "ssm/core/plain_name.h"
#include "ssm/core/rng.h"
#include "ssm/core/tensor.h"
#include "ssm/core/test_error.h"
#include "ssm/core/test_folder.h"

namespace ssm {
namespace {

TEST(DType, EveryF16ValueSurvivesARoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Float16 h{static_cast<uint16_t>(bits)};
    const float f = to_float(h);
    if (std::isnan(f)) continue;
    EXPECT_EQ(from_float<Float16>(f).bits, h.bits) << bits;
  }
}

TEST(DType, F16RoundsToNearestEven) {
  EXPECT_EQ(to_float(from_float<Float16>(1.0f + 0x1p-11f)), 1.0f);
  EXPECT_EQ(to_float(from_float<Float16>(1.0f + 3 * 0x1p-11f)), 1.0f + 0x1p-9f);
  EXPECT_EQ(to_float(from_float<Float16>(65519.0f)), 65504.0f);
  EXPECT_TRUE(std::isinf(to_float(from_float<Float16>(65520.0f))));
  EXPECT_TRUE(std::isnan(to_float(from_float<Float16>(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(DType, Bf16RoundsToNearestEven) {
  EXPECT_EQ(to_float(from_float<BFloat16>(1.0f + 0x1p-8f)), 1.0f);
  EXPECT_EQ(to_float(from_float<BFloat16>(1.0f + 3 * 0x1p-8f)), 1.0f + 0x1p-6f);
  EXPECT_TRUE(std::isnan(to_float(from_float<BFloat16>(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(Shape, RefusesNegativeAndOverflowingSizes) {
  EXPECT_THROW((Shape{-1, 2}.numel()), Error);
  EXPECT_THROW((Shape{int64_t{1} << 40, int64_t{1} << 40}.numel()), Error);
  EXPECT_THROW(Tensor::empty({int64_t{1} << 62, 2}), Error);
}

TEST(Tensor, ViewsShareStorage) {
  Tensor t = Tensor::zeros({3, 4});
  t.slice(0, 1, 3).select(0, 1).data<float>()[2] = 5;
  EXPECT_EQ(t.data<float>()[2 * 4 + 2], 5);
  const Tensor tr = t.transpose(0, 1);
  EXPECT_EQ(tr.shape(), (Shape{4, 3}));
  EXPECT_FALSE(tr.contiguous());
  EXPECT_EQ(tr.clone().data<float>()[2 * 3 + 2], 5);
  EXPECT_EQ(tr.to(DType::bf16).to(DType::f32).data<float>()[2 * 3 + 2], 5);
  EXPECT_THROW(tr.view({12}), Error);
  EXPECT_THROW(t.slice(0, 2, 4), Error);
  EXPECT_THROW(t.data<double>(), Error);
}

TEST(Tensor, OneLikeAnotherLiesAsItDoes) {
  const Tensor t = Tensor::zeros({3, 4});
  EXPECT_EQ(Tensor::empty_like(t.transpose(0, 1)).strides(), (Shape{1, 4}));
  const Tensor zeros = Tensor::zeros_like(t.to(DType::bf16).slice(1, 1, 3), DType::f32);
  EXPECT_EQ(zeros.strides(), (Shape{2, 1}));
  for (const float x : zeros.values<float>()) EXPECT_EQ(x, 0);
  EXPECT_FALSE(Tensor::zeros_like(Tensor(), DType::f32).defined());
}

TEST(Arena, ReplaysTheSameAddressesAndHoldsNoMore) {
  Arena arena;
  std::vector<std::byte*> first;
  size_t capacity = 0;
  for (int step = 0; step < 4; ++step) {
    ArenaScope scope(&arena);
    std::vector<std::byte*> seen;
    std::vector<Tensor> kept;
    for (const int64_t n : {1000, 3000000, 17, 64, 3000000}) {
      kept.push_back(Tensor::empty({n}));
      seen.push_back(kept.back().raw());
      seen.push_back(Tensor::empty({n}).raw());  // freed at once, so the next one of its size takes its place
    }
    while (!kept.empty()) kept.pop_back();
    if (step == 0) capacity = arena.capacity();
    if (step == 1) first = seen;
    if (step > 1) {
      EXPECT_EQ(seen, first);
    }
  }
  EXPECT_EQ(arena.capacity(), capacity);
}

TEST(Arena, SmallerTensorsUseTheBlocksOfLargerOnes) {
  Arena arena;
  const auto step = [&](int64_t n) {
    ArenaScope scope(&arena);
    const Tensor a = Tensor::empty({n}), b = Tensor::empty({2 * n});
  };
  step(100000);
  const size_t capacity = arena.capacity();
  for (const int64_t n : {99999, 50000, 27200, 100000, 60000}) {
    step(n);
    EXPECT_EQ(arena.capacity(), capacity) << n;
  }
  step(100);  // a large block is not for a small tensor
  EXPECT_GT(arena.capacity(), capacity);
}

TEST(Arena, ATensorOutlivesIt) {
  Tensor t;
  {
    Arena arena;
    ArenaScope scope(&arena);
    t = Tensor::zeros({100});
  }
  EXPECT_EQ(t.values<float>()[99], 0);
}

TEST(ParallelFor, CoversEveryIndexOnceWhateverTheThreads) {
  for (const int threads : {1, 2, 3, 7}) {
    set_num_threads(threads);
    for (const int64_t n : {0, 1, 5, 64, 1000}) {
      for (const int64_t grain : {1, 3, 64}) {
        std::vector<std::atomic<int>> hits(static_cast<size_t>(n));
        parallel_for(n, grain, [&](int64_t begin, int64_t end) {
          EXPECT_EQ(begin % grain, 0);
          for (int64_t i = begin; i < end; ++i) hits[static_cast<size_t>(i)]++;
        });
        for (auto& h : hits) EXPECT_EQ(h.load(), 1);
      }
    }
  }
  set_num_threads(0);
}

TEST(ParallelFor, RethrowsAndStaysUsable) {
  set_num_threads(3);
  for (int i = 0; i < 50; ++i) {
    EXPECT_THROW(
        parallel_for(100, 1,
                     [](int64_t begin, int64_t end) { SSM_CHECK(50 < begin || end <= 50, "at {}", begin); }),
        Error);
  }
  std::atomic<int64_t> sum{0};
  parallel_for(10, 1, [&](int64_t b, int64_t e) {
    parallel_for(e - b, 1, [&](int64_t b2, int64_t e2) { sum += e2 - b2; });  // nested: on the same thread
  });
  EXPECT_EQ(sum, 10);
  set_num_threads(0);
}

TEST(Rng, MatchesThePublishedPhiloxVectors) {
  // Random123's known-answer test: counter and key all zeros, all ones.
  EXPECT_EQ(philox4x32(0, 0, 0), (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const uint64_t ones = ~uint64_t{0};
  EXPECT_EQ(philox4x32(ones, ones, ones),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(PlainName, CannotLeaveAFolder) {
  for (const char* name : {"a", "Model-2.8b_v1", "a..b", "12345678"})
    EXPECT_TRUE(is_plain_name(name, 13)) << name;
  for (const char* name : {"", ".", "..", "-a", ".a", "a/b", "a b", "a\n", "\xC3\xA4", "fourteen-bytes"}) {
    EXPECT_FALSE(is_plain_name(name, 13)) << name;
  }
}

TEST(AtomicFile, APipeIsWrittenIntoAndStays) {
  const test::TempFolder folder;
  const std::string pipe = folder / "pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const int reader = open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  ASSERT_GE(reader, 0);
  write_whole(pipe, "text");
  EXPECT_TRUE(std::filesystem::is_fifo(pipe));
  std::array<char, 16> got{};
  EXPECT_EQ(read(reader, got.data(), got.size()), 4);
  EXPECT_STREQ(got.data(), "text");
  close(reader);
}

TEST(AtomicFile, ADeviceIsWrittenIntoAndItsErrorsAreNamed) {
  const test::TempFolder folder;
  const std::string full = folder / "full";
  std::filesystem::create_symlink("/dev/full", full);
  test::expect_error([&] { write_whole(full, "text"); }, {full, "cannot write", "No space left"});
  EXPECT_TRUE(std::filesystem::is_symlink(full));
}

TEST(AtomicFile, ALinkStaysAndItsFileIsWritten) {
  const test::TempFolder folder;
  namespace fs = std::filesystem;
  fs::create_directory(folder / "there");
  fs::create_symlink("there/file", folder / "near");  // relative to the link, not to this process
  fs::create_symlink(folder / "near", folder / "far");
  for (const char* text : {"new", "written over"}) {
    write_whole(folder / "far", text);
    std::ifstream file(folder / "there/file");
    EXPECT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), text);
    EXPECT_TRUE(fs::is_symlink(folder / "near") && fs::is_symlink(folder / "far"));
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder / "there"), {}), 1);
  fs::create_symlink("round", folder / "round");
  test::expect_error([&] { write_whole(folder / "round", "text"); }, {folder / "round", "symbolic links"});
}

TEST(AtomicFile, WhatCannotBeWrittenIsKnownBefore) {
  const test::TempFolder folder;
  write_whole(folder / "file", "text");
  check_writable(folder / "file");
  check_writable(folder / "new");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
  test::expect_error([&] { check_writable(folder.path()); }, {folder.path(), "is a folder"});
  test::expect_error([&] { check_writable(folder / "none/file"); }, {folder / "none/file", "cannot create"});
}

TEST(Crc32c, TheVectorsOfItsRfc) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(crc32c(std::string(32, '\xFF')), 0x62A8AB43u);
  EXPECT_EQ(crc32c(""), 0u);
  const std::string text = "a checksum of parts goes on where the first one ended";
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    const auto bytes = std::as_bytes(std::span(text));
    EXPECT_EQ(crc32c(bytes.subspan(cut), crc32c(bytes.first(cut))), crc32c(text)) << cut;
  }
}

}  // namespace
}  // namespace ssm

#include "ssm/runtime/scheduler.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <set>
#include <thread>

#include "ssm/runtime/score.h"
#include "ssm/runtime/test_requests.h"

namespace ssm {
namespace {

using test::golden_model;
using test::Heard;
using test::random_ids;
using test::request_of;
using test::run;
using test::submit;

constexpr const char* kFamilies[] = {"mamba-default", "mamba2-groups2", "falcon-default"};

Request random_request(const LoadedModel& model, Rng& rng) {
  const int64_t longest = rng.below(4) == 0 ? 900 : 90;
  Request r = request_of(random_ids(model, 1 + rng.below(longest), rng), 1 + rng.below(30),
                         rng.below(3) == 0 ? 0.0f : 0.9f, static_cast<uint64_t>(rng.below(1000)));
  r.options.sampling.top_k = static_cast<int32_t>(rng.below(3) * 10);
  r.options.sampling.repetition_penalty = rng.below(2) == 0 ? 1.0f : 1.2f;
  r.n = rng.below(4) == 0 ? 1 + rng.below(3) : 1;
  r.presence_penalty = rng.below(3) == 0 ? 0.5f : 0.0f;
  r.frequency_penalty = rng.below(3) == 0 ? 0.25f : 0.0f;
  r.top_logprobs = rng.below(3) - 1;
  r.score_prompt = rng.below(4) == 0;
  r.user = std::string(1, static_cast<char>('a' + rng.below(3)));
  return r;
}

bool same_floats(const std::vector<float>& a, const std::vector<float>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](float x, float y) {
    return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y);
  });
}

TEST(Scheduler, NeighboursChangeNoBitOfARequestThatJoinsAtAnyTime) {
  for (const char* name : kFamilies) {
    const LoadedModel model = golden_model(name);
    Rng rng(11);
    std::vector<Request> requests;
    for (int i = 0; i < 24; ++i) requests.push_back(random_request(model, rng));
    std::vector<std::shared_ptr<Heard>> alone, together;
    for (const Request& request : requests) {
      Scheduler scheduler(model, {.slots = 3});
      alone.push_back(submit(scheduler, request));
      run(scheduler);
    }
    // Steps that are found too long read little of prompts, others much: both must not matter.
    for (const double stall : {0.0, 1e9}) {
      Scheduler scheduler(model, {.slots = 6, .stall_seconds = stall});
      together.clear();
      for (const Request& request : requests) {
        together.push_back(submit(scheduler, request));
        for (int64_t steps = rng.below(5); steps > 0; --steps) scheduler.step();
      }
      run(scheduler);
      for (size_t i = 0; i < requests.size(); ++i) {
        EXPECT_EQ(together[i]->ids, alone[i]->ids) << name << " request " << i;
        EXPECT_EQ(together[i]->finishes, 1);
        EXPECT_TRUE(same_floats(together[i]->prompt_logprobs, alone[i]->prompt_logprobs)) << name << i;
        for (size_t c = 0; c < alone[i]->logprobs.size(); ++c) {
          EXPECT_TRUE(same_floats(together[i]->logprobs[c], alone[i]->logprobs[c])) << name << i;
        }
      }
      EXPECT_EQ(scheduler.stats().running, 0);
      EXPECT_EQ(scheduler.texts().states().available(), 6);
    }
  }
}

TEST(Scheduler, ChoicesAreTheTextsOfTheirSeeds) {
  const LoadedModel model = golden_model("mamba2-default");
  Rng rng(2);
  const std::vector<int32_t> prompt = random_ids(model, 150, rng);
  Scheduler scheduler(model, {.slots = 4});
  Request request = request_of(prompt, 12, 1.0f, 40);
  request.n = 3;
  const auto all = submit(scheduler, request);
  run(scheduler);
  for (uint64_t i = 0; i < 3; ++i) {
    const auto one = submit(scheduler, request_of(prompt, 12, 1.0f, 40 + i));
    run(scheduler);
    EXPECT_EQ(all->ids[i], one->ids[0]);
    EXPECT_EQ(all->reasons[i], StopReason::length);
  }
  EXPECT_NE(all->ids[0], all->ids[1]);
}

TEST(Scheduler, ScoresOfAPromptAreThoseOfScore) {
  for (const char* name : kFamilies) {
    const LoadedModel model = golden_model(name);
    Rng rng(5);
    const std::vector<int32_t> prompt = random_ids(model, 700, rng);
    Scheduler scheduler(model, {.slots = 4, .cache_bytes = 1 << 24});
    submit(scheduler, request_of(random_ids(model, 200, rng), 50));  // a neighbour
    Request request = request_of(prompt, 1);
    request.score_prompt = true;
    request.top_logprobs = 2;
    const auto heard = submit(scheduler, request);
    run(scheduler);
    ASSERT_EQ(heard->prompt_logprobs.size(), prompt.size());
    std::vector<int32_t> argmax;
    score(model, prompt, [&](const TokenScore& s) {
      const auto i = static_cast<size_t>(s.position);
      if (i > 0) {
        EXPECT_EQ(heard->prompt_logprobs[i], s.logprob) << name << i;
        EXPECT_EQ(heard->prompt_best[i], argmax.back()) << name << i;
        EXPECT_EQ(heard->prompt_best_logprobs[i] == s.logprob, argmax.back() == prompt[i]) << name << i;
      }
      argmax.push_back(s.argmax);
    });
    EXPECT_TRUE(std::isnan(heard->prompt_logprobs[0]));
    EXPECT_EQ(heard->ids[0][0], argmax.back());
  }
}

TEST(Scheduler, PenaltiesAndBiasesChangeWhatIsChosen) {
  const LoadedModel model = golden_model("mamba-default");
  Scheduler scheduler(model, {.slots = 2});
  Request request = request_of({1, 2, 3}, 40);
  request.frequency_penalty = 1e6f;
  const auto distinct = submit(scheduler, request);
  request.frequency_penalty = 0;
  request.logit_bias = {{7, 1e6f}};
  request.top_logprobs = 0;
  const auto forced = submit(scheduler, request);
  run(scheduler);
  const std::vector<int32_t>& ids = distinct->ids[0];
  EXPECT_EQ(std::set<int32_t>(ids.begin(), ids.end()).size(), 40u);
  EXPECT_EQ(forced->ids[0], std::vector<int32_t>(40, 7));
  for (const float logprob : forced->logprobs[0])
    EXPECT_LT(logprob, -0.1f);  // the model's, not the biased one
}

TEST(Scheduler, ACancelledRequestIsGoneAtTheNextStep) {
  const LoadedModel model = golden_model("mamba-default");
  Scheduler scheduler(model, {.slots = 1});
  const auto submit_one = [&](int64_t length) {
    auto heard = std::make_shared<Heard>();
    Request request = request_of(std::vector<int32_t>(static_cast<size_t>(length), 1), -1);
    request.listener = heard;
    return std::pair(scheduler.submit(std::move(request)), heard);
  };
  for (const int steps : {0, 1, 5}) {
    const auto [id, running] = submit_one(2000);  // reading, then writing
    const auto [next_id, waiting] = submit_one(3);
    for (int i = 0; i < steps; ++i) scheduler.step();
    scheduler.cancel(next_id);
    scheduler.cancel(id);
    scheduler.step();
    EXPECT_EQ(running->finishes, 1);
    EXPECT_EQ(waiting->finishes, 1);
    EXPECT_EQ(running->reasons[0], StopReason::cancelled);
    EXPECT_EQ(waiting->reasons[0], StopReason::cancelled);
    EXPECT_FALSE(scheduler.step());
    EXPECT_EQ(scheduler.texts().states().available(), 1);
  }
  const auto heard = submit(scheduler, request_of({1}, 100));
  heard->stop_after = 3;
  run(scheduler);
  EXPECT_EQ(heard->ids[0].size(), 3u);
  EXPECT_EQ(heard->reasons[0], StopReason::cancelled);
}

TEST(Scheduler, RefusesMoreThanMayWaitAndWhatMakesNoSense) {
  const LoadedModel model = golden_model("mamba-default");
  Scheduler scheduler(model, {.slots = 2, .max_waiting = 3});
  std::vector<Request> four(4, request_of({1}, 2));
  scheduler.submit(four);
  EXPECT_THROW(scheduler.submit(std::vector<Request>(2, request_of({1}, 2))), Busy);
  scheduler.submit(request_of({1}, 2));
  EXPECT_THROW(scheduler.submit(request_of({1}, 2)), Busy);
  run(scheduler);
  scheduler.submit(request_of({1}, 2));
  Request wrong = request_of({1}, 2);
  wrong.n = 3;
  EXPECT_THROW(scheduler.submit(wrong), Error);
  EXPECT_THROW(scheduler.submit(request_of({}, 2)), Error);
  EXPECT_THROW(scheduler.submit(request_of({1 << 20}, 2)), Error);
  wrong = request_of({1}, 2);
  wrong.logit_bias = {{-1, 1.0f}};
  EXPECT_THROW(scheduler.submit(wrong), Error);
  run(scheduler);
  EXPECT_EQ(scheduler.stats().requests, 6);
}

TEST(Scheduler, AUserWithOneRequestDoesNotWaitForAnothersMany) {
  const LoadedModel model = golden_model("mamba-default");
  Scheduler scheduler(model, {.slots = 1});
  std::vector<std::shared_ptr<Heard>> many;
  for (int i = 0; i < 10; ++i) {
    Request request = request_of(std::vector<int32_t>(100, 1), 20);
    request.user = "many";
    many.push_back(submit(scheduler, request));
  }
  for (int i = 0; i < 5; ++i) scheduler.step();
  Request request = request_of({1}, 5);
  request.user = "one";
  const auto one = submit(scheduler, request);
  while (one->finishes == 0) scheduler.step();
  EXPECT_EQ(many[1]->finishes, 0);
  run(scheduler);
  for (const auto& heard : many) EXPECT_EQ(heard->finishes, 1);
}

TEST(Scheduler, ALongPromptStallsNobody) {
  const LoadedModel model = golden_model("mamba-default");
  Scheduler scheduler(model, {.slots = 3, .stall_seconds = 0});
  const auto stream = submit(scheduler, request_of({1}, 60));
  scheduler.step();
  const auto large = submit(scheduler, request_of(std::vector<int32_t>(3000, 2), 1));
  for (size_t i = 1; i < 40; ++i) {
    ASSERT_EQ(stream->ids[0].size(), i);  // a token every step
    scheduler.step();
  }
  const auto small = submit(scheduler, request_of(std::vector<int32_t>(50, 3), 1));
  scheduler.step();
  scheduler.step();
  EXPECT_EQ(small->finishes, 1);
  EXPECT_EQ(large->finishes, 0);
  run(scheduler);
  EXPECT_EQ(large->finishes, 1);
}

TEST(Scheduler, AKeptTextGoesOnAndForks) {
  for (const char* name : {"mamba-default", "mamba2-default"}) {
    const LoadedModel model = golden_model(name);
    Scheduler scheduler(model, {.slots = 2});
    const auto whole = submit(scheduler, request_of({1, 2, 3}, 20));
    Request first = request_of({1, 2, 3}, 8);
    first.keep_text = true;
    const auto begun = submit(scheduler, first);
    run(scheduler);
    ASSERT_TRUE(begun->finished.text.has_value());
    Request rest = request_of({}, 12);
    rest.from = std::make_shared<TextCopy>(*begun->finished.text);
    const auto one = submit(scheduler, rest), other = submit(scheduler, rest);
    rest.prompt = {5};
    const auto changed = submit(scheduler, rest);
    run(scheduler);
    std::vector<int32_t> ids = begun->ids[0];
    ids.insert(ids.end(), one->ids[0].begin(), one->ids[0].end());
    EXPECT_EQ(ids, whole->ids[0]) << name;
    EXPECT_EQ(other->ids, one->ids);
    EXPECT_NE(changed->ids, one->ids);
  }
}

TEST(Scheduler, EmbedsAPromptAsTheMeanOfItsHiddenStates) {
  const LoadedModel model = golden_model("mamba2-default");
  Rng rng(1);
  const std::vector<int32_t> prompt = random_ids(model, 600, rng);
  Scheduler scheduler(model, {.slots = 2});
  Request request = request_of(prompt, 5);
  request.embed = true;
  const auto heard = submit(scheduler, request);
  run(scheduler);
  EXPECT_TRUE(heard->ids[0].empty());
  const auto T = static_cast<int64_t>(prompt.size());
  const Tensor hidden =
      model.model->hidden(Tensor::from_values<int32_t>(prompt, {T}), SequenceBatch::single(T), {});
  ASSERT_EQ(std::ssize(heard->finished.embedding), hidden.size(1));
  for (int64_t i = 0; i < hidden.size(1); ++i) {
    double sum = 0;
    for (int64_t t = 0; t < T; ++t) sum += static_cast<double>(hidden.select(0, t).data<float>()[i]);
    EXPECT_NEAR(heard->finished.embedding[static_cast<size_t>(i)], sum / static_cast<double>(T), 1e-5);
  }
}

TEST(Scheduler, TakesRequestsFromOtherThreads) {
  const LoadedModel model = golden_model("mamba-default");
  Scheduler scheduler(model, {.slots = 4, .max_waiting = 1000});
  std::vector<std::shared_ptr<Heard>> heard(40);
  std::jthread worker([&](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      scheduler.wait(stop);
      while (scheduler.step()) {
      }
    }
  });
  {
    std::vector<std::jthread> users;
    for (size_t u = 0; u < 4; ++u) {
      users.emplace_back([&, u] {
        for (size_t i = u; i < heard.size(); i += 4) {
          heard[i] = std::make_shared<Heard>();
          Request request = request_of({static_cast<int32_t>(i)}, 10);
          request.listener = heard[i];
          const uint64_t id = scheduler.submit(std::move(request));
          if (i % 5 == 0) scheduler.cancel(id);
        }
      });
    }
  }
  while (scheduler.stats().requests < 40 || scheduler.stats().running + scheduler.stats().waiting > 0) {
    std::this_thread::yield();
  }
  worker.request_stop();
  worker.join();
  for (const auto& one : heard) EXPECT_EQ(one->finishes, 1);
}

}  // namespace
}  // namespace ssm

// EXACT on real models: every registered architecture with its tiny configs, on the CPU kernels
// that this machine gets, and on its GPU if it has one.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "engine/testing/workload.h"
#include "kernels/w4a4_ops.h"
#include "models/dummy_checkpoint.h"
#include "models/registry.h"

namespace nibble::engine {
namespace {

struct Case {
  std::string name;
  boost::json::object config;
  const kernels::OpTable* ops;
};

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  const auto cuda = kernels::CudaOps();
  for (const models::Architecture& architecture : models::RegisteredArchitectures()) {
    int number = 0;
    for (const std::string& text : architecture.tiny_configs) {
      const std::string name = fmt::format("{}_{}", architecture.architectures.front(), number++);
      const boost::json::object config = boost::json::parse(text).as_object();
      cases.push_back({name, config, &kernels::CpuOps()});
      if (cuda) cases.push_back({name + "_cuda", config, *cuda});
    }
  }
  return cases;
}

class TinyModelsTest : public ::testing::TestWithParam<Case> {
 protected:
  // Of the model's vocabulary, with log-probabilities and at least so many tokens to generate.
  static std::vector<Request> RandomRequests(uint32_t seed, int count, int32_t least_tokens,
                                             RequestShape shape) {
    Random random(seed);
    shape.vocab = static_cast<int32_t>(GetParam().config.at("vocab_size").as_int64());
    std::vector<Request> requests;
    for (int i = 0; i < count; ++i) {
      Request request = RandomRequest(random, shape);
      request.sampling.max_tokens = random.In(least_tokens, shape.max_output);
      request.sampling.min_tokens = 0;
      request.sampling.logprobs = 3;
      std::erase_if(request.sampling.stop_token_ids, [&](int32_t t) { return t >= shape.vocab; });
      requests.push_back(std::move(request));
    }
    return requests;
  }

  // Runs all requests together, or one after the other.
  std::vector<Generation> Run(const std::vector<Request>& requests, CoreRunner::Config config,
                              bool together, const kernels::OpTable* ops = nullptr,
                              const models::DummyOptions& weights = {}) {
    auto checkpoint = models::MakeDummyCheckpoint(GetParam().config, weights);
    EXPECT_TRUE(checkpoint) << checkpoint.error().message();
    std::vector<Generation> results;
    for (auto& result : Run(requests, config, together, ops, **checkpoint)) {
      EXPECT_TRUE(result) << result.error().message();
      results.push_back(std::move(*result));
    }
    return results;
  }

  std::vector<Result<Generation>> Run(const std::vector<Request>& requests,
                                      CoreRunner::Config config, bool together,
                                      const kernels::OpTable* ops,
                                      const formats::Checkpoint& checkpoint) {
    auto model = models::LoadModel(checkpoint,
                                   {.ops = ops != nullptr ? ops : GetParam().ops, .pool = &pool_});
    EXPECT_TRUE(model) << model.error().message();
    config.pool = &pool_;
    if (const int64_t chunk = models::PromptChunk((*model)->info(), (*model)->ops()); chunk > 1)
      config.max_step_tokens = std::max(config.max_step_tokens, static_cast<int32_t>(chunk) + 1);
    CoreRunner runner(**model, nullptr, config);
    std::vector<std::shared_ptr<CheckingSink>> sinks;
    for (Request request : requests) {
      request.sink = sinks.emplace_back(std::make_shared<CheckingSink>(request.sampling.n));
      runner.Add(std::move(request));
      while (!together && !runner.core->idle()) runner.Step();
    }
    while (!runner.core->idle()) runner.Step();
    EXPECT_EQ(runner.core->CheckInvariants(), "");
    std::vector<Result<Generation>> results;
    for (const auto& sink : sinks) results.push_back(sink->Wait());
    return results;
  }

  ThreadPool pool_{2};
};

TEST_P(TinyModelsTest, AnswersDoNotDependOnBatchPagesChunksOrCache) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  constexpr int kRequests = 3;  // many times slower
#else
  constexpr int kRequests = 10;
#endif
  const std::vector<Request> requests =
      RandomRequests(5, kRequests, 0, {.max_output = 24, .max_choices = 2, .text = false});
  constexpr int64_t kLength = 100;
  for (const kernels::KvFormat format : {kernels::KvFormat::kBf16, kernels::KvFormat::kFp8}) {
    const std::vector<Generation> want = Run(requests,
                                             {.page_size = 64,
                                              .pages = 8,
                                              .max_model_len = kLength,
                                              .max_sequences = 1,
                                              .max_step_tokens = 128,
                                              .prefix_cache = false,
                                              .kv_format = format,
                                              .launches_ahead = false},
                                             false);
    const auto check = [&](const char* what, CoreRunner::Config config, bool together) {
      SCOPED_TRACE(what);
      config.max_model_len = kLength;
      config.kv_format = format;
      const std::vector<Generation> got = Run(requests, config, together);
      for (size_t i = 0; i < requests.size(); ++i) ExpectSame(got[i], want[i], true);
    };
    check("together", {.max_sequences = 64, .max_step_tokens = 256}, true);
    check("small chunks and pages, few of them",
          {.pages = 8, .max_sequences = 6, .max_step_tokens = 7}, true);
    check("launched ahead",
          {.pages = 20, .max_sequences = 6, .max_step_tokens = 40, .launches_ahead = true}, true);
    check("alone with a warm cache", {.max_sequences = 1, .max_step_tokens = 33}, false);
  }
}

// A token's row of the embedding is NaN.
class DamagedCheckpoint final : public formats::Checkpoint {
 public:
  DamagedCheckpoint(const formats::Checkpoint& whole, int64_t token)
      : whole_(whole), token_(token) {
    path_ = whole.path();
    config_ = whole.config();
    tensors_.assign(whole.tensors().begin(), whole.tensors().end());
  }
  Result<std::string> ReadText(std::string_view name) const override {
    return whole_.ReadText(name);
  }
  Result<formats::TensorData> Read(const formats::TensorEntry& entry) const override {
    NIBBLE_ASSIGN(formats::TensorData read, whole_.Read(entry));
    if (!entry.name.ends_with("embed_tokens.weight") && !entry.name.ends_with("embeddings.weight"))
      return read;
    const auto bytes = static_cast<size_t>(read.view.bytes());
    const auto copy =
        std::make_shared<std::vector<std::byte>>(read.view.data, read.view.data + bytes);
    const size_t row = bytes / static_cast<size_t>(entry.shape[0]);
    std::fill_n(copy->begin() + static_cast<int64_t>(token_ * row), row, std::byte{0xFF});
    read.view.data = copy->data();
    read.owner = copy;
    return read;
  }

 private:
  const formats::Checkpoint& whole_;
  const int64_t token_;
};

// NaN in one request's rows, pages, states and choice of experts ends it and touches no other.
TEST_P(TinyModelsTest, BrokenRequestsHarmNoOthers) {
  constexpr int32_t kBroken = 11;
  const auto checkpoint = *models::MakeDummyCheckpoint(GetParam().config);
  if (checkpoint->Find("lm_head.weight") == nullptr)
    GTEST_SKIP() << "the head is the embedding: what breaks a token breaks every row";
  const DamagedCheckpoint damaged(*checkpoint, kBroken);
  std::vector<Request> requests =
      RandomRequests(8, 12, 1, {.max_prompt = 40, .max_output = 12, .text = false});
  for (size_t i = 0; i < requests.size(); ++i) {
    Request& request = requests[i];
    std::ranges::replace(request.tokens, kBroken, kBroken + 1);
    request.sampling.logit_bias.emplace_back(kBroken, -1e30f);
    if (i % 2 == 0) continue;
    request.tokens.back() = kBroken;
    if (i % 4 == 1) request.tokens.front() = kBroken;
  }
  const CoreRunner::Config config = {.pages = 16, .max_model_len = 100, .max_sequences = 6};
  const auto want = Run(requests, config, true, nullptr, *checkpoint);
  for (const bool ahead : {false, true}) {
    CoreRunner::Config few = config;
    few.launches_ahead = ahead;
    const auto got = Run(requests, few, true, nullptr, damaged);
    for (size_t i = 0; i < requests.size(); ++i) {
      SCOPED_TRACE(testing::Message() << "request " << i << (ahead ? ", launched ahead" : ""));
      if (i % 2 == 0) {
        ASSERT_TRUE(got[i]) << got[i].error().message();
        ExpectSame(*got[i], *want[i], true);
      } else {
        ASSERT_FALSE(got[i]);
        EXPECT_EQ(got[i].error().code(), Code::kCorruption) << got[i].error().message();
      }
    }
  }
}

// Of models that compute prompts in chunks on the reference's ops.
std::vector<Case> CasesWithChunks() {
  std::vector<Case> cases = AllCases();
  std::erase_if(cases, [](const Case& one) {
    auto checkpoint = models::MakeDummyCheckpoint(one.config);
    const auto info = models::DescribeModel(**checkpoint);
    return models::PromptChunk(*info, kernels::RefOps()) == 1;
  });
  return cases;
}

class ChunkedModelsTest : public TinyModelsTest {};

TEST_P(ChunkedModelsTest, AnswersDoNotDependOnBatchPagesStepsOrCache) {
  const kernels::OpTable& ops = kernels::RefOps();
  std::vector<Request> requests =
      RandomRequests(6, 4, 1, {.max_prompt = 200, .max_output = 6, .text = false});
  for (Request& request : requests) request.sampling.n = 1;
  const std::vector<Generation> want = Run(requests,
                                           {.page_size = 64,
                                            .max_model_len = 210,
                                            .max_sequences = 1,
                                            .max_step_tokens = 256,
                                            .prefix_cache = false},
                                           false, &ops);
  const std::vector<Generation> got =
      Run(requests, {.pages = 16, .max_model_len = 210, .max_sequences = 4, .max_step_tokens = 70},
          true, &ops);
  for (size_t i = 0; i < requests.size(); ++i) ExpectSame(got[i], want[i], true);
}

// Prompts in W4A4, by the reference's ops and by a GPU that multiplies FP4 or emulates it.
std::vector<Case> CasesWithW4a4() {
  const auto cuda = kernels::CudaOpsWithW4a4();
  std::vector<Case> cases;
  for (const Case& one : AllCases()) {
    if (!one.name.ends_with("_cuda")) {
      cases.push_back({one.name, one.config, &kernels::RefOps()});
    } else if (cuda) {
      cases.push_back({one.name, one.config, *cuda});
    }
  }
  return cases;
}

class W4a4ModelsTest : public TinyModelsTest {
 protected:
  std::vector<Generation> Run(const std::vector<Request>& requests,
                              const CoreRunner::Config& config, bool together) {
    return TinyModelsTest::Run(requests, config, together, nullptr,
                               {.linear_format = WeightFormat::kNvfp4, .activation_scales = true});
  }
};

TEST_P(W4a4ModelsTest, AnswersDoNotDependOnBatchPagesStepsOrCache) {
  std::vector<Request> requests = RandomRequests(
      7, 5, 1, {.max_prompt = 50, .max_output = 12, .max_choices = 2, .text = false});
  // A prompt that goes on where another's answer was: what was generated is now a prompt.
  const std::vector<Generation> first = Run(requests, {.max_model_len = 100}, false);
  Request next = requests[0];
  next.tokens.insert(next.tokens.end(), first[0].choices[0].tokens.begin(),
                     first[0].choices[0].tokens.end());
  next.tokens.push_back(1);
  requests.push_back(std::move(next));
  const std::vector<Generation> want = Run(requests,
                                           {.page_size = 64,
                                            .max_model_len = 100,
                                            .max_sequences = 1,
                                            .max_step_tokens = 128,
                                            .prefix_cache = false},
                                           false);
  const auto check = [&](const char* what, CoreRunner::Config config, bool together) {
    SCOPED_TRACE(what);
    config.max_model_len = 100;
    const std::vector<Generation> got = Run(requests, config, together);
    for (size_t i = 0; i < requests.size(); ++i) ExpectSame(got[i], want[i], true);
  };
  check("few small pages, with pre-emptions",
        {.pages = 8, .max_sequences = 6, .max_step_tokens = 7}, true);
  check("alone with a warm cache", {.max_sequences = 1, .max_step_tokens = 33}, false);
}

INSTANTIATE_TEST_SUITE_P(Registered, W4a4ModelsTest, ::testing::ValuesIn(CasesWithW4a4()),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(Registered, TinyModelsTest, ::testing::ValuesIn(AllCases()),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(Registered, ChunkedModelsTest, ::testing::ValuesIn(CasesWithChunks()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace nibble::engine

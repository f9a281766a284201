// Prompts in W4A4, and with FP8 activations, on the tiny configs, by the reference's ops and by a
// GPU that multiplies FP4 and FP8 or emulates it: which form a token is computed in follows from
// its role alone, and nothing else shows in its logits.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/w4a4_ops.h"
#include "models/dummy_checkpoint.h"
#include "models/registry.h"
#include "testing/model_runner.h"

namespace nibble::models {
namespace {

using nibble::testing::ModelRunner;
using nibble::testing::RunnerSequence;

constexpr int64_t kTokens = 60;
constexpr int64_t kPrompt = 37;
constexpr int64_t kMaxStep = 128;

struct Case {
  std::string name;
  boost::json::object config;
  const kernels::OpTable* ops;
  WeightFormat format;
};

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  const auto cuda = kernels::CudaOpsWithW4a4();
  for (const Architecture& architecture : RegisteredArchitectures()) {
    int number = 0;
    for (const std::string& text : architecture.tiny_configs) {
      const std::string name = fmt::format("{}_{}", architecture.architectures.front(), number++);
      const boost::json::object config = boost::json::parse(text).as_object();
      for (const WeightFormat format : {WeightFormat::kNvfp4, WeightFormat::kFp8}) {
        const std::string form = format == WeightFormat::kNvfp4 ? "w4a4" : "fp8";
        cases.push_back({name + "_" + form + "_ref", config, &kernels::RefOps(), format});
        if (cuda && (format == WeightFormat::kNvfp4 || (*cuda)->linear_fp8 != nullptr))
          cases.push_back({name + "_" + form + "_cuda", config, *cuda, format});
      }
    }
  }
  return cases;
}

class PromptFormsTest : public ::testing::TestWithParam<Case> {
 protected:
  std::unique_ptr<Model> Load(const kernels::OpTable& ops, bool apart) {
    const bool w4a4 = GetParam().format == WeightFormat::kNvfp4;
    const auto checkpoint = MakeDummyCheckpoint(
        GetParam().config, {.linear_format = GetParam().format, .activation_scales = w4a4});
    EXPECT_TRUE(checkpoint) << checkpoint.error().message();
    auto model = LoadModel(
        **checkpoint,
        {.ops = &ops, .pool = &pool_, .prompt_forms = {.w4a4 = apart, .fp8 = apart && !w4a4}});
    EXPECT_TRUE(model) << model.error().message();
    EXPECT_TRUE((*model)->Prepare({.tokens = kMaxStep, .rows = kMaxStep}));
    EXPECT_EQ((*model)->info().prompt_forms.w4a4, apart && w4a4);
    EXPECT_EQ((*model)->info().prompt_forms.fp8, apart && !w4a4);
    return std::move(*model);
  }

  RunnerSequence Sequence(uint32_t seed, int64_t prompt, int32_t first_page = 0,
                          int32_t slot = 0) const {
    RunnerSequence sequence{.pages = std::vector<int32_t>(4), .slot = slot, .prompt = prompt};
    const auto vocab = static_cast<uint32_t>(GetParam().config.at("vocab_size").as_int64());
    for (int64_t i = 0; i < kTokens; ++i) {
      seed = seed * 1664525u + 1013904223u;
      sequence.tokens.push_back(static_cast<int32_t>((seed >> 8) % vocab));
    }
    std::iota(sequence.pages.begin(), sequence.pages.end(), first_page);
    return sequence;
  }

  static KvPool Pool(const Model& model) {
    auto pool =
        KvPool::Create(model.info(), kernels::KvFormat::kBf16, 16, 12, 3, *model.ops().device);
    EXPECT_TRUE(pool);
    return std::move(*pool);
  }

  RunnerSequence Run(Model& model, RunnerSequence sequence, int64_t chunk) {
    KvPool kv = Pool(model);
    ModelRunner(model, kv).Run(sequence, chunk);
    return sequence;
  }

  const kernels::OpTable& ops() const { return *GetParam().ops; }

  ThreadPool pool_{2};
};

bool SameRow(const std::vector<float>& a, const std::vector<float>& b) {
  return std::ranges::equal(a, b, [](float x, float y) {
    return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y);
  });
}

void ExpectSame(const RunnerSequence& a, const RunnerSequence& b, const std::string& what) {
  ASSERT_EQ(a.logits.size(), b.logits.size());
  for (size_t row = 0; row < a.logits.size(); ++row)
    ASSERT_TRUE(SameRow(a.logits[row], b.logits[row])) << what << ": token " << row;
}

// Relative distance of all logits of rows [begin, end).
double Distance(const RunnerSequence& a, const RunnerSequence& b, int64_t begin, int64_t end) {
  double error = 0, power = 0;
  for (int64_t row = begin; row < end; ++row) {
    for (size_t v = 0; v < a.logits[row].size(); ++v) {
      const double difference = double{a.logits[row][v]} - b.logits[row][v];
      error += difference * difference;
      power += double{b.logits[row][v]} * b.logits[row][v];
    }
  }
  return std::sqrt(error / power);
}

// One step of the whole sequence, as after a pre-emption, has the bits of a prompt that is followed
// by tokens one by one, and of any other cut, also one across the prompt's end.
TEST_P(PromptFormsTest, RecomputationAndChunksDoNotMatter) {
  const auto model = Load(ops(), true);
  const RunnerSequence start = Sequence(11, kPrompt);
  const RunnerSequence recomputed = Run(*model, start, kMaxStep);
  RunnerSequence generated = start;
  KvPool kv = Pool(*model);
  ModelRunner runner(*model, kv);
  runner.Step({&generated}, {kPrompt});
  while (generated.done < kTokens) runner.Step({&generated}, {1});
  ExpectSame(generated, recomputed, "recomputed");
  for (const int64_t chunk : {1, 7, 25})
    ExpectSame(generated, Run(*model, start, chunk), fmt::format("chunks of {}", chunk));
}

// Prompts and answers of several sequences in the same steps.
TEST_P(PromptFormsTest, TheBatchDoesNotMatter) {
  const auto model = Load(ops(), true);
  RunnerSequence watched = Sequence(13, kPrompt, 4, 1);
  const RunnerSequence alone = Run(*model, watched, kMaxStep);
  RunnerSequence first = Sequence(17, kTokens, 0, 0), last = Sequence(19, 2, 8, 2);
  KvPool kv = Pool(*model);
  ModelRunner runner(*model, kv);
  runner.Step({&first, &watched}, {20, 30});
  runner.Step({&last, &watched, &first}, {5, 12, 1});
  runner.Step({&first, &last, &watched}, {1, 1, 1});
  runner.Step({&watched, &first, &last}, {kTokens - watched.done, 30, 9});
  ExpectSame(alone, watched, "in a batch");
}

// Prompts are another computation than with 16-bit activations, and near it; what is generated
// differs only by what it reads of the prompt.
TEST_P(PromptFormsTest, TheRoleAloneDecides) {
  const auto apart = Load(ops(), true), alike = Load(ops(), false);
  const RunnerSequence prompt = Run(*apart, Sequence(23, kPrompt), kMaxStep);
  const RunnerSequence exact = Run(*alike, Sequence(23, kPrompt), kMaxStep);
  for (int64_t row = 0; row < kPrompt; ++row)
    EXPECT_FALSE(SameRow(prompt.logits[row], exact.logits[row])) << "token " << row;
  ExpectSame(Run(*apart, Sequence(23, 0), kMaxStep), exact, "no prompt");
  std::printf("%s: from 16-bit activations: %.4f of prompts, %.4f of what follows\n",
              GetParam().name.c_str(), Distance(prompt, exact, 0, kPrompt),
              Distance(prompt, exact, kPrompt, kTokens));
}

TEST_P(PromptFormsTest, MatchesReference) {
  if (ops().device->host_memory()) return;
  const auto reference = Load(kernels::RefOps(), true), fast = Load(ops(), true);
  const RunnerSequence expected = Run(*reference, Sequence(29, kPrompt), kMaxStep);
  const RunnerSequence actual = Run(*fast, Sequence(29, kPrompt), kMaxStep);
  // Where a sum in another order rounds an activation the other way, its code may flip: far more
  // than W4A16's roundings, and still below what W4A4 itself is from W4A16 (measured: up to 0.25).
  const double distance = Distance(actual, expected, 0, kTokens);
  EXPECT_LT(distance, 0.35);
  std::printf("%s: from the reference: %.4f\n", GetParam().name.c_str(), distance);
}

INSTANTIATE_TEST_SUITE_P(Registry, PromptFormsTest, ::testing::ValuesIn(AllCases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace nibble::models

// The first layers of a shape on the CPU's kernels beside the reference's, as `bench model --check`
// compares a GPU's.
#include "eval/logits_distance.h"

#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <string_view>

#include "engine/testing/byte_tokenizer.h"
#include "models/dummy_checkpoint.h"
#include "models/model.h"
#include "models/registry.h"

namespace nibble::eval {
namespace {

class LogitsDistanceTest : public testing::Test {
 protected:
  std::unique_ptr<engine::Engine> Engine(boost::json::object config, const kernels::OpTable& ops,
                                         uint64_t seed = 2) {
    config["vocab_size"] = 257;
    const auto checkpoint = models::MakeDummyCheckpoint(
        config, {.linear_format = WeightFormat::kNvfp4, .seed = seed, .layers = 2});
    EXPECT_TRUE(checkpoint) << checkpoint.error().message();
    auto model = models::LoadModel(
        **checkpoint,
        {.ops = &ops, .pool = &pool_, .activations = kernels::ActivationFormat::kBf16});
    EXPECT_TRUE(model) << model.error().message();
    auto made = engine::Engine::Create(std::move(*model), engine::MakeByteTokenizer(),
                                       {.max_model_len = 64,
                                        .max_sequences = 1,
                                        .kv_bytes = int64_t{1} << 22,
                                        .even_routing = true,
                                        .pool = &pool_});
    EXPECT_TRUE(made) << made.error().message();
    return std::move(*made);
  }

  ThreadPool pool_{1};
  std::vector<int32_t> tokens_ = {3, 14, 15, 92, 65, 35, 89, 79};
};

TEST_F(LogitsDistanceTest, TheCpusLogitsMatchTheReferences) {
  for (const models::Architecture& architecture : models::RegisteredArchitectures()) {
    const std::string_view name = architecture.architectures.front();
    if (name != "LlamaForCausalLM" && name != "Qwen3MoeForCausalLM" &&
        name != "Qwen3NextForCausalLM" && name != "GptOssForCausalLM")
      continue;
    SCOPED_TRACE(name);
    const auto config = boost::json::parse(architecture.tiny_configs.front()).as_object();
    const auto model = Engine(config, kernels::CpuOps());
    const auto reference = Engine(config, kernels::RefOps());
    const auto found = MeasureLogits(*model, *reference, tokens_);
    ASSERT_TRUE(found) << found.error().message();
    EXPECT_EQ(found->rows, 7);
    EXPECT_TRUE(found->matches()) << found->largest;
    const auto other = Engine(config, kernels::RefOps(), 3);
    const auto wrong = MeasureLogits(*model, *other, tokens_);
    ASSERT_TRUE(wrong) << wrong.error().message();
    EXPECT_FALSE(wrong->matches());
    EXPECT_GT(wrong->mean, 0.5);
  }
}

}  // namespace
}  // namespace nibble::eval

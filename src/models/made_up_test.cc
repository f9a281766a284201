// Dummy weights that a GPU makes for itself: every tiny model has the logits of the one whose
// weights the host has made.
#include <gtest/gtest.h>

#include "models/dummy_checkpoint.h"
#include "models/registry.h"
#include "testing/model_runner.h"

namespace nibble::models {
namespace {

std::vector<std::vector<float>> Logits(const formats::Checkpoint& checkpoint,
                                       const kernels::OpTable& ops) {
  ThreadPool pool(2);
  auto model = LoadModel(checkpoint, {.ops = &ops, .pool = &pool});
  EXPECT_TRUE(model) << model.error().message();
  EXPECT_TRUE((*model)->Prepare({.tokens = 64, .rows = 64}));
  KvPool kv =
      std::move(*KvPool::Create((*model)->info(), kernels::KvFormat::kBf16, 16, 4, 1, *ops.device));
  testing::RunnerSequence sequence{.pages = {0, 1}};
  for (int32_t i = 0; i < 20; ++i) sequence.tokens.push_back(3 + 5 * i % 50);
  testing::ModelRunner(**model, kv).Run(sequence, 64);
  return sequence.logits;
}

TEST(MadeUpWeights, AreThoseOfTheHost) {
  const auto cuda = kernels::CudaOps();
  if (!cuda) GTEST_SKIP() << cuda.error().message();
  kernels::OpTable from_bytes = **cuda;
  from_bytes.packs_made_up = false;
  for (const Architecture& architecture : RegisteredArchitectures())
    for (const std::string& text : architecture.tiny_configs)
      for (const auto format : {std::optional<WeightFormat>(), std::optional(WeightFormat::kNvfp4),
                                std::optional(WeightFormat::kFp8)}) {
        SCOPED_TRACE(architecture.architectures.front());
        const auto checkpoint =
            MakeDummyCheckpoint(boost::json::parse(text).as_object(), {.linear_format = format})
                .value();
        EXPECT_EQ(Logits(*checkpoint, **cuda), Logits(*checkpoint, from_bytes));
      }
}

}  // namespace
}  // namespace nibble::models

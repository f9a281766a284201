// Which modules stay in higher precision, and which share a tensor scale.
#include "quantize/policy.h"

#include <gtest/gtest.h>

namespace nibble::quantize {
namespace {

const Shape kShape = {64, 128};

TEST(Policy, QuantisesTheLinearsOfDecoders) {
  for (const char* module :
       {"model.layers.0.self_attn.q_proj", "model.layers.11.self_attn.o_proj",
        "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.down_proj",
        "model.layers.0.mlp.experts.3.up_proj", "model.layers.0.linear_attn.in_proj_qkvz",
        "model.layers.0.block_sparse_moe.experts.0.w1"})
    EXPECT_EQ(ReasonToKeep({}, module, kShape), "") << module;
}

TEST(Policy, KeepsWhatCostsMoreThanItSaves) {
  for (const char* module :
       {"model.embed_tokens", "backbone.embeddings", "lm_head", "model.layers.0.mlp.gate",
        "model.layers.0.block_sparse_moe.gate", "model.layers.0.mlp.router",
        "model.layers.0.mlp.shared_expert_gate", "model.layers.0.linear_attn.conv1d",
        "model.layers.0.linear_attn.in_proj_a", "model.layers.0.linear_attn.in_proj_ba",
        "mtp.layers.0.mlp.up_proj", "model.visual.blocks.0.attn.qkv", "vision_tower.layers.0.fc1"})
    EXPECT_NE(ReasonToKeep({}, module, kShape), "") << module;
}

TEST(Policy, KeepsShapesThatBlocksDoNotFit) {
  EXPECT_EQ(ReasonToKeep({}, "model.layers.0.mlp.up_proj", {64, 40}),
            "K 40 is not a multiple of 16");
  EXPECT_EQ(ReasonToKeep({}, "model.layers.0.mlp.up_proj", {64}), "not a matrix");
  EXPECT_EQ(ReasonToKeep({}, "model.layers.0.mlp.up_proj", {40, 16}), "");
}

TEST(Policy, FlagsWidenAndNarrowIt) {
  EXPECT_EQ(ReasonToKeep({.lm_head = true}, "lm_head", kShape), "");
  EXPECT_NE(ReasonToKeep({.lm_head = true}, "lm_head", {64, 40}), "");
  const QuantizePolicy keep = {.keep = {"layers.0.", "o_proj"}};
  EXPECT_EQ(ReasonToKeep(keep, "model.layers.0.mlp.up_proj", kShape), "--keep layers.0.");
  EXPECT_EQ(ReasonToKeep(keep, "model.layers.10.self_attn.o_proj", kShape), "--keep o_proj");
  EXPECT_EQ(ReasonToKeep(keep, "model.layers.10.mlp.up_proj", kShape), "");
}

TEST(Policy, SiblingsReadTheSameInput) {
  const std::string layer = "model.layers.3.";
  const auto group = [&](const std::string& name) { return SiblingGroup(layer + name); };
  EXPECT_EQ(group("self_attn.q_proj"), group("self_attn.k_proj"));
  EXPECT_EQ(group("self_attn.q_proj"), group("self_attn.v_proj"));
  EXPECT_EQ(group("mlp.gate_proj"), group("mlp.up_proj"));
  EXPECT_EQ(group("experts.0.w1"), group("experts.0.w3"));
  EXPECT_NE(group("experts.0.w1"), group("experts.1.w1"));
  EXPECT_NE(group("experts.0.w1"), group("experts.0.w2"));
  EXPECT_NE(group("self_attn.q_proj"), group("self_attn.o_proj"));
  EXPECT_NE(group("mlp.gate_proj"), SiblingGroup("model.layers.4.mlp.gate_proj"));
  EXPECT_EQ(group("mlp.down_proj"), layer + "mlp.down_proj");
}

}  // namespace
}  // namespace nibble::quantize

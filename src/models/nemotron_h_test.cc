// What the config of Nemotron-H says beyond the generic suite: kinds of layer, limits, ranks.
#include <gtest/gtest.h>

#include <string>

#include "models/registry.h"

namespace nibble::models {
namespace {

boost::json::object Config(const std::string& layers) {
  return boost::json::
      parse(R"({"architectures": ["NemotronHForCausalLM"], "hidden_size": 64, "intermediate_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 4, "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2,
    "ssm_state_size": 32, "conv_kernel": 4, "vocab_size": 128, "max_position_embeddings": 512, )" +
            layers + "}")
          .as_object();
}

TEST(NemotronH, BothSpellingsOfLayersMeanTheSame) {
  for (
      const char* layers :
      {R"("hybrid_override_pattern": "M-M*")",
       R"("layers_block_type": ["mamba", "mlp", "mamba", "attention"], "num_hidden_layers": 4)",
       R"("layers_block_type": ["linear_attention", "mlp", "linear_attention", "full_attention"])"}) {
    auto model = BuildModel(Config(layers));
    ASSERT_TRUE(model) << model.error().message();
    const ModelInfo& info = (*model)->info();
    EXPECT_EQ(info.layers, 4);
    ASSERT_EQ(info.kv.size(), 1u);
    EXPECT_EQ(info.kv[0].head_dim, 128);
    ASSERT_EQ(info.state.size(), 2u);
    EXPECT_EQ(info.state[0].conv, 3 * (8 * 16 + 2 * 2 * 32) * 2);
    EXPECT_EQ(info.state[0].recurrent, 8 * 16 * 32 * 4);
  }
}

TEST(NemotronH, ErrorsNameWhatIsWrong) {
  for (const auto& [layers, expected] : std::vector<std::pair<const char*, const char*>>{
           {R"("hybrid_override_pattern": "M-X")", "layer type \"X\""},
           {R"("hybrid_override_pattern": "")", "names 0 layers"},
           {R"("hybrid_override_pattern": "M-", "num_hidden_layers": 3)", "num_hidden_layers is 3"},
           {R"("hybrid_override_pattern": "ME")", "moe_intermediate_size is missing"},
           {R"("hybrid_override_pattern": "M", "time_step_limit": [2.0, 1.0])", "time_step_limit"},
           {R"("hybrid_override_pattern": "M-", "mlp_hidden_act": "silu")",
            "mlp_hidden_act silu"}}) {
    auto model = BuildModel(Config(layers));
    ASSERT_FALSE(model) << layers;
    EXPECT_NE(model.error().message().find(expected), std::string::npos) << model.error().message();
  }
}

TEST(NemotronH, RanksTakeWholeGroups) {
  auto model = BuildModel(Config(R"("hybrid_override_pattern": "M-M*")"),
                          {.tp = {.comm = nullptr, .rank = 0, .size = 4}});
  ASSERT_FALSE(model);
  EXPECT_EQ(model.error().message(), "n_groups 2 cannot be divided among 4 ranks");
}

}  // namespace
}  // namespace nibble::models

// Made-up checkpoints as files.
#include "quantize/copy.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>

#include "models/dummy_checkpoint.h"
#include "testing/temp_folder.h"

namespace nibble::quantize {
namespace {

boost::json::object Config() {
  return boost::json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
    "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 20000,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": false,
    "quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4",
                            "ignore": ["lm_head"]}})")
      .as_object();
}

TEST(CopyCheckpoint, WritesTheSameTensorsOverSeveralFiles) {
  const TempFolder folder;
  const std::string destination = folder.path() + "/made";
  const auto dummy = models::MakeDummyCheckpoint(Config()).value();
  ThreadPool pool(3);
  const auto bytes = CopyCheckpoint(
      *dummy, destination,
      {.pool = &pool, .max_file_bytes = 1 << 20, .tokenizer_json = "{}", .quiet = true});
  ASSERT_TRUE(bytes) << bytes.error().message();
  EXPECT_TRUE(std::filesystem::exists(destination + "/model.safetensors.index.json"));

  const auto read = formats::OpenCheckpoint(destination);
  ASSERT_TRUE(read) << read.error().message();
  ASSERT_EQ((*read)->tensors().size(), dummy->tensors().size());
  int64_t sum = 0;
  for (const formats::TensorEntry& entry : dummy->tensors()) {
    const auto stored = (*read)->Read(entry.name);
    const auto made = dummy->Read(entry);
    ASSERT_TRUE(stored && made);
    EXPECT_EQ(stored->view.dtype, made->view.dtype);
    EXPECT_EQ(stored->view.shape, made->view.shape);
    EXPECT_EQ(
        std::memcmp(stored->view.data, made->view.data, static_cast<size_t>(entry.stored_bytes)), 0)
        << entry.name;
    sum += entry.stored_bytes;
  }
  EXPECT_EQ(*bytes, sum);
  EXPECT_EQ((*read)->config(), dummy->config());
  EXPECT_EQ((*read)->ReadText("tokenizer.json").value_or(""), "{}");

  const auto again = CopyCheckpoint(*dummy, destination, {.pool = &pool, .quiet = true});
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code(), Code::kInvalidArgument);
}

TEST(CopyCheckpoint, LeavesNothingWhenItIsStopped) {
  const TempFolder folder;
  const std::string destination = folder.path() + "/made";
  const auto dummy = models::MakeDummyCheckpoint(Config()).value();
  ThreadPool pool(2);
  std::atomic<int> pieces = 0;
  const auto stopped =
      CopyCheckpoint(*dummy, destination,
                     {.pool = &pool, .quiet = true, .cancelled = [&] { return ++pieces > 10; }});
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code(), Code::kCancelled);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace nibble::quantize

// nibble inspect: what a checkpoint holds and how fast it can decode, from names and shapes alone.
#include <fmt/format.h>

#include <cstdio>
#include <map>

#include "apps/load.h"
#include "device/cpu.h"
#include "formats/hub.h"
#include "models/model.h"

namespace nibble::apps {
namespace {

namespace json = boost::json;

struct FormatTotal {
  int64_t tensors = 0;
  int64_t bytes = 0;
};

std::map<std::string, FormatTotal> CountFormats(const formats::Checkpoint& checkpoint) {
  std::map<std::string, FormatTotal> totals;
  for (const formats::TensorEntry& entry : checkpoint.tensors()) {
    FormatTotal& total = totals[entry.stored_as];
    ++total.tensors;
    total.bytes += entry.stored_bytes;
  }
  return totals;
}

void PrintTensors(const formats::Checkpoint& checkpoint) {
  for (const formats::TensorEntry& entry : checkpoint.tensors()) {
    fmt::print("{:<64} {:>8} {:>16} {:>12}\n", entry.name, entry.stored_as, entry.shape.ToString(),
               entry.stored_bytes);
  }
}

Result<int> InspectModel(const InspectOptions& options) {
  NIBBLE_ASSIGN(const std::string path, formats::ResolveModel(options.model));
  NIBBLE_ASSIGN(const auto checkpoint, formats::OpenCheckpoint(path));
  NIBBLE_ASSIGN(const models::ModelInfo info, models::DescribeModel(*checkpoint));
  ThreadPool pool(ThreadCount(options.threads));
  const double bandwidth = MeasureReadBandwidth(pool, int64_t{1} << 28);
  const auto totals = CountFormats(*checkpoint);
  const int64_t kv_bf16 = models::KvBytesPerToken(info, kernels::KvFormat::kBf16);
  const int64_t kv_fp8 = models::KvBytesPerToken(info, kernels::KvFormat::kFp8);
  const double ceiling = bandwidth / static_cast<double>(info.bytes_per_token);

  if (options.json) {
    json::object formats;
    for (const auto& [name, total] : totals) {
      formats[name] = json::object{{"tensors", total.tensors}, {"bytes", total.bytes}};
    }
    fmt::print("{}\n",
               json::serialize(json::object{{"architecture", info.architecture},
                                            {"path", path},
                                            {"stored", std::move(formats)},
                                            {"layers", info.layers},
                                            {"hidden_size", info.hidden_size},
                                            {"vocab_size", info.vocab_size},
                                            {"max_positions", info.max_positions},
                                            {"weight_bytes", info.weight_bytes},
                                            {"bytes_per_token", info.bytes_per_token},
                                            {"kv_bytes_per_token_bf16", kv_bf16},
                                            {"kv_bytes_per_token_fp8", kv_fp8},
                                            {"threads", pool.threads()},
                                            {"read_bytes_per_second", bandwidth},
                                            {"decode_ceiling_tokens_per_second", ceiling}}));
    return 0;
  }
  if (options.tensors) PrintTensors(*checkpoint);
  fmt::print("{}\n", path);
  fmt::print("  architecture     {}, {} layers, hidden {}, vocabulary {}, context {}\n",
             info.architecture, info.layers, info.hidden_size, info.vocab_size, info.max_positions);
  for (const auto& [name, total] : totals) {
    fmt::print("  stored           {:<8} {:>6} tensors {:>12}\n", name, total.tensors,
               FormatBytes(static_cast<double>(total.bytes)));
  }
  fmt::print("  linears          {}\n", info.weight_summary);
  fmt::print("  in memory        {}\n", FormatBytes(static_cast<double>(info.weight_bytes)));
  fmt::print("  per token        {:.1f} MB of weights are read for one decoded token\n",
             static_cast<double>(info.bytes_per_token) / 1e6);
  fmt::print("  KV cache         {} bytes per token in BF16, {} in FP8\n", kv_bf16, kv_fp8);
  fmt::print(
      "  decode ceiling   {:.0f} tokens/s for one request: {} threads read {:.1f} GB/s here\n",
      ceiling, pool.threads(), bandwidth / 1e9);
  return 0;
}

}  // namespace

int Inspect(const InspectOptions& options) {
  auto status = InspectModel(options);
  return status ? *status : Report(status.error());
}

}  // namespace nibble::apps

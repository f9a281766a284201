// nibble inspect: what a checkpoint holds, what a decoded token reads and how fast that can be,
// from names and shapes alone.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <vector>

#include "apps/load.h"
#include "device/cpu.h"
#include "device/cpu_places.h"
#include "formats/hub.h"
#include "models/model.h"
#include "models/token_bytes.h"

namespace nibble::apps {
namespace {

namespace json = boost::json;
using kernels::KvFormat;
using models::Section;

struct FormatTotal {
  int64_t tensors = 0;
  int64_t bytes = 0;
};

// A memory that weights could be read from.
struct Machine {
  std::string name;
  double bytes_per_second = 0;
};

struct Facts {
  std::string path;
  models::ModelInfo info;
  std::map<std::string, FormatTotal> stored;  // by dtype
  int64_t stored_bytes = 0;
  KvFormat kv_format = KvFormat::kBf16;
  int64_t context = 0;
  models::TokenBytes token;
  std::vector<Machine> machines;  // this one last
  int threads = 0;
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

Result<KvFormat> ChooseKvFormat(const formats::Checkpoint& checkpoint, const std::string& option) {
  if (option == "bf16" || option == "bfloat16") return KvFormat::kBf16;
  if (option == "fp8" || option == "fp8_e4m3") return KvFormat::kFp8;
  if (option == "nvfp4") return KvFormat::kNvfp4;
  if (option != "auto") {
    return Fail(Code::kInvalidArgument, "--kv-cache-dtype {}: expected auto, bf16, fp8 or nvfp4",
                option);
  }
  return models::ConfiguredKvFormat(checkpoint);
}

std::string_view Name(KvFormat format) {
  switch (format) {
    case KvFormat::kBf16:
      return "bf16";
    case KvFormat::kFp8:
      return "fp8";
    default:
      return "nvfp4";
  }
}

double Ceiling(const Facts& facts, const Machine& machine) {
  return machine.bytes_per_second / static_cast<double>(facts.token.total());
}

struct Part {
  std::string_view name;
  int64_t bytes = 0;
};

// What the bytes of a token are made of.
std::vector<Part> Parts(const models::TokenBytes& token) {
  std::vector<Part> parts;
  for (const Section section : {Section::kAttention, Section::kLinearAttention, Section::kFfn,
                                Section::kExperts, Section::kSharedExpert, Section::kHead}) {
    parts.push_back({models::SectionName(section), token.weights[section]});
  }
  parts.push_back({"kv", token.kv});
  parts.push_back({"state", token.state});
  parts.push_back({models::SectionName(Section::kOther), token.weights[Section::kOther]});
  return parts;
}

void PrintJson(const Facts& facts) {
  json::object stored;
  for (const auto& [name, total] : facts.stored)
    stored[name] = json::object{{"tensors", total.tensors}, {"bytes", total.bytes}};
  json::object token;
  for (const Part& part : Parts(facts.token)) token[part.name] = part.bytes;
  token["total"] = facts.token.total();
  json::object ceilings;
  for (const Machine& machine : facts.machines) ceilings[machine.name] = Ceiling(facts, machine);
  const models::ModelInfo& info = facts.info;
  json::array left_over(info.left_over.begin(), info.left_over.end());
  fmt::print("{}\n",
             json::serialize(json::object{
                 {"architecture", info.architecture},
                 {"path", facts.path},
                 {"parameters", info.parameters},
                 {"active_parameters", info.active_parameters},
                 {"bytes", {{"stored", facts.stored_bytes}, {"resident", info.weight_bytes}}},
                 {"stored", std::move(stored)},
                 {"left_over", std::move(left_over)},
                 {"linears", info.weight_summary},
                 {"layers", info.layers},
                 {"hidden_size", info.hidden_size},
                 {"vocab_size", info.vocab_size},
                 {"max_positions", info.max_positions},
                 {"context", facts.context},
                 {"bytes_per_token", std::move(token)},
                 {"kv_cache_dtype", Name(facts.kv_format)},
                 {"kv_bytes_per_token", models::KvBytesPerToken(info, facts.kv_format)},
                 {"kv_bytes_per_token_bf16", models::KvBytesPerToken(info, KvFormat::kBf16)},
                 {"kv_bytes_per_token_fp8", models::KvBytesPerToken(info, KvFormat::kFp8)},
                 {"kv_bytes_per_token_nvfp4", models::KvBytesPerToken(info, KvFormat::kNvfp4)},
                 {"state_bytes_per_sequence", models::StateBytes(info)},
                 {"threads", facts.threads},
                 {"read_bytes_per_second", facts.machines.back().bytes_per_second},
                 {"ceiling_tok_s", std::move(ceilings)}}));
}

// "79.67 B", "134.5 M"
std::string Count(int64_t parameters) {
  const auto count = static_cast<double>(parameters);
  return count >= 1e9 ? fmt::format("{:.2f} B", count / 1e9) : fmt::format("{:.1f} M", count / 1e6);
}

void PrintText(const Facts& facts) {
  const models::ModelInfo& info = facts.info;
  const auto bytes = [](int64_t count) { return FormatBytes(static_cast<double>(count)); };
  fmt::print("{}\n", facts.path);
  fmt::print("  architecture     {}, {} layers, hidden {}, vocabulary {}, context {}\n",
             info.architecture, info.layers, info.hidden_size, info.vocab_size, info.max_positions);
  fmt::print("  parameters       {}, {} used by a token\n", Count(info.parameters),
             Count(info.active_parameters));
  for (const auto& [name, total] : facts.stored)
    fmt::print("  stored           {:<8} {:>6} tensors {:>12}\n", name, total.tensors,
               bytes(total.bytes));
  fmt::print("  linears          {}\n", info.weight_summary);
  fmt::print("  bytes            {} stored, {} in memory\n", bytes(facts.stored_bytes),
             bytes(info.weight_bytes));
  if (!info.left_over.empty())
    fmt::print("  not used         {} tensors, the first is {}\n", info.left_over.size(),
               info.left_over.front());
  fmt::print("  KV cache         {} bytes per token in {}, {} per sequence of recurrent state\n",
             models::KvBytesPerToken(info, facts.kv_format), Name(facts.kv_format),
             bytes(models::StateBytes(info)));
  fmt::print("  per token        {:.3f} GB at {} tokens of context\n",
             static_cast<double>(facts.token.total()) / 1e9, facts.context);
  for (const Part& part : Parts(facts.token)) {
    if (part.bytes == 0) continue;
    fmt::print("    {:<16} {:>10.2f} MB {:>5.1f} %\n", part.name,
               static_cast<double>(part.bytes) / 1e6,
               100.0 * static_cast<double>(part.bytes) / static_cast<double>(facts.token.total()));
  }
  for (const Machine& machine : facts.machines)
    fmt::print("  decode ceiling   {:.1f} tokens/s for one request: {}, {:.1f} GB/s\n",
               Ceiling(facts, machine), machine.name, machine.bytes_per_second / 1e9);
}

Result<int> InspectModel(const InspectOptions& options) {
  Facts facts;
  NIBBLE_ASSIGN(facts.path, formats::ResolveModel(options.model));
  NIBBLE_ASSIGN(const auto checkpoint, OpenModel(facts.path, {.load_format = options.load_format,
                                                              .dummy_policy = options.dummy_policy,
                                                              .quantization = options.quantization,
                                                              .describe_only = true}));
  NIBBLE_ASSIGN(facts.info, models::DescribeModel(*checkpoint));
  NIBBLE_ASSIGN(facts.kv_format, ChooseKvFormat(*checkpoint, options.kv_cache_dtype));
  facts.context = options.context;
  facts.token = models::CountTokenBytes(facts.info, facts.kv_format, facts.context);
  facts.stored = CountFormats(*checkpoint);
  facts.stored_bytes = StoredBytes(*checkpoint);
  const std::unique_ptr<ThreadPool> pool = MakeThreadPool(options.threads);
  facts.threads = pool->threads();
  // GB10's data sheet; an H200 as its memory was measured; this machine as it reads now.
  facts.machines = {
      {"GB10", 273e9}, {"H200", 4541e9}, {"this machine", MeasureReadBandwidth(*pool)}};
  if (options.json) {
    PrintJson(facts);
    return 0;
  }
  if (options.tensors) PrintTensors(*checkpoint);
  PrintText(facts);
  return 0;
}

}  // namespace

int Inspect(const InspectOptions& options) {
  auto status = InspectModel(options);
  return status ? *status : Report(status.error());
}

}  // namespace nibble::apps

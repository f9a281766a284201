// One-thread cost of the ops beside the linears, per variant, at the shapes of SmolLM2-135M and of
// larger models. Attention reports the cache bytes that it reads per second; compare with the read
// probe of the same machine.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "device/buffer.h"
#include "kernels/ops.h"
#include "numerics/bf16.h"

namespace nibble::kernels {
namespace {

std::vector<uint16_t> Ramp(int64_t n) {
  std::vector<uint16_t> values(n);
  for (int64_t i = 0; i < n; ++i)
    values[i] = Bf16FromFloat(static_cast<float>(i * 7919 % 2003) * 0.002f - 2.0f);
  return values;
}

// Memory as the engine's caches have it.
template <typename T>
Buffer OnHugePages(const std::vector<T>& values) {
  const size_t bytes = values.size() * sizeof(T);
  Buffer buffer = *Buffer::Allocate(bytes);
  std::memcpy(buffer.data(), values.data(), bytes);
  return buffer;
}

class Bench {
 public:
  explicit Bench(size_t workspace) : pool_(1), memory_(workspace + 64) {
    auto address = reinterpret_cast<uintptr_t>(memory_.data());
    context = {.pool = &pool_,
               .workspace = memory_.data() + (64 - address % 64) % 64,
               .workspace_bytes = workspace};
  }
  OpContext context;

 private:
  ThreadPool pool_;
  std::vector<std::byte> memory_;
};

void Norm(benchmark::State& state, const OpTable* ops) {
  const int64_t d = state.range(0);
  std::vector<uint16_t> x = Ramp(d), out(d);
  const std::vector<uint16_t> delta(d);
  const std::vector<float> weight(d, 1.0f);
  for (auto _ : state)
    ops->rms_norm({}, {.x = x.data(),
                       .delta = delta.data(),
                       .weight = weight.data(),
                       .out = out.data(),
                       .t = 1,
                       .d = d});
  state.SetItemsProcessed(state.iterations() * d);
}

void Silu(benchmark::State& state, const OpTable* ops) {
  const int64_t f = state.range(0);
  const std::vector<uint16_t> gate_up = Ramp(2 * f);
  std::vector<uint16_t> out(f);
  for (auto _ : state)
    ops->activation({}, {.gate_up = gate_up.data(), .out = out.data(), .t = 1, .f = f});
  state.SetItemsProcessed(state.iterations() * f);
}

void Rope(benchmark::State& state, const OpTable* ops, KvFormat format) {
  const auto q_heads = static_cast<int32_t>(state.range(0));
  const auto kv_heads = static_cast<int32_t>(state.range(1));
  const auto dh = static_cast<int32_t>(state.range(2));
  const std::vector<uint16_t> qkv = Ramp((q_heads + 2 * kv_heads) * dh);
  const std::vector<float> angles(dh, 0.5f);
  std::vector<std::byte> k(16 * kv_heads * dh * 2), v(16 * kv_heads * dh * 2);
  std::vector<uint16_t> q(q_heads * dh);
  const int32_t position = 0;
  const int64_t slot = 3;
  for (auto _ : state)
    ops->rope_and_cache({}, {.qkv = qkv.data(),
                             .t = 1,
                             .q_heads = q_heads,
                             .cos = angles.data(),
                             .sin = angles.data(),
                             .rotary_dim = dh,
                             .positions = &position,
                             .slots = &slot,
                             .cache = {.k = k.data(),
                                       .v = v.data(),
                                       .format = format,
                                       .page_size = 16,
                                       .kv_heads = kv_heads,
                                       .head_dim = dh},
                             .q_out = q.data()});
  state.SetItemsProcessed(state.iterations() * (q_heads + 2 * kv_heads) * dh);
}

// q_len tokens at the end of a context; enough sequences that their pages exceed the caches.
void Attention(benchmark::State& state, const OpTable* ops, KvFormat format, int32_t q_len) {
  const auto q_heads = static_cast<int32_t>(state.range(0));
  const auto kv_heads = static_cast<int32_t>(state.range(1));
  const auto dh = static_cast<int32_t>(state.range(2));
  const auto context_tokens = static_cast<int32_t>(state.range(3));
  const int32_t page_size = 16;
  const int64_t pages = context_tokens / page_size;
  const int64_t layers = q_len > 1 ? 1 : 16;  // walked in turn, as a model walks its layers
  const int64_t elements = layers * pages * page_size * kv_heads * dh;
  std::vector<uint16_t> values = Ramp(elements * KvElementBytes(format) / 2);
  if (format == KvFormat::kFp8)
    for (uint16_t& two : values) two &= 0x3F3F;
  Buffer k = OnHugePages(values), v = OnHugePages(values);
  std::vector<int32_t> table(pages);
  for (int64_t i = 0; i < pages; ++i) table[i] = static_cast<int32_t>(i);
  const std::vector<uint16_t> q = Ramp(int64_t{q_len} * q_heads * dh);
  std::vector<uint16_t> out(q.size());
  const Bench bench(ops->attention_workspace(1, q_len, q_heads, dh));
  const int32_t q_start[] = {0, q_len};
  int64_t layer = 0;
  for (auto _ : state) {
    const int64_t at = layer * pages * page_size * kv_heads * dh * KvElementBytes(format);
    layer = (layer + 1) % layers;
    ops->attention(bench.context, {.q = q.data(),
                                   .out = out.data(),
                                   .t = q_len,
                                   .sequences = 1,
                                   .q_start = q_start,
                                   .kv_len = &context_tokens,
                                   .page_table = table.data(),
                                   .max_pages = pages,
                                   .q_heads = q_heads,
                                   .scale = 1.0f / std::sqrt(static_cast<float>(dh)),
                                   .cache = {.k = k.data() + at,
                                             .v = v.data() + at,
                                             .format = format,
                                             .key_layout = KeyLayout::kPairs,
                                             .page_size = page_size,
                                             .kv_heads = kv_heads,
                                             .head_dim = dh}});
  }
  const double cache_bytes =
      2.0 * context_tokens * kv_heads * dh * static_cast<double>(KvElementBytes(format));
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * cache_bytes));
  const double pairs = q_len * (context_tokens - (q_len - 1) / 2.0);
  state.counters["flop/s"] =
      benchmark::Counter(4.0 * pairs * q_heads * dh, benchmark::Counter::kIsIterationInvariantRate);
}

// One token of each of many short sequences, layer after layer, pages in no order: a decode step.
void AttentionStep(benchmark::State& state, const OpTable* ops, KvFormat format) {
  constexpr int32_t kSequences = 32, kQHeads = 9, kKvHeads = 3, kDh = 64, kPageSize = 16;
  constexpr int64_t kLayers = 30;
  const auto context_tokens = static_cast<int32_t>(state.range(0));
  const int64_t pages_of_one = (context_tokens + kPageSize - 1) / kPageSize;
  const int64_t pages = kSequences * pages_of_one;
  const int64_t layer_bytes = pages * kPageSize * kKvHeads * kDh * KvElementBytes(format);
  std::vector<uint16_t> values = Ramp(kLayers * layer_bytes / 2);
  if (format == KvFormat::kFp8)
    for (uint16_t& two : values) two &= 0x3F3F;
  Buffer k = OnHugePages(values), v = OnHugePages(values);
  std::vector<int32_t> table(pages);
  for (int64_t i = 0; i < pages; ++i) table[i] = static_cast<int32_t>(i * 101 % pages);
  const std::vector<uint16_t> q = Ramp(int64_t{kSequences} * kQHeads * kDh);
  std::vector<uint16_t> out(q.size());
  const Bench bench(ops->attention_workspace(1, kSequences, kQHeads, kDh));
  std::vector<int32_t> q_start(kSequences + 1);
  for (int32_t b = 0; b <= kSequences; ++b) q_start[b] = b;
  const std::vector<int32_t> lengths(kSequences, context_tokens);
  for (auto _ : state) {
    for (int64_t layer = 0; layer < kLayers; ++layer)
      ops->attention(bench.context, {.q = q.data(),
                                     .out = out.data(),
                                     .t = kSequences,
                                     .sequences = kSequences,
                                     .q_start = q_start.data(),
                                     .kv_len = lengths.data(),
                                     .page_table = table.data(),
                                     .max_pages = pages_of_one,
                                     .q_heads = kQHeads,
                                     .scale = 1.0f / std::sqrt(static_cast<float>(kDh)),
                                     .cache = {.k = k.data() + layer * layer_bytes,
                                               .v = v.data() + layer * layer_bytes,
                                               .format = format,
                                               .key_layout = KeyLayout::kPairs,
                                               .page_size = kPageSize,
                                               .kv_heads = kKvHeads,
                                               .head_dim = kDh}});
  }
  state.SetBytesProcessed(state.iterations() * kLayers * layer_bytes * 2);
}

// Qwen3-Next's heads: 16 of keys, 32 of values, 128 wide. Bytes are those of the recurrent state,
// read and written; enough layers that they exceed the caches.
void DeltaNet(benchmark::State& state, const OpTable* ops) {
  constexpr int32_t kKeyHeads = 16, kValueHeads = 32, kDim = 128, kWidth = 4;
  constexpr int64_t kChannels = (2 * kKeyHeads + kValueHeads) * kDim;
  constexpr int64_t kValues = kValueHeads * kDim;
  const auto t = static_cast<int32_t>(state.range(0));
  const int64_t layers = t > 1 ? 1 : 36;
  const std::vector<uint16_t> qkv = Ramp(t * kChannels), z = Ramp(t * kValues);
  const std::vector<float> ba(t * 2 * kValueHeads, 0.3f), conv(kChannels * kWidth, 0.25f);
  const std::vector<float> per_head(kValueHeads, -1.0f), norm(kDim, 1.0f);
  std::vector<uint16_t> windows = Ramp(layers * (kWidth - 1) * kChannels), out(t * kValues);
  Buffer states = OnHugePages(std::vector<float>(layers * kValues * kDim, 0.01f));
  const int32_t q_start[] = {0, t}, kv_len = t + 8, slot = 0;
  GatedDeltaNetParams params = {
      .qkv = qkv.data(),
      .qkv_stride = kChannels,
      .z = z.data(),
      .z_stride = kValues,
      .b = ba.data(),
      .a = ba.data() + kValueHeads,
      .ba_stride = 2 * kValueHeads,
      .k_heads = kKeyHeads,
      .v_heads = kValueHeads,
      .k_dim = kDim,
      .v_dim = kDim,
      .conv_width = kWidth,
      .conv_weight = conv.data(),
      .a_log = per_head.data(),
      .dt_bias = per_head.data(),
      .norm_weight = norm.data(),
      .t = t,
      .sequences = {.count = 1, .q_start = q_start, .kv_len = &kv_len, .slots = &slot},
      .out = out.data()};
  const Bench bench(ops->gated_delta_net_workspace(1, params));
  int64_t layer = 0;
  for (auto _ : state) {
    params.conv_state.base =
        reinterpret_cast<std::byte*>(windows.data() + layer * (kWidth - 1) * kChannels);
    params.recurrent_state.base =
        states.data() + layer * kValues * kDim * static_cast<int64_t>(sizeof(float));
    layer = (layer + 1) % layers;
    ops->gated_delta_net(bench.context, params);
  }
  state.SetBytesProcessed(state.iterations() * 2 * kValues * kDim *
                          static_cast<int64_t>(sizeof(float)));
  state.SetItemsProcessed(state.iterations() * t);
}

void Sample(benchmark::State& state, const OpTable* ops, SampleRow row) {
  const int64_t vocab = state.range(0);
  std::vector<float> logits(vocab);
  for (int64_t i = 0; i < vocab; ++i) {  // about normal, spread 2.5: a few likely tokens
    const auto hash = static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15u;
    const auto part = [&](int shift) { return static_cast<float>((hash >> shift) & 0xFFF) / 4096; };
    logits[i] = (part(52) + part(40) + part(28) - 1.5f) * 10.0f;
  }
  const Bench bench(ops->sample_workspace(1, 1, vocab));
  SampledToken out;
  std::vector<int32_t> tokens(20);
  std::vector<float> logprobs(20);
  const bool top = row.top_logprobs > 0;
  for (auto _ : state)
    ops->sample(bench.context, {.logits = logits.data(),
                                .logits_stride = vocab,
                                .vocab = vocab,
                                .rows = {&row, 1},
                                .out = &out,
                                .top_tokens = top ? tokens.data() : nullptr,
                                .top_logprobs = top ? logprobs.data() : nullptr,
                                .max_top_logprobs = 20});
  state.SetItemsProcessed(state.iterations() * vocab);
}

void RegisterVariant(const OpTable* ops) {
  const std::string variant(ops->variant);
  const auto add = [&](const std::string& name, auto function, auto... args) {
    return benchmark::RegisterBenchmark((name + "/" + variant).c_str(), function, ops, args...);
  };
  add("rms_norm", Norm)->Arg(576)->Arg(4096);
  add("activation", Silu)->Arg(1536)->Arg(14336);
  add("rope_bf16", Rope, KvFormat::kBf16)->Args({9, 3, 64});
  add("rope_fp8", Rope, KvFormat::kFp8)->Args({9, 3, 64});
  for (KvFormat format : {KvFormat::kBf16, KvFormat::kFp8}) {
    const std::string suffix = format == KvFormat::kBf16 ? "_bf16" : "_fp8";
    add("attention_decode" + suffix, Attention, format, 1)
        ->Args({9, 3, 64, 8192})
        ->Args({32, 8, 128, 8192})
        ->Args({32, 4, 128, 8192})
        ->Args({9, 3, 64, 128})
        ->Args({128, 1, 576, 2048});  // MLA: DeepSeek-V3
  }
  add("attention_step_bf16", AttentionStep, KvFormat::kBf16)->Arg(100)->Arg(128);
  add("attention_step_fp8", AttentionStep, KvFormat::kFp8)->Arg(100);
  add("attention_prefill_bf16", Attention, KvFormat::kBf16, 512)
      ->Args({9, 3, 64, 512})
      ->Args({32, 4, 64, 512})
      ->Args({32, 8, 128, 8192});
  add("gated_delta_net", DeltaNet)->Arg(1)->Arg(512);
  const auto sizes = [](benchmark::internal::Benchmark* b) { b->Arg(49152)->Arg(151936); };
  add("sample_greedy", Sample, SampleRow{.temperature = 0})->Apply(sizes);
  add("sample_all", Sample, SampleRow{.uniform = 0.5})->Apply(sizes);
  add("sample_top_k", Sample, SampleRow{.top_k = 50, .uniform = 0.5})->Apply(sizes);
  add("sample_top_p", Sample, SampleRow{.top_p = 0.95f, .uniform = 0.5})->Apply(sizes);
  add("sample_top_logprobs", Sample, SampleRow{.temperature = 0, .top_logprobs = 20})->Apply(sizes);
}

const bool kRegistered = [] {
  for (const char* name : {"avx512", "avx2", "neon", "generic"})
    if (const auto ops = CpuOpsVariant(name)) RegisterVariant(*ops);
  return true;
}();

}  // namespace
}  // namespace nibble::kernels

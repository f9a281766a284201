#include "kernels/benchmark_cpu_ops.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "device/buffer.h"
#include "device/cpu.h"
#include "kernels/benchmark_time.h"
#include "kernels/benchmark_weight.h"
#include "kernels/even_routing.h"

namespace nibble::kernels {
namespace {

Result<Buffer> Activations(int64_t n) {
  NIBBLE_ASSIGN(Buffer buffer, Buffer::Allocate(static_cast<size_t>(n) * sizeof(uint16_t)));
  BenchBits bits;
  for (int64_t i = 0; i < n; ++i)
    buffer.as<uint16_t>()[i] = static_cast<uint16_t>(0x3F00 + (bits.Next() & 0x80FFu));
  return buffer;
}

// ---- Experts

constexpr int64_t kD = 2048;
constexpr int64_t kF = 768;
constexpr int32_t kExperts = 64;
constexpr int32_t kTopK = 8;

class ExpertBench {
 public:
  ExpertBench(const OpTable& ops, ThreadPool& pool) : ops_(ops), pool_(pool) {}

  Status Make() {
    constexpr auto kFormat = WeightFormat::kNvfp4;
    constexpr auto kActivations = ActivationFormat::kInt16;  // what models use
    NIBBLE_ASSIGN(router_, MakeBenchWeight(ops_, pool_, WeightFormat::kBf16,
                                           ActivationFormat::kBf16, kExperts, kD));
    for (int32_t e = 0; e < kExperts; ++e) {
      NIBBLE_ASSIGN(auto gate_up, MakeBenchWeight(ops_, pool_, kFormat, kActivations, 2 * kF, kD));
      NIBBLE_ASSIGN(auto down, MakeBenchWeight(ops_, pool_, kFormat, kActivations, kD, kF));
      experts_.push_back({.gate_up = gate_up.get(), .down = down.get()});
      weights_.push_back(std::move(gate_up));
      weights_.push_back(std::move(down));
    }
    const MoeSizes sizes = {.t = kMost, .d = kD, .f = kF, .experts = kExperts, .top_k = kTopK};
    const size_t workspace =
        std::max(ops_.moe_workspace(pool_.threads(), sizes), ops_.linear_workspace(kMost, kD));
    NIBBLE_ASSIGN(workspace_, Buffer::Allocate(workspace));
    NIBBLE_ASSIGN(x_, Activations(kMost * kD));
    NIBBLE_ASSIGN(out_, Buffer::Allocate(kMost * kD * sizeof(float)));
    NIBBLE_ASSIGN(hidden_, Buffer::Allocate(kMost * 2 * kF * sizeof(uint16_t)));
    // As much as a step of few tokens reads, so that the caches hold as little of it.
    read_ = MeasureReadBandwidth(pool_, kExperts * ExpertBytes());
    return {};
  }

  CpuOpMeasurement Measure(int64_t t) {
    CpuOpMeasurement result = {
        .op = "moe",
        .shape = fmt::format("{} x {} x {}, {} each", kExperts, kD, kF, kTopK),
        .threads = pool_.threads(),
        .m = t};
    keys_.clear();
    for (int64_t i = 0; i < t; ++i) keys_.push_back(static_cast<uint32_t>(i * 2654435761u));
    uint32_t salt = 0;  // one token walks over all experts
    result.seconds = BestSeconds(pool_.threads() == 1, [&] { RunMoe(t, t == 1 ? salt++ : 0); });
    result.bytes = static_cast<double>(ExpertsHit() * ExpertBytes());
    if (t < kMost) {
      result.ideal_seconds = result.bytes / read_;
      result.goal = 0.8;
    } else {
      result.ideal_seconds =
          BestSeconds(pool_.threads() == 1, [&] { RunLinears(t * kTopK / kExperts); });
      result.goal = 0.9;
    }
    return result;
  }

  static constexpr int64_t kMost = 512;

 private:
  int64_t ExpertBytes() const { return experts_[0].gate_up->bytes() + experts_[0].down->bytes(); }

  OpContext context() {
    return {.pool = &pool_, .workspace = workspace_.data(), .workspace_bytes = workspace_.size()};
  }

  void RunMoe(int64_t t, uint32_t salt) {
    ops_.moe(context(), {.x = x_.as<uint16_t>(),
                         .t = t,
                         .d = kD,
                         .router = router_.get(),
                         .routing = {.experts = kExperts,
                                     .top_k = kTopK,
                                     .even_keys = keys_.data(),
                                     .even_salt = salt},
                         .experts = experts_,
                         .f = kF,
                         .out = out_.as<uint16_t>()});
  }

  // Each expert's linears with m tokens.
  void RunLinears(int64_t m) {
    for (const ExpertWeights& expert : experts_) {
      ops_.linear(context(), {.x = x_.as<uint16_t>(),
                              .x_stride = kD,
                              .weight = expert.gate_up,
                              .y = hidden_.as<uint16_t>(),
                              .y_stride = 2 * kF,
                              .m = m});
      ops_.activation(
          context(),
          {.gate_up = hidden_.as<uint16_t>(), .out = hidden_.as<uint16_t>(), .t = m, .f = kF});
      ops_.linear(context(), {.x = hidden_.as<uint16_t>(),
                              .x_stride = kF,
                              .weight = expert.down,
                              .y_f32 = out_.as<float>(),
                              .y_stride = kD,
                              .m = m});
    }
  }

  int64_t ExpertsHit() const {
    std::vector<char> hit(kExperts, 0);
    for (const uint32_t key : keys_) {
      const EvenChoice choice = ChooseEvenly(key, 0, kExperts, kTopK);
      for (int32_t i = 0; i < kTopK; ++i) hit[choice.expert(i, kExperts)] = 1;
    }
    return std::ranges::count(hit, 1);
  }

  const OpTable& ops_;
  ThreadPool& pool_;
  std::unique_ptr<PackedWeight> router_;
  std::vector<std::unique_ptr<PackedWeight>> weights_;
  std::vector<ExpertWeights> experts_;
  std::vector<uint32_t> keys_;
  Buffer workspace_, x_, out_, hidden_;
  double read_ = 0;
};

// ---- Attention

struct Heads {
  int32_t q;
  int32_t kv;
  int32_t dim;
};

constexpr int32_t kContext = 8192;
constexpr int32_t kPage = 16;
constexpr double kAttentionGoal = 0.7;

Result<CpuOpMeasurement> MeasureAttention(const OpTable& ops, ThreadPool& pool, Heads heads,
                                          KvFormat format, double multiply_rate) {
  constexpr int64_t kLayers = 16;  // walked in turn, as a model walks its own
  constexpr int64_t kPages = kContext / kPage;
  const int64_t elements = int64_t{kContext} * heads.kv * heads.dim;  // of keys
  const int64_t layer_bytes = elements * KvElementBytes(format);
  NIBBLE_ASSIGN(Buffer cache, Buffer::Allocate(static_cast<size_t>(2 * kLayers * layer_bytes)));
  BenchBits bits;
  for (size_t i = 0; i < cache.size() / 2; ++i) {
    const uint32_t two = bits.Next();
    cache.as<uint16_t>()[i] = static_cast<uint16_t>(
        format == KvFormat::kBf16 ? 0x3F00 + (two & 0x80FFu) : 0x3030 + (two & 0x8787u));
  }
  const double read = MeasureReadBandwidth(pool, {cache.data(), cache.size()});
  std::vector<int32_t> table(kPages);
  for (int64_t i = 0; i < kPages; ++i) table[i] = static_cast<int32_t>(i);
  const int32_t q_start[] = {0, 1};
  const int64_t width = int64_t{heads.q} * heads.dim;
  NIBBLE_ASSIGN(const Buffer q, Activations(width));
  NIBBLE_ASSIGN(Buffer out, Buffer::Allocate(static_cast<size_t>(width) * sizeof(uint16_t)));
  NIBBLE_ASSIGN(Buffer workspace,
                Buffer::Allocate(ops.attention_workspace(pool.threads(), 1, heads.q, heads.dim)));
  const OpContext context = {
      .pool = &pool, .workspace = workspace.data(), .workspace_bytes = workspace.size()};
  const double seconds = BestSeconds(pool.threads() == 1, [&] {
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      std::byte* k = cache.data() + 2 * layer * layer_bytes;
      ops.attention(context, {.q = q.as<uint16_t>(),
                              .out = out.as<uint16_t>(),
                              .t = 1,
                              .sequences = 1,
                              .q_start = q_start,
                              .kv_len = &kContext,
                              .page_table = table.data(),
                              .max_pages = kPages,
                              .q_heads = heads.q,
                              .scale = 1.0f / std::sqrt(static_cast<float>(heads.dim)),
                              .cache = {.k = k,
                                        .v = k + layer_bytes,
                                        .format = format,
                                        .key_layout = KeyLayout::kPairs,
                                        .page_size = kPage,
                                        .kv_heads = heads.kv,
                                        .head_dim = heads.dim}});
    }
  });
  CpuOpMeasurement result = {.op = "attention",
                             .shape = fmt::format("{} x {} x {} {}", heads.q, heads.kv, heads.dim,
                                                  format == KvFormat::kBf16 ? "bf16" : "fp8"),
                             .threads = pool.threads(),
                             .m = 1,
                             .context = kContext,
                             .seconds = seconds / kLayers,
                             .bytes = static_cast<double>(2 * layer_bytes),
                             .goal = kAttentionGoal};
  const double multiplied = 2.0 * heads.q / heads.kv * 2.0 * static_cast<double>(elements);
  result.ideal_seconds = result.bytes / read + (multiply_rate > 0 ? multiplied / multiply_rate : 0);
  return result;
}

}  // namespace

Status BenchCpuExperts(const OpTable& ops, ThreadPool& pool, const OnCpuOp& on_measurement) {
  ExpertBench bench(ops, pool);
  NIBBLE_TRY(bench.Make());
  for (const int64_t t : {int64_t{1}, int64_t{8}, ExpertBench::kMost})
    on_measurement(bench.Measure(t));
  return {};
}

Status BenchCpuAttention(const OpTable& ops, ThreadPool& pool, double multiply_rate,
                         const OnCpuOp& on_measurement) {
  for (const Heads& heads : {Heads{9, 3, 64}, Heads{32, 8, 128}, Heads{32, 4, 128}}) {
    for (const KvFormat format : {KvFormat::kBf16, KvFormat::kFp8}) {
      NIBBLE_ASSIGN(const CpuOpMeasurement measurement,
                    MeasureAttention(ops, pool, heads, format, multiply_rate));
      on_measurement(measurement);
    }
  }
  return {};
}

std::string FormatMeasurement(const CpuOpMeasurement& m) {
  const std::string where = m.context > 0 ? fmt::format("behind {}", m.context) : std::string();
  return fmt::format(
      "{:9} {:22} t={} M={:<4} {:12} {:9.1f} us {:6.2f} GB/s  {:.0f} % of what read and multiply "
      "allow, goal {:.0f}: {}",
      m.op, m.shape, m.threads, m.m, where, 1e6 * m.seconds, m.bytes / m.seconds / 1e9,
      100 * m.reached(), 100 * m.goal, m.met() ? "met" : "MISSED");
}

}  // namespace nibble::kernels

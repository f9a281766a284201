#include "kernels/benchmark_ops.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <memory>
#include <string_view>

#include "base/thread_pool.h"
#include "device/buffer.h"
#include "kernels/benchmark_weight.h"
#include "kernels/even_routing.h"

namespace nibble::kernels {
namespace {

constexpr int64_t kColdBytes = int64_t{256} << 20;  // more than any cache
constexpr int64_t kChain = 24;                      // launches, if they are short
constexpr int kRuns = 5;
constexpr int64_t kPrompt = 256;  // tokens from which a linear is measured against cuBLASLt

// Memory, marks and timing of one device.
class Bench {
 public:
  Bench(const OpTable& ops, const std::function<void(const OpMeasurement&)>& on_measurement)
      : ops_(ops),
        device_(*ops.device),
        on_measurement_(on_measurement),
        begin_(device_.Mark()),
        end_(device_.Mark()) {}

  const OpTable& ops() const { return ops_; }
  ThreadPool& pool() { return pool_; }

  // BF16 values around 1, `n` of them.
  Result<Buffer> Activations(int64_t n) {
    std::vector<uint16_t> values(static_cast<size_t>(n));
    BenchBits bits;
    for (uint16_t& value : values) value = static_cast<uint16_t>(0x3F00 + (bits.Next() & 0x80FFu));
    return Place(values);
  }
  template <typename T>
  Result<Buffer> Place(const std::vector<T>& values) {
    NIBBLE_ASSIGN(Buffer buffer, Buffer::Allocate(values.size() * sizeof(T), device_));
    device_.Upload(buffer.data(), values.data(), values.size() * sizeof(T));
    return buffer;
  }
  Result<Buffer> Room(int64_t bytes) {
    NIBBLE_ASSIGN(Buffer buffer, Buffer::Allocate(static_cast<size_t>(bytes), device_));
    device_.Clear(buffer.data(), static_cast<size_t>(bytes));
    return buffer;
  }
  Status ReserveWorkspace(size_t bytes) {
    if (bytes <= workspace_.size()) return {};
    NIBBLE_ASSIGN(workspace_, Buffer::Allocate(bytes, device_));
    return {};
  }
  OpContext context() {
    return {.pool = &pool_,
            .stream = device_.stream(),
            .workspace = workspace_.data(),
            .workspace_bytes = workspace_.size()};
  }

  // Seconds per launch of launch(0), launch(1), ..., the best of several runs.
  template <typename Launch>
  double Time(int64_t launches, const Launch& launch) {
    const auto all = [&] {
      for (int64_t i = 0; i < launches; ++i) launch(i);
    };
    all();
    const std::unique_ptr<DeviceGraph> graph = ops_.recordable ? device_.Record(all) : nullptr;
    double best = 1e30;
    for (int run = 0; run < kRuns; ++run) {
      device_.Set(*begin_);
      if (graph != nullptr) {
        graph->Launch();
      } else {
        all();
      }
      device_.Set(*end_);
      device_.Wait(*end_);
      if (run > 0) best = std::min(best, device_.SecondsBetween(*begin_, *end_));
    }
    return best / static_cast<double>(launches);
  }

  double Bf16MatmulSeconds(int64_t m, int64_t n, int64_t k) {
    return device_.host_memory() ? 0 : CudaBf16MatmulSeconds(m, n, k);
  }

  Status Report(OpMeasurement measurement) {
    if (const std::string failure = device_.failure(); !failure.empty())
      return Fail(Code::kInternal, "{} of {}: {}", measurement.op, measurement.shape, failure);
    if (!device_.host_memory())
      measurement.read_seconds = CudaReadSeconds(static_cast<int64_t>(measurement.bytes));
    on_measurement_(measurement);
    return {};
  }

 private:
  const OpTable& ops_;
  Device& device_;
  const std::function<void(const OpMeasurement&)>& on_measurement_;
  ThreadPool pool_{1};
  Buffer workspace_;
  std::unique_ptr<DeviceMark> begin_;
  std::unique_ptr<DeviceMark> end_;
};

// "4096x14336" as numbers; empty if it is not `count` of them in 1..2^20.
std::vector<int64_t> ParseShape(std::string_view text, size_t count) {
  std::vector<int64_t> sizes;
  while (!text.empty()) {
    int64_t size = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), size);
    if (error != std::errc() || size < 1 || size > 1 << 20) return {};
    text.remove_prefix(static_cast<size_t>(end - text.data()));
    if (!text.empty() && (text.front() != 'x' || text.size() == 1)) return {};
    if (!text.empty()) text.remove_prefix(1);
    sizes.push_back(size);
  }
  return sizes.size() == count ? sizes : std::vector<int64_t>();
}

// ---- linear

// One of the entries that multiply.
struct LinearEntry {
  std::string_view name;
  size_t (*workspace)(int64_t max_m, int64_t max_k);
  void (*run)(const OpContext&, const LinearParams&);
  bool gate_up = false;  // with an activation: N / 2 outputs
};

Status BenchEntry(Bench& bench, const LinearEntry& entry, const OpBenchOptions& options,
                  const std::string& shape) {
  const std::vector<int64_t> sizes = ParseShape(shape, 2);
  const int64_t n = sizes[0], k = sizes[1];
  const Activation activation;
  NIBBLE_ASSIGN(const BenchWeight stored, BenchWeight::Make(options.format, n, k));
  std::vector<std::unique_ptr<PackedWeight>> weights;
  do {
    NIBBLE_ASSIGN(auto weight, bench.ops().pack_weight({.parts = {&stored.view(), 1},
                                                        .gate_up = entry.gate_up,
                                                        .pool = &bench.pool()}));
    weights.push_back(std::move(weight));
  } while (weights[0]->bytes() * static_cast<int64_t>(weights.size()) < kColdBytes);
  for (const int64_t m : options.tokens) {
    size_t workspace = entry.workspace(m, k);
    if (entry.gate_up) workspace += bench.ops().activated_workspace(m, n / 2);
    NIBBLE_TRY(bench.ReserveWorkspace(workspace));
    NIBBLE_ASSIGN(const Buffer x, bench.Activations(m * k));
    NIBBLE_ASSIGN(Buffer y, bench.Room(m * n * 2));
    const auto copies = static_cast<int64_t>(weights.size());
    const double seconds = bench.Time(m > 256 ? 4 : std::max(kChain, copies), [&](int64_t i) {
      entry.run(bench.context(), {.x = x.as<uint16_t>(),
                                  .x_stride = k,
                                  .weight = weights[i % copies].get(),
                                  .y = y.as<uint16_t>(),
                                  .y_stride = entry.gate_up ? n / 2 : n,
                                  .activation = entry.gate_up ? &activation : nullptr,
                                  .m = m});
    });
    NIBBLE_TRY(bench.Report(
        {.op = std::string(entry.name),
         .shape = shape,
         .m = m,
         .seconds = seconds,
         .bytes = static_cast<double>(weights[0]->bytes()),
         .flops = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k),
         .bf16_seconds = m >= kPrompt ? bench.Bf16MatmulSeconds(m, n, k) : 0}));
  }
  return {};
}

Status BenchLinearShape(Bench& bench, const OpBenchOptions& options, const std::string& shape) {
  const OpTable& ops = bench.ops();
  return BenchEntry(bench, {"linear", ops.linear_workspace, ops.linear}, options, shape);
}

Status BenchGateUpShape(Bench& bench, const OpBenchOptions& options, const std::string& shape) {
  const OpTable& ops = bench.ops();
  return BenchEntry(bench, {"gate_up", ops.linear_workspace, ops.linear, true}, options, shape);
}

Status BenchLinearFp8Shape(Bench& bench, const OpBenchOptions& options, const std::string& shape) {
  const OpTable& ops = bench.ops();
  if (ops.linear_fp8 == nullptr)
    return Fail(Code::kUnsupported, "linear_fp8: {} does not multiply FP8", ops.device->name());
  if (options.format != WeightFormat::kFp8)
    return Fail(Code::kInvalidArgument, "linear_fp8: takes --format fp8, not {}",
                WeightFormatName(options.format));
  return BenchEntry(bench, {"linear_fp8", ops.linear_fp8_workspace, ops.linear_fp8}, options,
                    shape);
}

// ---- moe

struct MoeModel {
  std::string_view name;
  int32_t experts;
  int32_t top_k;
  int64_t d;
  int64_t f;
  int64_t shared_f;
};
constexpr MoeModel kMoeModels[] = {{"30b", 128, 8, 2048, 768, 0},
                                   {"next", 512, 10, 2048, 512, 512}};

const MoeModel* FindMoe(std::string_view name) {
  const auto* found = std::ranges::find(kMoeModels, name, &MoeModel::name);
  return found == std::end(kMoeModels) ? nullptr : found;
}

// One block: its launches differ in the experts that they hit.
class MoeBlock {
 public:
  Status Make(Bench& bench, const MoeModel& model, WeightFormat format) {
    model_ = model;
    const auto pack = [&](const BenchWeight& stored) -> Result<const PackedWeight*> {
      NIBBLE_ASSIGN(auto weight,
                    bench.ops().pack_weight({.parts = {&stored.view(), 1}, .pool = &bench.pool()}));
      weights_.push_back(std::move(weight));
      return weights_.back().get();
    };
    const auto expert = [&](int64_t f, int64_t count) -> Status {
      NIBBLE_ASSIGN(const BenchWeight gate_up, BenchWeight::Make(format, 2 * f, model.d));
      NIBBLE_ASSIGN(const BenchWeight down, BenchWeight::Make(format, model.d, f));
      for (int64_t i = 0; i < count; ++i) {
        ExpertWeights made;
        NIBBLE_ASSIGN(made.gate_up, pack(gate_up));
        NIBBLE_ASSIGN(made.down, pack(down));
        experts_.push_back(made);
      }
      return {};
    };
    NIBBLE_ASSIGN(const BenchWeight router,
                  BenchWeight::Make(WeightFormat::kBf16, model.experts, model.d));
    NIBBLE_ASSIGN(router_, pack(router));
    NIBBLE_TRY(expert(model.f, model.experts));
    if (model.shared_f > 0) {
      NIBBLE_TRY(expert(model.shared_f, 1));
      shared_ = experts_.back();
      experts_.pop_back();
      NIBBLE_ASSIGN(const BenchWeight gate, BenchWeight::Make(WeightFormat::kBf16, 1, model.d));
      NIBBLE_ASSIGN(shared_gate_, pack(gate));
    }
    if (bench.ops().prepare_experts != nullptr) {
      NIBBLE_ASSIGN(prepared_, bench.ops().prepare_experts(experts_));
    }
    return {};
  }

  MoeParams Params(int64_t t, uint32_t salt, const uint32_t* keys) const {
    return {.t = t,
            .d = model_.d,
            .router = router_,
            .routing = {.experts = model_.experts,
                        .top_k = model_.top_k,
                        .even_keys = keys,
                        .even_salt = salt},
            .experts = experts_,
            .f = model_.f,
            .shared = shared_,
            .shared_f = model_.shared_f,
            .shared_gate = shared_gate_,
            .prepared = prepared_.get()};
  }

  // Of a launch with these keys.
  double Bytes(const std::vector<uint32_t>& keys, uint32_t salt) const {
    std::vector<char> hit(static_cast<size_t>(model_.experts), 0);
    for (const uint32_t key : keys) {
      const EvenChoice choice = ChooseEvenly(key, salt, model_.experts, model_.top_k);
      for (int32_t i = 0; i < model_.top_k; ++i) hit[choice.expert(i, model_.experts)] = 1;
    }
    const auto bytes_of = [](const ExpertWeights& e) {
      return e.gate_up->bytes() + e.down->bytes();
    };
    int64_t bytes = router_->bytes() + std::ranges::count(hit, 1) * bytes_of(experts_[0]);
    if (shared_.gate_up != nullptr) bytes += bytes_of(shared_);
    return static_cast<double>(bytes);
  }
  double Flops(int64_t t) const {
    const int64_t rows = model_.top_k * model_.f + model_.shared_f;
    return 6.0 * static_cast<double>(t * rows) * static_cast<double>(model_.d);
  }

 private:
  MoeModel model_;
  std::vector<std::unique_ptr<PackedWeight>> weights_;
  const PackedWeight* router_ = nullptr;
  const PackedWeight* shared_gate_ = nullptr;
  std::vector<ExpertWeights> experts_;
  ExpertWeights shared_;
  std::unique_ptr<PreparedWeights> prepared_;
};

Status BenchMoe(Bench& bench, const OpBenchOptions& options, const std::string& shape) {
  const MoeModel& model = *FindMoe(shape);
  MoeBlock block;
  NIBBLE_TRY(block.Make(bench, model, options.format));
  for (const int64_t t : options.tokens) {
    NIBBLE_TRY(bench.ReserveWorkspace(
        bench.ops().moe_workspace(bench.pool().threads(), {.t = t,
                                                           .d = model.d,
                                                           .f = std::max(model.f, model.shared_f),
                                                           .experts = model.experts,
                                                           .top_k = model.top_k})));
    std::vector<uint32_t> keys(static_cast<size_t>(t));
    for (int64_t i = 0; i < t; ++i) keys[i] = static_cast<uint32_t>(i * 2654435761u);
    NIBBLE_ASSIGN(const Buffer device_keys, bench.Place(keys));
    NIBBLE_ASSIGN(const Buffer x, bench.Activations(t * model.d));
    NIBBLE_ASSIGN(Buffer out, bench.Room(t * model.d * 2));
    const int64_t launches = t > 256 ? 2 : kChain;
    double bytes = 0;
    for (int64_t i = 0; i < launches; ++i)
      bytes += block.Bytes(keys, static_cast<uint32_t>(i)) / static_cast<double>(launches);
    const double seconds = bench.Time(launches, [&](int64_t i) {
      MoeParams params = block.Params(t, static_cast<uint32_t>(i), device_keys.as<uint32_t>());
      params.x = x.as<uint16_t>();
      params.out = out.as<uint16_t>();
      bench.ops().moe(bench.context(), params);
    });
    NIBBLE_TRY(bench.Report({.op = "moe",
                             .shape = shape,
                             .m = t,
                             .seconds = seconds,
                             .bytes = bytes,
                             .flops = block.Flops(t)}));
  }
  return {};
}

// ---- attention

// As a layer calls it in a decode step: rotation and cache write inside.
Status BenchAttentionOf(Bench& bench, const std::string& shape, int64_t sequences,
                        int64_t context) {
  constexpr int32_t kPage = 16;
  const std::vector<int64_t> sizes = ParseShape(shape, 3);
  const auto q_heads = static_cast<int32_t>(sizes[0]), kv_heads = static_cast<int32_t>(sizes[1]);
  const auto head_dim = static_cast<int32_t>(sizes[2]);
  const int64_t pages = (context + kPage - 1) / kPage;  // of a sequence
  const int64_t page_bytes = int64_t{kPage} * kv_heads * head_dim;
  const int64_t launch_bytes = 2 * sequences * pages * page_bytes;
  // Every launch reads other pages.
  const int64_t copies = std::clamp<int64_t>(kColdBytes / launch_bytes, 1, kChain);
  NIBBLE_ASSIGN(Buffer cache, bench.Room(launch_bytes * copies));
  std::vector<int32_t> table(static_cast<size_t>(copies * sequences * pages));
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
  std::vector<int32_t> q_start,
      kv_len(static_cast<size_t>(sequences), static_cast<int32_t>(context));
  for (int32_t b = 0; b <= sequences; ++b) q_start.push_back(b);
  // The newest token of each sequence, in the last of its pages; its angles are row 0.
  std::vector<int64_t> slots(static_cast<size_t>(copies * sequences));
  for (size_t i = 0; i < slots.size(); ++i)
    slots[i] = (static_cast<int64_t>(i + 1) * pages - 1) * kPage + (context - 1) % kPage;
  NIBBLE_ASSIGN(const Buffer tables, bench.Place(table));
  NIBBLE_ASSIGN(const Buffer starts, bench.Place(q_start));
  NIBBLE_ASSIGN(const Buffer lengths, bench.Place(kv_len));
  NIBBLE_ASSIGN(const Buffer newest, bench.Place(slots));
  NIBBLE_ASSIGN(const Buffer positions, bench.Place(std::vector<int32_t>(sequences, 0)));
  NIBBLE_ASSIGN(const Buffer angles, bench.Place(std::vector<float>(head_dim / 2, 0.6f)));
  const int64_t qkv_stride = int64_t{q_heads + 2 * kv_heads} * head_dim;
  NIBBLE_ASSIGN(const Buffer qkv, bench.Activations(sequences * qkv_stride));
  NIBBLE_ASSIGN(Buffer q, bench.Room(sequences * q_heads * head_dim * 2));
  NIBBLE_ASSIGN(Buffer out, bench.Room(sequences * q_heads * head_dim * 2));
  NIBBLE_TRY(bench.ReserveWorkspace(
      bench.ops().attention_workspace(bench.pool().threads(), sequences, q_heads, head_dim)));
  std::byte* const v = cache.data() + launch_bytes / 2 * copies;
  const KvLayerView layer = {.k = cache.data(),
                             .v = v,
                             .format = KvFormat::kFp8,
                             .page_size = kPage,
                             .kv_heads = kv_heads,
                             .head_dim = head_dim};
  const double seconds = bench.Time(kChain, [&](int64_t i) {
    const int64_t copy = i % copies;
    const RopeAndCacheParams rope = {.qkv = qkv.as<uint16_t>(),
                                     .qkv_stride = qkv_stride,
                                     .t = sequences,
                                     .q_heads = q_heads,
                                     .cos = angles.as<float>(),
                                     .sin = angles.as<float>(),
                                     .rotary_dim = head_dim / 2 * 2,
                                     .positions = positions.as<int32_t>(),
                                     .slots = newest.as<int64_t>() + copy * sequences,
                                     .cache = layer,
                                     .q_out = q.as<uint16_t>()};
    bench.ops().attention(bench.context(),
                          {.rope = &rope,
                           .q = q.as<uint16_t>(),
                           .out = out.as<uint16_t>(),
                           .t = sequences,
                           .sequences = sequences,
                           .q_start = starts.as<int32_t>(),
                           .kv_len = lengths.as<int32_t>(),
                           .page_table = tables.as<int32_t>() + copy * sequences * pages,
                           .max_pages = pages,
                           .q_heads = q_heads,
                           .scale = 0.09f,
                           .cache = layer});
  });
  return bench.Report({.op = "attention",
                       .shape = shape,
                       .m = sequences,
                       .context = context,
                       .seconds = seconds,
                       .bytes = static_cast<double>(launch_bytes),
                       .flops = 4.0 * static_cast<double>(sequences * context * q_heads) *
                                static_cast<double>(head_dim)});
}

Status BenchAttention(Bench& bench, const OpBenchOptions& options, const std::string& shape) {
  for (const int64_t context : options.contexts)
    for (const int64_t m : options.tokens)
      if (m <= 64 && m * context <= int64_t{1} << 21)
        NIBBLE_TRY(BenchAttentionOf(bench, shape, m, context));
  return {};
}

struct BenchedOp {
  std::string_view name;
  std::vector<std::string> usual;  // shapes
  bool (*knows)(std::string_view shape);
  Status (*run)(Bench&, const OpBenchOptions&, const std::string& shape);
};

const std::vector<BenchedOp>& BenchedOps() {
  static const std::vector<BenchedOp> ops = {
      {"linear",
       {"2048x4096", "14336x4096", "8192x8192", "151936x2048"},
       [](std::string_view shape) { return !ParseShape(shape, 2).empty(); },
       BenchLinearShape},
      {"gate_up",
       {"28672x4096", "57344x8192"},
       [](std::string_view shape) {
         const std::vector<int64_t> sizes = ParseShape(shape, 2);
         return !sizes.empty() && sizes[0] % 2 == 0;
       },
       BenchGateUpShape},
      {"linear_fp8",
       {"4096x4096", "14336x4096"},
       [](std::string_view shape) { return !ParseShape(shape, 2).empty(); },
       BenchLinearFp8Shape},
      {"moe",
       {"30b", "next"},
       [](std::string_view shape) { return FindMoe(shape) != nullptr; },
       BenchMoe},
      {"attention",
       {"32x4x128", "16x2x256"},
       [](std::string_view shape) { return !ParseShape(shape, 3).empty(); },
       BenchAttention}};
  return ops;
}

}  // namespace

Status BenchOps(const OpTable& ops, const OpBenchOptions& options,
                const std::function<void(const OpMeasurement&)>& on_measurement) {
  Bench bench(ops, on_measurement);
  std::vector<const BenchedOp*> chosen;
  for (const std::string& name : options.ops) {
    const auto found = std::ranges::find(BenchedOps(), name, &BenchedOp::name);
    if (found == BenchedOps().end())
      return Fail(Code::kInvalidArgument,
                  "--op {}: expected linear, gate_up, linear_fp8, moe or attention", name);
    chosen.push_back(&*found);
  }
  for (const std::string& shape : options.shapes)
    if (std::ranges::none_of(chosen, [&](const BenchedOp* op) { return op->knows(shape); }))
      return Fail(
          Code::kInvalidArgument,
          "--shape {}: expected NxK of linear, gate_up (N even) and linear_fp8, 30b or next "
          "of moe, HqxHkxDh of attention",
          shape);
  for (const BenchedOp* op : chosen)
    for (const std::string& shape : options.shapes.empty() ? op->usual : options.shapes)
      if (op->knows(shape)) NIBBLE_TRY(op->run(bench, options, shape));
  return {};
}

std::string FormatMeasurement(const OpMeasurement& m, double ceiling) {
  const std::string context = m.context > 0 ? fmt::format(" behind {}", m.context) : "";
  const std::string read =
      m.read_seconds > 0 ? fmt::format(", read alone {:8.1f} us", 1e6 * m.read_seconds) : "";
  const std::string bf16 =
      m.bf16_seconds > 0
          ? fmt::format(" ({:.0f} % of cuBLASLt's BF16, {:.1f})", 100 * m.bf16_seconds / m.seconds,
                        m.flops / m.bf16_seconds / 1e12)
          : "";
  return fmt::format(
      "{:10} {:12} M={:<5}{:14} {:9.1f} us{}  {:7.0f} GB/s ({:3.0f} % of read) {:7.1f} TFLOP/s{}",
      m.op, m.shape, m.m, context, 1e6 * m.seconds, read, m.bytes / m.seconds / 1e9,
      100 * m.bytes / m.seconds / ceiling, m.flops / m.seconds / 1e12, bf16);
}

}  // namespace nibble::kernels

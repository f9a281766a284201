// An expert has the bits of the linears that it is made of; and how long a block takes.
#include <cuda_runtime_api.h>
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/moe/moe.h"
#include "kernels/cuda/testing/synced_ops.h"
#include "kernels/linear_fixture.h"
#include "kernels/parity_fixture.h"

namespace nibble::kernels::cuda {
namespace {

struct OneExpert {
  WeightFormat format;
  BlockScales scales;
  int64_t d = 320;  // a short last slice
  int64_t f = 96;
  bool transformed = false;
};

TEST(CudaMoe, AnExpertHasTheBitsOfItsLinears) {
  const OpTable* ops = SyncedOps();
  if (ops == nullptr) GTEST_SKIP() << "no GPU";
  const std::vector<OneExpert> cases = {
      {WeightFormat::kNvfp4, {}, 2048, 768},
      {WeightFormat::kNvfp4, {}},
      {WeightFormat::kNvfp4, {}, 320, 96, true},
      {WeightFormat::kMxfp4, {}},
      {WeightFormat::kBf16, {}},
      {WeightFormat::kF16, {}},
      {WeightFormat::kF32, {}},
      {WeightFormat::kFp8, {}},
      {WeightFormat::kFp8, {.block_n = 128, .block_k = 128}},
      {WeightFormat::kFp8, {.dtype = DType::kF8E8M0, .block_n = 1, .block_k = 32}},
      {WeightFormat::kInt4, {.block_k = 32, .zeros = true}},
      {WeightFormat::kInt4, {.block_k = 128}, 320, 96, true},
      {WeightFormat::kInt8, {.block_k = 64, .zeros = true}},
  };
  ThreadPool pool(1);
  for (const OneExpert& c : cases) {
    SCOPED_TRACE(fmt::format("{} D {} F {} groups of {}", WeightFormatName(c.format), c.d, c.f,
                             c.scales.block_k));
    Stored stored_in = MakeWeight(c.format, 2 * c.f, c.d, 1, 1, c.scales);
    Stored stored_out = MakeWeight(c.format, c.d, c.f, 2, 1, c.scales);
    if (c.transformed) {
      TransformInputs(stored_in, c.format == WeightFormat::kInt4, true, 3);
      TransformInputs(stored_out, c.format == WeightFormat::kInt4, true, 4);
    }
    const Stored stored_router = MakeWeight(WeightFormat::kBf16, 1, c.d, 5);
    Runner runner(*ops);
    const auto gate_up = runner.Pack({&stored_in.view, 1}, ActivationFormat::kBf16);
    const auto down = runner.Pack({&stored_out.view, 1}, ActivationFormat::kBf16);
    const auto router = runner.Pack({&stored_router.view, 1}, ActivationFormat::kBf16);
    const std::vector<float> gate_up_bias = NoiseF32(6, 2 * c.f), down_bias = NoiseF32(7, c.d);
    const std::vector<ExpertWeights> experts = {{.gate_up = gate_up.get(),
                                                 .down = down.get(),
                                                 .gate_up_bias = gate_up_bias.data(),
                                                 .down_bias = down_bias.data()}};
    const auto prepared = std::move(*ops->prepare_experts(experts));
    for (const int64_t t : {1, 3, 8, 13, 40, 130}) {
      const std::vector<uint16_t> x = NoiseBf16(8, t * c.d);
      const std::vector<uint16_t> hidden = runner.LinearBf16(*gate_up, x, gate_up_bias);
      std::vector<uint16_t> activated(t * c.f);
      ops->activation({}, {.gate_up = hidden.data(), .out = activated.data(), .t = t, .f = c.f});
      const std::vector<float> expected = runner.Linear(*down, activated, down_bias);
      std::vector<float> y(t * c.d);
      const DirtyContext context(
          1, ops->moe_workspace(1, {.t = t, .d = c.d, .f = c.f, .experts = 1, .top_k = 1}));
      ops->moe(context, {.x = x.data(),
                         .t = t,
                         .d = c.d,
                         .router = router.get(),
                         .routing = {.experts = 1, .top_k = 1},
                         .experts = experts,
                         .f = c.f,
                         .prepared = prepared.get(),
                         .out_f32 = y.data()});
      EXPECT_EQ(y, expected) << t << " tokens";
    }
  }
}

// Many rows per expert go through grouped products, few through the stream of weights; up to 8
// tokens and one token have kernels of their own.
TEST(CudaMoe, ManyTokensHaveTheBitsOfFew) {
  const OpTable* ops = SyncedOps();
  if (ops == nullptr) GTEST_SKIP() << "no GPU";
  struct Case {
    WeightFormat format;
    int64_t d, f, shared_f, t;
    int32_t experts, top_k;
    ActivationKind activation = ActivationKind::kSilu;
    bool biases = false;
    BlockScales scales = {};
    Routing routing = {};
    bool biased_choice = false;
    bool evenly = false;
  };
  const std::vector<Case> cases = {
      {WeightFormat::kNvfp4, 512, 192, 0, 700, 8, 2},
      {WeightFormat::kNvfp4, 1024, 160, 96, 400, 6, 3},
      {WeightFormat::kMxfp4, 576, 288, 0, 300, 4, 2, ActivationKind::kClampedSilu, true},
      {WeightFormat::kNvfp4, 512, 192, 0, 256, 8, 2},
      {WeightFormat::kMxfp4, 576, 288, 0, 240, 8, 2, ActivationKind::kClampedSilu, true},
      {WeightFormat::kBf16, 320, 100, 260, 130, 3, 2},
      {WeightFormat::kNvfp4, 256, 128, 0, 200, 2, 1, ActivationKind::kSquaredRelu},
      {.format = WeightFormat::kInt4,
       .d = 512,
       .f = 192,
       .shared_f = 0,
       .t = 700,
       .experts = 8,
       .top_k = 2,
       .scales = {DType::kF16, 1, 128, true}},
      {.format = WeightFormat::kInt8,
       .d = 320,
       .f = 192,
       .shared_f = 128,
       .t = 130,
       .experts = 3,
       .top_k = 2,
       .scales = {DType::kF16, 1, 64}},
      {.format = WeightFormat::kFp8,
       .d = 1024,
       .f = 160,
       .shared_f = 96,
       .t = 400,
       .experts = 6,
       .top_k = 3,
       .scales = {DType::kBF16, 128, 128}},
      {WeightFormat::kNvfp4, 256, 768, 0, 24, 12, 8},
      {WeightFormat::kNvfp4, 2304, 16, 32, 24, 20, 8},
      {.format = WeightFormat::kMxfp4,
       .d = 64,
       .f = 32,
       .shared_f = 32,
       .t = 64,
       .experts = 512,
       .top_k = 10,
       .routing = {.renormalize = false, .scale = 2.5f}},
      {.format = WeightFormat::kNvfp4,
       .d = 320,
       .f = 80,
       .shared_f = 0,
       .t = 64,
       .experts = 40,
       .top_k = 32,
       .routing = {.score = RouterScore::kSigmoid}},
      {.format = WeightFormat::kNvfp4,
       .d = 128,
       .f = 32,
       .shared_f = 32,
       .t = 64,
       .experts = 160,
       .top_k = 8,
       .routing = {.score = RouterScore::kSigmoid},
       .biased_choice = true},
      {.format = WeightFormat::kNvfp4,
       .d = 128,
       .f = 32,
       .shared_f = 0,
       .t = 64,
       .experts = 130,
       .top_k = 6,
       .evenly = true},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(fmt::format("{} D {} F {} and {} T {}", WeightFormatName(c.format), c.d, c.f,
                             c.shared_f, c.t));
    Runner runner(*ops);
    const Activation activation = {.kind = c.activation};
    const std::vector<float> bias = NoiseF32(6, std::max(2 * c.f, c.d));
    std::vector<std::unique_ptr<PackedWeight>> weights;
    uint32_t seed = 1;
    const auto pack = [&](WeightFormat format, int64_t n, int64_t k) {
      const Stored stored = MakeWeight(format, n, k, ++seed, 0.01f, c.scales);
      weights.push_back(runner.Pack({&stored.view, 1}, ActivationFormat::kBf16));
      return weights.back().get();
    };
    std::vector<ExpertWeights> experts;
    for (int32_t e = 0; e < c.experts; ++e)
      experts.push_back({.gate_up = pack(c.format, activation.inputs(c.f), c.d),
                         .down = pack(c.format, c.d, c.f),
                         .gate_up_bias = c.biases ? bias.data() : nullptr,
                         .down_bias = c.biases ? bias.data() : nullptr});
    const PackedWeight* router = pack(WeightFormat::kBf16, c.experts, c.d);
    ExpertWeights shared;
    if (c.shared_f > 0) {
      shared = {.gate_up = pack(c.format, activation.inputs(c.shared_f), c.d),
                .down = pack(c.format, c.d, c.shared_f)};
    }
    const PackedWeight* shared_gate = c.shared_f > 0 ? pack(WeightFormat::kBf16, 1, c.d) : nullptr;
    const auto prepared = std::move(*ops->prepare_experts(experts));
    const std::vector<uint16_t> x = NoiseBf16(8, c.t * c.d);
    const std::vector<float> choice_bias = NoiseF32(9, c.experts);
    Routing routing = c.routing;
    routing.experts = c.experts, routing.top_k = c.top_k;
    if (c.biased_choice) routing.choice_bias = choice_bias.data();
    std::vector<uint32_t> even_keys(c.t);
    std::iota(even_keys.begin(), even_keys.end(), 77u);
    const auto run = [&](int64_t at_once, int64_t t) {
      std::vector<uint16_t> out(t * c.d);
      const DirtyContext context(1, ops->moe_workspace(1, {.t = at_once,
                                                           .d = c.d,
                                                           .f = std::max(c.f, c.shared_f),
                                                           .experts = c.experts,
                                                           .top_k = c.top_k}));
      for (int64_t first = 0; first < t; first += at_once) {
        if (c.evenly) routing.even_keys = even_keys.data() + first;
        ops->moe(context, {.x = x.data() + first * c.d,
                           .t = std::min(at_once, t - first),
                           .d = c.d,
                           .router = router,
                           .routing = routing,
                           .experts = experts,
                           .f = c.f,
                           .activation = activation,
                           .shared = shared,
                           .shared_f = c.shared_f,
                           .shared_gate = shared_gate,
                           .prepared = prepared.get(),
                           .out = out.data() + first * c.d});
      }
      return out;
    };
    std::vector<uint16_t> many = run(c.t, c.t);
    EXPECT_TRUE(many == run(20, c.t));
    EXPECT_NE(many, std::vector<uint16_t>(many.size()));
    many.resize(20 * c.d);
    for (const int64_t at_once : {8, 3, 1}) EXPECT_TRUE(many == run(at_once, 20)) << at_once;
  }
}

// ---- Time of a block, with cold weights, in a chain of dependent launches

struct BenchShape {
  std::string name;
  int64_t d, f, shared_f;
  int32_t experts, top_k;
  WeightFormat format = WeightFormat::kNvfp4;
  Activation activation;
  bool biases = false;
  int layers = 1;  // with weights of their own
};

// Layers on the device, all of whose experts hold the same numbers in places of their own.
class BenchBlock {
 public:
  BenchBlock(const OpTable& ops, const BenchShape& shape) : ops_(ops), s_(shape) {
    const Stored gate_up = MakeWeight(s_.format, s_.activation.inputs(s_.f), s_.d, 1, 3e-4f);
    const Stored down = MakeWeight(s_.format, s_.d, s_.f, 2, 3e-4f);
    const Stored router = MakeWeight(WeightFormat::kBf16, s_.experts, s_.d, 3);
    const Stored gate = MakeWeight(WeightFormat::kBf16, 1, s_.d, 4);
    const std::vector<float> bias = NoiseF32(5, std::max(2 * s_.f, s_.d));
    bias_ = Upload(bias.data(), bias.size() * 4);
    layers_.resize(s_.layers);
    for (Layer& layer : layers_) {
      for (int32_t e = 0; e < s_.experts; ++e) {
        layer.experts.push_back({.gate_up = Pack(gate_up),
                                 .down = Pack(down),
                                 .gate_up_bias = s_.biases ? bias_.as<float>() : nullptr,
                                 .down_bias = s_.biases ? bias_.as<float>() : nullptr});
      }
      if (s_.shared_f > 0) {
        layer.shared = {.gate_up = Pack(gate_up), .down = Pack(down)};
        layer.shared_gate = Pack(gate);
      }
      layer.router = Pack(router);
      layer.prepared = std::move(*ops_.prepare_experts(layer.experts));
    }
  }

  // Calls of t tokens each, with inputs of their own.
  void SetTokens(int64_t t, int calls) {
    const size_t bytes = ops_.moe_workspace(1, {.t = t,
                                                .d = s_.d,
                                                .f = std::max(s_.f, s_.shared_f),
                                                .experts = s_.experts,
                                                .top_k = s_.top_k});
    calls_.clear();
    for (int i = 0; i < calls; ++i) {
      const std::vector<uint16_t> x = NoiseBf16(100 + i, t * s_.d);
      Call call;
      call.x = Upload(x.data(), x.size() * 2);
      call.out = std::move(*Buffer::Allocate(x.size() * 2, *ops_.device));
      call.workspace = std::move(*Buffer::Allocate(bytes, *ops_.device));
      call.params = ParamsOf(layers_[i % layers_.size()], t, call);
      calls_.push_back(std::move(call));
    }
  }

  void Run(const MoePhases& phases) {
    for (Call& call : calls_) RunMoePhases(ContextOf(call), call.params, phases);
  }

  // Bytes of weights that a call reads on average, and experts that it hits.
  std::pair<double, double> Cost() {
    struct Hits : MoeListener {
      void OnExpertInput(int32_t expert, bool, const uint16_t*, int64_t, int64_t) override {
        ids.insert(expert);
      }
      std::set<int32_t> ids;
    };
    double bytes = 0, experts = 0;
    for (Call& call : calls_) {
      Hits hits;
      MoeParams params = call.params;
      params.listener = &hits;
      Moe(ContextOf(call), params);
      const ExpertWeights& expert = params.experts[0];
      bytes +=
          static_cast<double>(hits.ids.size() * (expert.gate_up->bytes() + expert.down->bytes())) +
          static_cast<double>(params.router->bytes());
      experts += static_cast<double>(hits.ids.size());
    }
    return {bytes / static_cast<double>(calls_.size()),
            experts / static_cast<double>(calls_.size())};
  }

  // Microseconds per call.
  double Time(const MoePhases& phases) {
    const auto stream = static_cast<cudaStream_t>(ops_.device->stream());
    const auto graph = ops_.device->Record([&] { Run(phases); });
    cudaEvent_t begin, end;
    cudaEventCreate(&begin), cudaEventCreate(&end);
    graph->Launch();
    cudaEventRecord(begin, stream);
    constexpr int kRepeats = 6;
    for (int i = 0; i < kRepeats; ++i) graph->Launch();
    cudaEventRecord(end, stream);
    cudaEventSynchronize(end);
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    cudaEventDestroy(begin), cudaEventDestroy(end);
    return 1e3 * ms / kRepeats / static_cast<double>(calls_.size());
  }

 private:
  struct Layer {
    std::vector<ExpertWeights> experts;
    ExpertWeights shared;
    const PackedWeight* router = nullptr;
    const PackedWeight* shared_gate = nullptr;
    std::unique_ptr<PreparedWeights> prepared;
  };
  struct Call {
    Buffer x, out, workspace;
    MoeParams params;
  };

  MoeParams ParamsOf(const Layer& layer, int64_t t, Call& call) const {
    return {.x = call.x.as<uint16_t>(),
            .norm = {.weight = bias_.as<float>()},
            .t = t,
            .d = s_.d,
            .router = layer.router,
            .routing = {.experts = s_.experts, .top_k = s_.top_k},
            .experts = layer.experts,
            .f = s_.f,
            .activation = s_.activation,
            .shared = layer.shared,
            .shared_f = s_.shared_f,
            .shared_gate = layer.shared_gate,
            .prepared = layer.prepared.get(),
            .out = call.out.as<uint16_t>(),
            .add = true};
  }

  OpContext ContextOf(Call& call) const {
    return {.stream = ops_.device->stream(),
            .workspace = call.workspace.data(),
            .workspace_bytes = call.workspace.size()};
  }

  const PackedWeight* Pack(const Stored& stored) {
    packed_.push_back(std::move(*ops_.pack_weight({.parts = {&stored.view, 1}})));
    return packed_.back().get();
  }

  Buffer Upload(const void* from, size_t bytes) {
    Buffer buffer = std::move(*Buffer::Allocate(bytes, *ops_.device));
    ops_.device->Upload(buffer.data(), from, bytes);
    return buffer;
  }

  const OpTable& ops_;
  const BenchShape s_;
  std::vector<std::unique_ptr<PackedWeight>> packed_;
  Buffer bias_;
  std::vector<Layer> layers_;
  std::vector<Call> calls_;
};

// NIBBLE_BENCH: "30B 1,8" limits it to shapes whose name has the first word, and to these counts.
std::vector<int64_t> TokensOf(const std::string& name) {
  const char* wanted = std::getenv("NIBBLE_BENCH");
  if (wanted == nullptr) return {1, 2, 4, 8, 16, 64, 512};
  std::istringstream text(wanted);
  std::string word, count;
  text >> word;
  std::vector<int64_t> tokens;
  while (name.find(word) != std::string::npos && std::getline(text, count, ','))
    tokens.push_back(std::stoll(count));
  return tokens;
}

TEST(CudaMoe, DISABLED_Bench) {
  const auto ops = CudaOps();
  if (!ops) GTEST_SKIP() << "no GPU";
  const double ceiling = (*ops)->read_bandwidth();
  fmt::print("{}: reads {:.0f} GB/s\n", (*ops)->device->name(), ceiling * 1e-9);
  const std::vector<BenchShape> shapes = {
      {.name = "Qwen3-30B-A3B", .d = 2048, .f = 768, .experts = 128, .top_k = 8, .layers = 3},
      {.name = "Qwen3-Next", .d = 2048, .f = 512, .shared_f = 512, .experts = 512, .top_k = 10},
      {.name = "gpt-oss-120b",
       .d = 2880,
       .f = 2880,
       .experts = 128,
       .top_k = 4,
       .format = WeightFormat::kMxfp4,
       .activation = {.kind = ActivationKind::kClampedSilu},
       .biases = true},
  };
  for (const BenchShape& shape : shapes) {
    const std::vector<int64_t> tokens = TokensOf(shape.name);
    if (tokens.empty()) continue;
    BenchBlock block(**ops, shape);
    for (const int64_t t : tokens) {
      block.SetTokens(t, t <= 2 ? 24 : 6);
      const auto [bytes, experts] = block.Cost();
      const double all = block.Time({});
      const double router = block.Time({true, false, false, false});
      const double route = block.Time({false, true, false, false});
      const double gate_up = block.Time({false, false, true, false});
      const double down = block.Time({false, false, false, true});
      fmt::print(
          "{:14} T {:3}: {:5.1f} experts {:6.1f} MB (reading {:6.1f} us): {:7.2f} us {:5.0f} GB/s "
          "{:3.0f} %; alone: router {:5.2f} route {:5.2f} gate_up {:6.2f} down {:6.2f}\n",
          shape.name, t, experts, bytes * 1e-6, bytes / ceiling * 1e6, all, bytes / all * 1e-3,
          bytes / all * 1e8 / ceiling, router, route, gate_up, down);
      ASSERT_EQ((*ops)->device->failure(), "");
    }
  }
}

TEST(CudaMoe, DISABLED_BenchPrompts) {
  const auto ops = CudaOps();
  if (!ops) GTEST_SKIP() << "no GPU";
  const std::vector<BenchShape> shapes = {
      {.name = "Qwen3-30B-A3B", .d = 2048, .f = 768, .experts = 128, .top_k = 8},
      {.name = "Qwen3-Next", .d = 2048, .f = 512, .shared_f = 512, .experts = 512, .top_k = 10},
  };
  for (const BenchShape& shape : shapes) {
    BenchBlock block(**ops, shape);
    for (const int64_t t : {256, 512, 1024, 2048, 4096}) {
      block.SetTokens(t, 2);
      const double flops = 6.0 * t * shape.d * (shape.f * shape.top_k + shape.shared_f);
      const double all = block.Time({});
      fmt::print(
          "{:14} T {:4}: {:8.1f} us {:4.0f} TFLOP/s; alone: router {:.1f} route {:.1f} "
          "gate_up {:.1f} down {:.1f}\n",
          shape.name, t, all, flops / all * 1e-6, block.Time({true, false, false, false}),
          block.Time({false, true, false, false}), block.Time({false, false, true, false}),
          block.Time({false, false, false, true}));
      ASSERT_EQ((*ops)->device->failure(), "");
    }
  }
}

}  // namespace
}  // namespace nibble::kernels::cuda

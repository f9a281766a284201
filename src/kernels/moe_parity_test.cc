// The mixture of experts: every CPU variant against ref, the rules of routing, and that a token's
// bits do not depend on batch or threads.
#include <map>
#include <memory>

#include "kernels/linear_fixture.h"
#include "kernels/parity_fixture.h"

namespace nibble::kernels {
namespace {

class MoeParity : public testing::TestWithParam<const OpTable*> {
 protected:
  const OpTable& ops() const { return *GetParam(); }
};

INSTANTIATE_TEST_SUITE_P(Cpu, MoeParity, testing::ValuesIn(TestedTables()),
                         [](const auto& info) { return std::string(info.param->variant); });

// The table that packs weights for `ops`: vector ops have no layout of their own.
const OpTable& PackerOf(const OpTable& ops) { return ops.pack_weight != nullptr ? ops : CpuOps(); }

struct MoeShape {
  int64_t t = 7;
  int64_t d = 80;
  int64_t f = 48;
  int64_t shared_f = 0;
  int64_t router_d = 0;  // 0: the router sees x
  Routing routing = {.experts = 9, .top_k = 3};
  Activation activation;
  WeightFormat format = WeightFormat::kNvfp4;
  ActivationFormat activations = ActivationFormat::kBf16;
  bool choice_bias = false;
  bool router_bias = false;
  bool biases = false;
  bool split = false;  // gate and up of different formats
  bool shared_gate = false;
  bool weight_on_input = false;
  bool even = false;             // Routing.even_keys
  bool w4a4 = false;             // weights have input scales
  std::vector<int32_t> missing;  // experts held elsewhere
};

// The block's weights, stored and packed for one backend.
class MoeWeights {
 public:
  MoeWeights(const OpTable& packer, const MoeShape& shape) : packer_(packer), shape_(shape) {
    const int64_t experts = shape.routing.experts;
    const int64_t router_k = shape.router_d > 0 ? shape.router_d : shape.d;
    router_ = Pack(WeightFormat::kF32, experts, router_k, 1, 3.0f);
    router_bias_ = NoiseF32(2, experts, 0.5f);
    choice_bias_ = NoiseF32(3, experts, 0.2f);
    for (int64_t e = 0; e < experts; ++e) {
      const bool held = std::ranges::find(shape.missing, e) == shape.missing.end();
      experts_.push_back(held ? Expert(shape.f, 10 + e) : ExpertWeights{});
    }
    if (shape.shared_f > 0) shared_ = Expert(shape.shared_f, 100);
    if (shape.shared_gate) shared_gate_ = Pack(WeightFormat::kBf16, 1, shape.d, 4, 1.0f);
    if (packer.prepare_experts != nullptr) {
      auto prepared = packer.prepare_experts(experts_);
      EXPECT_TRUE(prepared) << prepared.error().message();
      prepared_ = std::move(*prepared);
    }
  }

  MoeParams Params() const {
    MoeParams p = {.d = shape_.d,
                   .router = router_,
                   .router_bias = shape_.router_bias ? router_bias_.data() : nullptr,
                   .routing = shape_.routing,
                   .experts = experts_,
                   .f = shape_.f,
                   .activation = shape_.activation,
                   .weight_on_input = shape_.weight_on_input,
                   .shared = shared_,
                   .shared_f = shape_.shared_f,
                   .shared_gate = shared_gate_,
                   .prepared = prepared_.get()};
    p.routing.choice_bias = shape_.choice_bias ? choice_bias_.data() : nullptr;
    return p;
  }

 private:
  const PackedWeight* Pack(WeightFormat format, int64_t n, int64_t k, uint32_t seed, float spread) {
    Stored stored = MakeWeight(format, n, k, seed, format == WeightFormat::kNvfp4 ? 3e-4f : 1.0f);
    if (format == WeightFormat::kF32 || format == WeightFormat::kBf16) {
      stored.data.clear();
      for (int64_t i = 0; i < n * k; ++i) {
        const float value = spread * Noise(seed, i) / std::sqrt(static_cast<float>(k));
        AppendFloat(stored.data, format == WeightFormat::kF32 ? DType::kF32 : DType::kBF16, value);
      }
      stored.view.data = stored.data.data();
    }
    if (shape_.w4a4) stored.view.input_scale = 0.001f * static_cast<float>(1 + seed % 3);
    auto packed = packer_.pack_weight(
        {.parts = {&stored.view, 1}, .activations = shape_.activations, .pool = &pool_});
    EXPECT_TRUE(packed) << packed.error().message();
    packed_.push_back(std::move(*packed));
    return packed_.back().get();
  }

  ExpertWeights Expert(int64_t f, uint32_t seed) {
    const bool split = shape_.split && shape_.activation.gated();
    const int64_t rows = split ? f : shape_.activation.inputs(f);
    ExpertWeights expert;
    expert.gate_up = Pack(shape_.format, rows, shape_.d, seed, 1.0f);
    if (split) expert.up = Pack(WeightFormat::kBf16, f, shape_.d, seed + 1000, 1.0f);
    expert.down = Pack(shape_.format, shape_.d, f, seed + 2000, 1.0f);
    if (shape_.biases) {
      expert.gate_up_bias = Bias(seed + 3000, shape_.activation.inputs(f));
      expert.down_bias = Bias(seed + 4000, shape_.d);
    }
    return expert;
  }

  const float* Bias(uint32_t seed, int64_t n) {
    biases_.push_back(std::make_unique<std::vector<float>>(NoiseF32(seed, n)));
    return biases_.back()->data();
  }

  const OpTable& packer_;
  const MoeShape shape_;
  ThreadPool pool_{1};
  std::vector<std::unique_ptr<PackedWeight>> packed_;
  std::vector<std::unique_ptr<std::vector<float>>> biases_;
  const PackedWeight* router_ = nullptr;
  const PackedWeight* shared_gate_ = nullptr;
  std::vector<float> router_bias_;
  std::vector<float> choice_bias_;
  std::vector<ExpertWeights> experts_;
  ExpertWeights shared_;
  std::unique_ptr<PreparedWeights> prepared_;
};

// Tokens [first, first + t) of an endless stream.
std::vector<float> RunMoe(const OpTable& ops, const MoeWeights& weights, const MoeShape& shape,
                          int64_t first, int64_t t, int threads = 1,
                          MoeListener* listener = nullptr) {
  const std::vector<uint16_t> stream = NoiseBf16(5, 1024 * shape.d, 2.0f);
  const DirtyContext context(threads,
                             ops.moe_workspace(threads, {.t = t,
                                                         .d = shape.d,
                                                         .f = std::max(shape.f, shape.shared_f),
                                                         .router_d = shape.router_d,
                                                         .experts = shape.routing.experts,
                                                         .top_k = shape.routing.top_k,
                                                         .w4a4 = shape.w4a4}));
  MoeParams params = weights.Params();
  params.w4a4 = shape.w4a4;
  params.x = stream.data() + first * shape.d;
  const std::vector<uint16_t> router_stream = NoiseBf16(6, 1024 * shape.router_d, 2.0f);
  if (shape.router_d > 0) params.router_x = router_stream.data() + first * shape.router_d;
  params.t = t;
  std::vector<uint32_t> keys;
  for (uint32_t i = 0; i < 1024; ++i) keys.push_back(i * 2654435761u);
  if (shape.even) {
    params.routing.even_keys = keys.data() + first;
    params.routing.even_salt = 17;
  }
  std::vector<float> sums(t * shape.d);
  params.out_f32 = sums.data();
  ops.moe(context, params);
  std::vector<uint16_t> rounded(t * shape.d), expected;
  params.out_f32 = nullptr;
  params.out = rounded.data();
  params.listener = listener;
  ops.moe(context, params);
  for (const float sum : sums) expected.push_back(Bf16FromFloat(sum));
  EXPECT_EQ(rounded, expected);
  return sums;
}

std::vector<std::pair<std::string, MoeShape>> Shapes() {
  const Routing grouped = {.experts = 12,
                           .top_k = 4,
                           .score = RouterScore::kSigmoid,
                           .groups = 4,
                           .top_groups = 2,
                           .scale = 2.5f};
  Routing by_maximum = grouped;
  by_maximum.group_score = GroupScore::kMax;
  const Routing single = {
      .experts = 5, .top_k = 1, .score = RouterScore::kSigmoid, .renormalize = false};
  return {
      {"softmax over all, renormalised", {}},
      {"softmax over all, as it is", {.routing = {.experts = 9, .top_k = 2, .renormalize = false}}},
      {"all experts", {.routing = {.experts = 4, .top_k = 4}}},
      {"groups by their two best", {.routing = grouped, .choice_bias = true}},
      {"groups by their best", {.routing = by_maximum}},
      {"int8 activations", {.activations = ActivationFormat::kInt8}},
      {"shared expert", {.shared_f = 112}},
      {"gated shared expert", {.shared_f = 32, .shared_gate = true}},
      {"gpt-oss",
       {.d = 96,
        .f = 64,
        .activation = {.kind = ActivationKind::kClampedSilu},
        .format = WeightFormat::kMxfp4,
        .router_bias = true,
        .biases = true}},
      {"without gates",
       {.shared_f = 64, .activation = {.kind = ActivationKind::kSquaredRelu}, .biases = true}},
      {"gate and up apart",
       {.f = 32, .activation = {.kind = ActivationKind::kGeluTanh}, .biases = true, .split = true}},
      {"weight on the input",
       {.shared_f = 48, .routing = single, .format = WeightFormat::kBf16, .weight_on_input = true}},
      {"experts held elsewhere", {.missing = {0, 3, 4, 8}}},
      {"no expert held", {.missing = {0, 1, 2, 3, 4, 5, 6, 7, 8}}},
      {"awkward sizes", {.d = 33, .f = 35, .format = WeightFormat::kBf16}},
      {"experts in a latent space", {.d = 48, .router_d = 160}},
      {"chosen evenly",
       {.shared_f = 32, .routing = {.experts = 9, .top_k = 3, .scale = 1.5f}, .even = true}},
      {"many tokens, chosen evenly",
       {.t = 250, .d = 48, .f = 16, .routing = {.experts = 20, .top_k = 4}, .even = true}},
      {"many tokens per expert",
       {.t = 250, .d = 48, .f = 16, .shared_f = 16, .routing = {.experts = 3, .top_k = 2}}},
  };
}

// The shape as `ops` computes it: only CPUs have int8 activations.
MoeShape ShapeFor(const OpTable& ops, MoeShape shape) {
  if (ops.backend == "cuda") shape.activations = ActivationFormat::kBf16;
  return shape;
}

TEST_P(MoeParity, MatchesReference) {
  for (const auto& [name, any_shape] : Shapes()) {
    SCOPED_TRACE(name);
    const MoeShape shape = ShapeFor(ops(), any_shape);
    const MoeWeights reference(RefOps(), shape), weights(PackerOf(ops()), shape);
    ExpectNear(RunMoe(ops(), weights, shape, 0, shape.t, 2),
               RunMoe(RefOps(), reference, shape, 0, shape.t), shape.d, kMoeTolerance);
  }
}

std::vector<std::pair<std::string, MoeShape>> W4a4Shapes() {
  const Routing single = {
      .experts = 5, .top_k = 1, .score = RouterScore::kSigmoid, .renormalize = false};
  std::vector<std::pair<std::string, MoeShape>> shapes = {
      {"few tokens", {}},
      {"shared expert", {.t = 30, .shared_f = 112, .shared_gate = true}},
      {"weight on the input", {.routing = single, .weight_on_input = true}},
      {"biases", {.t = 20, .activation = {.kind = ActivationKind::kClampedSilu}, .biases = true}},
      {"without gates",
       {.t = 20, .shared_f = 64, .activation = {.kind = ActivationKind::kSquaredRelu}}},
      {"several groups of rows per expert",
       {.t = 250, .d = 272, .f = 144, .routing = {.experts = 3, .top_k = 2}}},
      {"several chains of launches",
       {.t = 700, .d = 64, .f = 16, .shared_f = 16, .routing = {.experts = 6, .top_k = 2}}},
      {"in a latent space", {.t = 20, .d = 48, .router_d = 160}},
  };
  for (auto& [_, shape] : shapes) shape.w4a4 = true;
  return shapes;
}

TEST_P(MoeParity, W4a4MatchesReferenceAndBatchesDoNotMatter) {
  if (ops().backend != "cuda") GTEST_SKIP() << "CPUs do not multiply FP4";
  for (const auto& [name, shape] : W4a4Shapes()) {
    SCOPED_TRACE(name);
    const MoeWeights reference(RefOps(), shape), weights(ops(), shape);
    const std::vector<float> whole = RunMoe(ops(), weights, shape, 0, shape.t);
    ExpectNear(whole, RunMoe(RefOps(), reference, shape, 0, shape.t), shape.d, kMoeW4a4Tolerance);
    for (const int64_t token : {int64_t{0}, shape.t / 2, shape.t - 1}) {
      const std::vector<float> alone = RunMoe(ops(), weights, shape, token, 1);
      EXPECT_TRUE(std::equal(alone.begin(), alone.end(), whole.begin() + token * shape.d))
          << "token " << token;
    }
  }
}

TEST_P(MoeParity, BatchAndThreadsDoNotMatter) {
  for (const auto& [name, shape] : Shapes()) {
    SCOPED_TRACE(name);
    const MoeWeights weights(PackerOf(ops()), shape);
    const int64_t t = shape.t;
    const std::vector<float> whole = RunMoe(ops(), weights, shape, 0, t);
    EXPECT_EQ(RunMoe(ops(), weights, shape, 0, t, 3), whole);
    for (const int64_t token : {int64_t{0}, t / 2, t - 1}) {
      const std::vector<float> alone = RunMoe(ops(), weights, shape, token, 1, 2);
      EXPECT_TRUE(std::equal(alone.begin(), alone.end(), whole.begin() + token * shape.d))
          << "token " << token;
    }
  }
}

// Widths of published models, with fewer experts.
std::vector<std::pair<std::string, MoeShape>> TrueShapes() {
  return {
      {"Qwen3-30B-A3B", {.t = 1, .d = 2048, .f = 768, .routing = {.experts = 10, .top_k = 8}}},
      {"Qwen3-Next",
       {.t = 1,
        .d = 2048,
        .f = 512,
        .shared_f = 512,
        .routing = {.experts = 16, .top_k = 10},
        .shared_gate = true}},
      {"gpt-oss",
       {.t = 1,
        .d = 2880,
        .f = 2880,
        .routing = {.experts = 4, .top_k = 2},
        .activation = {.kind = ActivationKind::kClampedSilu},
        .format = WeightFormat::kMxfp4,
        .router_bias = true,
        .biases = true}},
  };
}

TEST_P(MoeParity, TrueShapesMatchReference) {
  if (ops().backend != "cuda") GTEST_SKIP() << "too slow here";
  for (auto [name, shape] : TrueShapes()) {
    // ref would take a minute for all of F.
    shape.f = 160;
    shape.shared_f = shape.shared_f > 0 ? 224 : 0;
    SCOPED_TRACE(name);
    const MoeWeights reference(RefOps(), shape), weights(PackerOf(ops()), shape);
    ExpectNear(RunMoe(ops(), weights, shape, 0, shape.t),
               RunMoe(RefOps(), reference, shape, 0, shape.t), shape.d, kMoeTolerance);
  }
}

TEST_P(MoeParity, TrueShapesDoNotDependOnTheBatch) {
  if (ops().backend != "cuda") GTEST_SKIP() << "too slow here";
  for (const auto& [name, shape] : TrueShapes()) {
    SCOPED_TRACE(name);
    const MoeWeights weights(PackerOf(ops()), shape);
    constexpr int64_t kAlone = 4;
    std::vector<float> alone;
    for (int64_t token = 0; token < kAlone; ++token) {
      const std::vector<float> y = RunMoe(ops(), weights, shape, token, 1);
      alone.insert(alone.end(), y.begin(), y.end());
    }
    for (const int64_t t : {2, 3, 5, 8, 9, 16, 17, 31, 64, 65, 100, 600}) {
      const std::vector<float> batch = RunMoe(ops(), weights, shape, 0, t);
      const int64_t values = std::min(t, kAlone) * shape.d;
      EXPECT_TRUE(std::equal(batch.begin(), batch.begin() + values, alone.begin())) << t;
    }
  }
}

// Experts whose output is their number tell which were taken: down is zero but for its bias.
TEST_P(MoeParity, AmongEqualsTheSmallerIdWins) {
  for (const int32_t groups : {1, 2}) {
    const int64_t d = 16, f = 16;
    const int32_t experts = 6;
    ThreadPool pool(1);
    const std::vector<float> zeros(experts * d * f);
    const auto pack = [&](int64_t n) {
      const QuantView view = {.format = WeightFormat::kF32,
                              .n = n,
                              .k = d,
                              .data = reinterpret_cast<const std::byte*>(zeros.data())};
      return std::move(*PackerOf(ops()).pack_weight({.parts = {&view, 1}, .pool = &pool}));
    };
    const auto router = pack(experts), gate_up = pack(2 * f), down = pack(d);
    std::vector<std::vector<float>> biases;
    for (int32_t e = 0; e < experts; ++e) biases.emplace_back(d, static_cast<float>(1 << (2 * e)));
    std::vector<ExpertWeights> table;
    for (int32_t e = 0; e < experts; ++e)
      table.push_back(
          {.gate_up = gate_up.get(), .down = down.get(), .down_bias = biases[e].data()});
    std::unique_ptr<PreparedWeights> prepared;
    if (ops().prepare_experts != nullptr) prepared = std::move(*ops().prepare_experts(table));
    const std::vector<uint16_t> x = NoiseBf16(1, d);
    std::vector<float> out(d);
    // Equal scores, but for expert 5 where there are groups: of theirs it is the second.
    const std::vector<float> bias = {0, 0, 0, 0, 0, groups == 1 ? 0.0f : 1.0f};
    const DirtyContext context(
        2, ops().moe_workspace(2, {.t = 1, .d = d, .f = f, .experts = experts, .top_k = 2}));
    ops().moe(context, {.x = x.data(),
                        .t = 1,
                        .d = d,
                        .router = router.get(),
                        .routing = {.experts = experts,
                                    .top_k = 2,
                                    .choice_bias = bias.data(),
                                    .groups = groups,
                                    .top_groups = 1},
                        .experts = table,
                        .f = f,
                        .prepared = prepared.get(),
                        .out_f32 = out.data()});
    EXPECT_EQ(out[0], groups == 1 ? 0.5f * (1 + 4) : 0.5f * (64 + 1024));
  }
}

// Rows and sums of what each linear saw.
class Recorder : public MoeListener {
 public:
  struct Heard {
    int64_t rows = 0;
    int64_t k = 0;
    double sum = 0;
  };
  void OnExpertInput(int32_t expert, bool down, const uint16_t* x, int64_t m, int64_t k) override {
    Heard& entry = heard[{expert, down}];
    entry.rows += m;
    entry.k = k;
    for (int64_t i = 0; i < m * k; ++i) entry.sum += std::abs(Bf16ToFloat(x[i]));
  }
  std::map<std::pair<int32_t, bool>, Heard> heard;
};

TEST_P(MoeParity, AListenerHearsWhatTheReferenceHears) {
  for (const auto& [name, any_shape] : Shapes()) {
    SCOPED_TRACE(name);
    const MoeShape shape = ShapeFor(ops(), any_shape);
    const MoeWeights reference(RefOps(), shape), weights(PackerOf(ops()), shape);
    Recorder expected, actual;
    RunMoe(RefOps(), reference, shape, 0, shape.t, 1, &expected);
    RunMoe(ops(), weights, shape, 0, shape.t, 2, &actual);
    EXPECT_EQ(actual.heard.size(), expected.heard.size());
    for (const auto& [linear, entry] : expected.heard) {
      SCOPED_TRACE(fmt::format("expert {}, down {}", linear.first, linear.second));
      const Recorder::Heard& found = actual.heard[linear];
      EXPECT_EQ(found.rows, entry.rows);
      EXPECT_EQ(found.k, entry.k);
      EXPECT_NEAR(found.sum, entry.sum, 0.02 * entry.sum);
    }
  }
}

}  // namespace
}  // namespace nibble::kernels

// The even choice of experts, as every table runs it: each token goes through the experts that
// ChooseEvenly names, and through no other, on the paths for few tokens and for many.
#include <set>

#include "kernels/even_routing.h"
#include "kernels/linear_fixture.h"
#include "kernels/parity_fixture.h"

namespace nibble::kernels {
namespace {

class EvenRoutingParity : public testing::TestWithParam<const OpTable*> {
 protected:
  const OpTable& ops() const { return *GetParam(); }
};

INSTANTIATE_TEST_SUITE_P(Tables, EvenRoutingParity, testing::ValuesIn(TestedTables()),
                         [](const auto& info) { return std::string(info.param->variant); });

constexpr int64_t kWidth = 512;  // D: at least as many as experts
constexpr int64_t kInner = 64;   // F

// Experts of which each writes one element of the output: expert e the e-th.
class TellingExperts {
 public:
  TellingExperts(const OpTable& ops, int32_t experts)
      : packer_(ops.pack_weight != nullptr ? ops : CpuOps()) {
    const Stored any_router = MakeWeight(WeightFormat::kBf16, experts, kWidth, 1);
    const Stored gate_up = MakeWeight(WeightFormat::kNvfp4, 2 * kInner, kWidth, 2, 1e-3f);
    router = Pack(any_router);
    const PackedWeight* const shared_gate_up = Pack(gate_up);
    Stored down = MakeWeight(WeightFormat::kNvfp4, kWidth, kInner, 3, 1e-3f);
    const int64_t row_scales = kInner / 16;
    for (int32_t e = 0; e < experts; ++e) {
      std::ranges::fill(down.scales, std::byte{0});
      std::fill_n(down.scales.begin() + e * row_scales, row_scales, std::byte{0x38});  // 1
      table.push_back({.gate_up = shared_gate_up, .down = Pack(down)});
    }
    if (packer_.prepare_experts != nullptr) prepared = std::move(*packer_.prepare_experts(table));
  }

  const PackedWeight* router = nullptr;
  std::vector<ExpertWeights> table;
  std::unique_ptr<PreparedWeights> prepared;

 private:
  const PackedWeight* Pack(const Stored& stored) {
    packed_.push_back(
        std::move(*packer_.pack_weight({.parts = {&stored.view, 1}, .pool = &pool_})));
    return packed_.back().get();
  }

  const OpTable& packer_;
  ThreadPool pool_{1};
  std::vector<std::unique_ptr<PackedWeight>> packed_;
};

// Of published models.
struct Case {
  int32_t experts;
  int32_t top_k;
  int32_t groups = 1;
  int32_t top_groups = 1;
};

TEST_P(EvenRoutingParity, TokensGoThroughTheNamedExpertsAlone) {
  for (const Case& c :
       {Case{128, 8}, {512, 10}, {128, 4}, {64, 6}, {160, 8}, {256, 8, 8, 4}, {16, 1}, {8, 2}}) {
    SCOPED_TRACE(fmt::format("{} of {}", c.top_k, c.experts));
    const TellingExperts experts(ops(), c.experts);
    for (const int64_t t : {1, 8, 64, 300}) {
      SCOPED_TRACE(fmt::format("{} tokens", t));
      // Every token the same: the router itself would choose the same experts for all.
      std::vector<uint16_t> x;
      for (int64_t i = 0; i < t; ++i)
        for (const uint16_t value : NoiseBf16(5, kWidth, 2.0f)) x.push_back(value);
      std::vector<uint32_t> keys;
      for (int64_t i = 0; i < t; ++i) keys.push_back(static_cast<uint32_t>(i) * 2654435761u + 99);
      const uint32_t salt = 4711;
      std::vector<float> out(t * kWidth);
      const DirtyContext context(
          2, ops().moe_workspace(
                 2, {.t = t, .d = kWidth, .f = kInner, .experts = c.experts, .top_k = c.top_k}));
      ops().moe(context, {.x = x.data(),
                          .t = t,
                          .d = kWidth,
                          .router = experts.router,
                          .routing = {.experts = c.experts,
                                      .top_k = c.top_k,
                                      .groups = c.groups,
                                      .top_groups = c.top_groups,
                                      .even_keys = keys.data(),
                                      .even_salt = salt},
                          .experts = experts.table,
                          .f = kInner,
                          .prepared = experts.prepared.get(),
                          .out_f32 = out.data()});
      for (int64_t i = 0; i < t; ++i) {
        std::set<int32_t> own, named;
        for (int32_t e = 0; e < c.experts; ++e)
          if (out[i * kWidth + e] != 0) own.insert(e);
        const EvenChoice even = ChooseEvenly(keys[i], salt, c.experts, c.top_k);
        for (int32_t j = 0; j < c.top_k; ++j) named.insert(even.expert(j, c.experts));
        ASSERT_EQ(own, named) << "token " << i;
      }
    }
  }
}

}  // namespace
}  // namespace nibble::kernels

// ref and every CPU variant against tests/golden/kernels/ops.txt, which
// tools/make_kernel_goldens.py works out in NumPy.
#include <fstream>
#include <sstream>

#include "base/check.h"
#include "kernels/parity_fixture.h"
#include "testing/golden.h"

namespace nibble::kernels {
namespace {

class Goldens {
 public:
  Goldens() {
    std::ifstream file(GoldenPath("kernels/ops.txt"));
    for (std::string line; std::getline(file, line);) {
      std::istringstream words(line);
      std::string name, kind, word;
      words >> name >> kind;
      std::vector<uint32_t>& values = arrays_[name];
      while (words >> word)
        values.push_back(
            static_cast<uint32_t>(std::strtoul(word.c_str(), nullptr, kind == "i32" ? 10 : 16)));
    }
  }
  std::vector<uint16_t> Bf16(const std::string& name) const {
    const std::vector<uint32_t>& bits = At(name);
    return {bits.begin(), bits.end()};
  }
  std::vector<int32_t> I32(const std::string& name) const {
    const std::vector<uint32_t>& bits = At(name);
    return {bits.begin(), bits.end()};
  }
  std::vector<float> F32(const std::string& name) const {
    std::vector<float> values;
    for (uint32_t bits : At(name)) values.push_back(std::bit_cast<float>(bits));
    return values;
  }
  bool Has(const std::string& name) const { return arrays_.contains(name); }

 private:
  const std::vector<uint32_t>& At(const std::string& name) const {
    const auto found = arrays_.find(name);
    NIBBLE_CHECK(found != arrays_.end(), "no golden {}", name);
    return found->second;
  }
  std::map<std::string, std::vector<uint32_t>> arrays_;
};

const Goldens& TheGoldens() {
  static const Goldens goldens;
  return goldens;
}

std::vector<const OpTable*> AllBackends() {
  std::vector<const OpTable*> tables = TestedTables();
  tables.push_back(&RefOps());
  return tables;
}

class Golden : public testing::TestWithParam<const OpTable*> {
 protected:
  const OpTable& ops() const { return *GetParam(); }
  const Goldens& golden_ = TheGoldens();
};

INSTANTIATE_TEST_SUITE_P(All, Golden, testing::ValuesIn(AllBackends()),
                         [](const auto& info) { return std::string(info.param->variant); });

TEST_P(Golden, RmsNorm) {
  for (int style = 0; style < 3; ++style) {
    const std::string name = "rms_norm" + std::to_string(style);
    std::vector<uint16_t> x = golden_.Bf16(name + "/x");
    const std::vector<uint16_t> delta = golden_.Bf16(name + "/delta");
    const std::vector<float> weight = golden_.F32(name + "/weight");
    std::vector<uint16_t> out(x.size());
    ops().rms_norm({}, {.x = x.data(),
                        .delta = delta.data(),
                        .weight = weight.data(),
                        .out = out.data(),
                        .t = 3,
                        .d = 40,
                        .eps = 1e-5f,
                        .style = static_cast<NormStyle>(style)});
    EXPECT_EQ(x, golden_.Bf16(name + "/sum"));
    ExpectNear(out, golden_.Bf16(name + "/out"), 40, kRmsNormTolerance);
  }
}

TEST_P(Golden, Silu) {
  const std::vector<uint16_t> gate_up = golden_.Bf16("swiglu/gate_up");
  std::vector<uint16_t> out(2 * 37);
  ops().activation({}, {.gate_up = gate_up.data(), .out = out.data(), .t = 2, .f = 37});
  ExpectNear(out, golden_.Bf16("swiglu/out"), 37, kActivationTolerance);
}

TEST_P(Golden, RopeAndCache) {
  const int32_t q_heads = 4, kv_heads = 2, dh = 24, page_size = 16;
  const std::vector<uint16_t> qkv = golden_.Bf16("rope/qkv");
  const std::vector<float> q_norm = golden_.F32("rope/q_norm"), k_norm = golden_.F32("rope/k_norm");
  const std::vector<float> cos = golden_.F32("rope/cos"), sin = golden_.F32("rope/sin");
  const std::vector<int32_t> positions = golden_.I32("rope/positions");
  const std::vector<int64_t> slots = {3, 4, 17};
  std::vector<uint16_t> k(2 * kv_heads * page_size * dh), v = k, q(3 * q_heads * dh);
  ops().rope_and_cache({}, {.qkv = qkv.data(),
                            .t = 3,
                            .q_heads = q_heads,
                            .q_norm = q_norm.data(),
                            .k_norm = k_norm.data(),
                            .cos = cos.data(),
                            .sin = sin.data(),
                            .rotary_dim = 16,
                            .positions = positions.data(),
                            .slots = slots.data(),
                            .cache = {.k = reinterpret_cast<std::byte*>(k.data()),
                                      .v = reinterpret_cast<std::byte*>(v.data()),
                                      .page_size = page_size,
                                      .kv_heads = kv_heads,
                                      .head_dim = dh},
                            .q_out = q.data()});
  const auto gather = [&](const std::vector<uint16_t>& cache) {
    std::vector<uint16_t> rows;  // (T, Hk, Dh)
    for (int64_t slot : slots)
      for (int64_t h = 0; h < kv_heads; ++h) {
        const int64_t at = ((slot / page_size * kv_heads + h) * page_size + slot % page_size) * dh;
        rows.insert(rows.end(), cache.begin() + at, cache.begin() + at + dh);
      }
    return rows;
  };
  ExpectNear(q, golden_.Bf16("rope/q"), dh, kRopeNormTolerance);
  ExpectNear(gather(k), golden_.Bf16("rope/k"), dh, kRopeNormTolerance);
  EXPECT_EQ(gather(v), golden_.Bf16("rope/v"));
}

TEST_P(Golden, Attention) {
  const int32_t q_heads = 6, kv_heads = 2, dh = 20, page_size = 16, length = 40;
  const std::vector<int32_t> pages = {2, 0, 1};
  for (const auto& [name, window] :
       {std::pair{"attention", 0}, {"attention_window", 9}, {"attention_sinks", 9}}) {
    SCOPED_TRACE(name);
    const std::string prefix = std::string(name) + "/";
    const std::vector<uint16_t> q = golden_.Bf16(prefix + "q");
    std::vector<float> sinks;
    if (golden_.Has(prefix + "sinks")) sinks = golden_.F32(prefix + "sinks");
    const auto paged = [&](const std::vector<uint16_t>& rows) {  // from (positions, Hk, Dh)
      std::vector<uint16_t> cache(pages.size() * kv_heads * page_size * dh, 0xFFFF);
      for (int64_t position = 0; position < length; ++position)
        for (int64_t h = 0; h < kv_heads; ++h) {
          const int64_t page = pages[position / page_size];
          const int64_t row = (page * kv_heads + h) * page_size + position % page_size;
          std::copy_n(&rows[(position * kv_heads + h) * dh], dh, &cache[row * dh]);
        }
      return cache;
    };
    std::vector<uint16_t> k = paged(golden_.Bf16(prefix + "k"));
    std::vector<uint16_t> v = paged(golden_.Bf16(prefix + "v"));
    std::vector<uint16_t> out(q.size());
    const std::vector<int32_t> q_start = {0, 3}, kv_len = {length};
    const DirtyContext context(1, ops().attention_workspace(1, 3, q_heads, dh));
    ops().attention(context, {.q = q.data(),
                              .out = out.data(),
                              .t = 3,
                              .sequences = 1,
                              .q_start = q_start.data(),
                              .kv_len = kv_len.data(),
                              .page_table = pages.data(),
                              .max_pages = 3,
                              .q_heads = q_heads,
                              .scale = 1.0f / std::sqrt(20.0f),
                              .window = window,
                              .sinks = sinks.empty() ? nullptr : sinks.data(),
                              .cache = {.k = reinterpret_cast<std::byte*>(k.data()),
                                        .v = reinterpret_cast<std::byte*>(v.data()),
                                        .page_size = page_size,
                                        .kv_heads = kv_heads,
                                        .head_dim = dh}});
    ExpectNear(out, golden_.Bf16(prefix + "out"), dh, AttentionTolerance(ops()));
  }
}

// An even grid of draws hits each token as often as its probability says, and no other token.
TEST_P(Golden, SampleDrawsTheDistributionOfNumPy) {
  constexpr int kDraws = 20000;
  int cases = 0;
  for (; golden_.Has("sample" + std::to_string(cases) + "/logits"); ++cases) {
    const std::string prefix = "sample" + std::to_string(cases) + "/";
    SCOPED_TRACE(prefix);
    const std::vector<float> settings = golden_.F32(prefix + "settings");
    const std::vector<float> logits = golden_.F32(prefix + "logits");
    const std::vector<float> probability = golden_.F32(prefix + "probability");
    std::vector<SampleRow> rows(kDraws);
    for (int i = 0; i < kDraws; ++i)
      rows[i] = {.temperature = settings[0],
                 .top_k = static_cast<int32_t>(settings[1]),
                 .top_p = settings[2],
                 .min_p = settings[3],
                 .uniform = (i + 0.5) / kDraws};
    std::vector<SampledToken> out(kDraws);
    const auto vocab = static_cast<int64_t>(logits.size());
    ops().sample(DirtyContext(1, ops().sample_workspace(1, kDraws, vocab)),
                 {.logits = logits.data(),
                  .logits_stride = 0,
                  .vocab = vocab,
                  .rows = rows,
                  .out = out.data()});
    std::vector<int> hits(logits.size());
    for (const SampledToken& token : out) ++hits[token.token];
    for (size_t token = 0; token < hits.size(); ++token) {
      EXPECT_NEAR(hits[token], probability[token] * kDraws, 1.01) << "token " << token;
      EXPECT_TRUE(probability[token] > 0 || hits[token] == 0) << "token " << token;
    }
  }
  EXPECT_GE(cases, 10);
}

}  // namespace
}  // namespace nibble::kernels

// Sampling of every CPU variant against ref: the same token, log-probability, rank and list over
// random settings, ties, extreme logits and real vocabulary sizes; independence of the other rows.
#include <numeric>

#include "kernels/logits_hash.h"
#include "kernels/parity_fixture.h"

namespace nibble::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct SampleResult {
  std::vector<SampledToken> out;
  std::vector<int32_t> top_tokens;
  std::vector<float> top_logprobs;
};

SampleResult RunSample(const OpTable& ops, const std::vector<float>& logits, int64_t vocab,
                       const std::vector<SampleRow>& rows, int64_t max_top = 0, int threads = 1,
                       int32_t* drawn = nullptr, const int32_t* drawn_slots = nullptr) {
  SampleResult result = {std::vector<SampledToken>(rows.size()),
                         std::vector<int32_t>(rows.size() * max_top),
                         std::vector<float>(rows.size() * max_top)};
  ops.sample(DirtyContext(threads, ops.sample_workspace(threads, rows.size(), vocab)),
             {.logits = logits.data(),
              .logits_stride = vocab,
              .vocab = vocab,
              .rows = rows,
              .drawn = drawn,
              .out = result.out.data(),
              .top_tokens = max_top > 0 ? result.top_tokens.data() : nullptr,
              .top_logprobs = max_top > 0 ? result.top_logprobs.data() : nullptr,
              .max_top_logprobs = max_top,
              .drawn_slots = drawn_slots});
  return result;
}

// What the rows of got want is as expected.
void ExpectSame(const std::vector<SampleRow>& rows, const SampleResult& got,
                const SampleResult& expected) {
  const auto near = [](float a, float b) { return a == b || std::abs(a - b) < kLogprobTolerance; };
  for (size_t i = 0; i < got.out.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "row " << i);
    ASSERT_EQ(got.out[i].token, expected.out[i].token);
    ASSERT_EQ(got.out[i].broken, expected.out[i].broken);
    if (rows[i].wants_hash) ASSERT_EQ(got.out[i].logits_hash, expected.out[i].logits_hash);
    if (rows[i].top_logprobs < 0) continue;
    ASSERT_EQ(got.out[i].rank, expected.out[i].rank);
    ASSERT_TRUE(near(got.out[i].logprob, expected.out[i].logprob))
        << got.out[i].logprob << " instead of " << expected.out[i].logprob;
  }
  ASSERT_EQ(got.top_tokens, expected.top_tokens);
  for (size_t i = 0; i < got.top_logprobs.size(); ++i)
    ASSERT_TRUE(near(got.top_logprobs[i], expected.top_logprobs[i]));
}

// The row with all that it can ask for.
SampleRow WantingAll(SampleRow row) {
  row.top_logprobs = std::max(row.top_logprobs, 0);
  row.wants_hash = true;
  return row;
}

// Settings that a request may carry, drawn from a seed; owns what the row points at.
struct RandomRow {
  std::vector<TokenCount> counts;
  std::vector<TokenBias> bias;
  std::vector<int32_t> banned;
  std::vector<uint32_t> mask;
  SampleRow row;

  RandomRow(uint64_t seed, int64_t vocab) {
    uint64_t next = 0;
    const auto chance = [&](float probability) {
      return Noise(seed, next++) * 0.5f + 0.5f < probability;
    };
    const auto below = [&](int64_t n) {
      return static_cast<int32_t>((Noise(seed, next++) * 0.5 + 0.5) * static_cast<double>(n));
    };
    row.temperature = chance(0.2f) ? 0.0f : 0.3f + static_cast<float>(below(15)) * 0.1f;
    if (chance(0.4f))
      row.top_k = 1 + below(chance(0.5f) ? vocab + 3 : std::min<int64_t>(vocab, 40));
    if (chance(0.5f)) row.top_p = 0.05f + static_cast<float>(below(95)) * 0.01f;
    if (chance(0.3f)) row.min_p = static_cast<float>(below(50)) * 0.01f;
    if (chance(0.3f)) {
      row.repetition_penalty = 0.8f + static_cast<float>(below(10)) * 0.1f;
      row.presence_penalty = static_cast<float>(below(40)) * 0.1f - 2.0f;
      row.frequency_penalty = static_cast<float>(below(40)) * 0.1f - 2.0f;
      for (int64_t token = below(3); token < vocab; token += 1 + below(vocab / 8 + 2))
        counts.push_back({static_cast<int32_t>(token), below(3), chance(0.5f)});
    }
    if (chance(0.2f))
      for (int i = 0; i < 4; ++i)
        bias.push_back({below(vocab), static_cast<float>(below(200)) - 100.0f});
    if (chance(0.3f))
      for (int i = 0; i < 5; ++i) banned.push_back(below(vocab));
    if (chance(0.2f))
      for (int64_t i = 0; i < (vocab + 31) / 32; ++i)
        mask.push_back(static_cast<uint32_t>(below(int64_t{1} << 32)));
    row.counts = counts;
    row.bias = bias;
    row.banned = banned;
    if (!mask.empty()) row.allowed_mask = mask.data();
    row.uniform = Noise(seed, next++) * 0.5 + 0.5;
    row.top_logprobs = below(7) - 1;
    row.wants_hash = chance(0.5f);
  }
};

class SampleParity : public testing::TestWithParam<const OpTable*> {
 protected:
  const OpTable& ops() const { return *GetParam(); }
};

INSTANTIATE_TEST_SUITE_P(Cpu, SampleParity, testing::ValuesIn(TestedTables()),
                         [](const auto& info) { return std::string(info.param->variant); });

TEST_P(SampleParity, RandomSettings) {
  for (int64_t vocab : {1, 2, 5, 16, 31, 33, 100, 1023, 1025, 5000}) {
    SCOPED_TRACE(testing::Message() << "V " << vocab);
    std::vector<std::unique_ptr<RandomRow>> owners;
    std::vector<SampleRow> rows;
    for (uint64_t i = 0; i < 60; ++i) {
      owners.push_back(std::make_unique<RandomRow>(vocab * 1000 + i, vocab));
      rows.push_back(owners.back()->row);
    }
    // Steep, flat, and coarse with many ties, in turn.
    std::vector<float> logits = NoiseF32(vocab, 60 * vocab, 20.0f);
    for (int64_t i = 0; i < 60; ++i)
      for (int64_t token = 0; token < vocab; ++token) {
        float& logit = logits[i * vocab + token];
        if (i % 3 == 1) logit *= 0.05f;
        if (i % 3 == 2) logit = std::round(logit * 0.3f);
      }
    const SampleResult got = RunSample(ops(), logits, vocab, rows, 6, 3);
    ExpectSame(rows, got, RunSample(RefOps(), logits, vocab, rows, 6));
  }
}

TEST_P(SampleParity, RowsDoNotSeeEachOther) {
  const int64_t vocab = 3000;
  const std::vector<float> logits = NoiseF32(5, 8 * vocab, 8.0f);
  std::vector<std::unique_ptr<RandomRow>> owners;
  std::vector<SampleRow> rows;
  for (uint64_t i = 0; i < 8; ++i) {
    owners.push_back(std::make_unique<RandomRow>(i, vocab));
    rows.push_back(WantingAll(owners.back()->row));
  }
  const SampleResult together = RunSample(ops(), logits, vocab, rows, 0, 4);
  for (int64_t i = 0; i < 8; ++i) {
    const std::vector<float> own(&logits[i * vocab], &logits[i * vocab] + vocab);
    const SampleResult alone = RunSample(ops(), own, vocab, {rows[i]});
    EXPECT_EQ(alone.out[0].token, together.out[i].token);
    EXPECT_EQ(alone.out[0].logprob, together.out[i].logprob);
    EXPECT_EQ(alone.out[0].rank, together.out[i].rank);
    EXPECT_EQ(alone.out[0].logits_hash, together.out[i].logits_hash);
  }
}

// Tokens stay on the device, in the slots of their rows, and count there before the host has
// counted them: as if it had.
TEST_P(SampleParity, DrawnTokensCountBeforeTheHostHasSeenThem) {
  const int64_t vocab = 9000;
  constexpr int64_t kRows = 150;
  const std::vector<float> logits = NoiseF32(15, kRows * vocab, 6.0f);
  std::vector<int32_t> drawn(2 * kRows, -7);
  std::vector<std::vector<TokenCount>> counts(kRows), told(kRows);
  std::vector<SampleRow> rows(kRows), plain(kRows);
  for (int64_t i = 0; i < kRows; ++i) {
    const auto slot = static_cast<int32_t>(2 * (kRows - 1 - i));
    // The best raw token is the one that occurred last: penalties move it.
    const float* row = &logits[i * vocab];
    const auto last = static_cast<int32_t>(std::max_element(row, row + vocab) - row);
    drawn[slot] = last;
    for (int32_t token = 3; token < vocab; token += 501)
      if (token != last) counts[i].push_back({token, token % 3, true});
    told[i] = counts[i];
    if (i % 2 == 0) counts[i].push_back({last, 2, false});
    told[i].push_back({last, i % 2 == 0 ? 3 : 1, false});
    rows[i] = {.temperature = i % 3 == 0 ? 0.0f : 1.0f,
               .repetition_penalty = 1.3f,
               .presence_penalty = 0.5f,
               .frequency_penalty = 1.1f,
               .uniform = static_cast<double>(i) / kRows};
    rows[i] = WantingAll(rows[i]);
    plain[i] = rows[i];
    rows[i].counts = counts[i];
    plain[i].counts = told[i];
    rows[i].drawn_slot = slot;
    rows[i].counts_drawn = true;
  }
  const SampleResult got = RunSample(ops(), logits, vocab, rows, 0, 3, drawn.data());
  ExpectSame(rows, got, RunSample(RefOps(), logits, vocab, plain));
  for (int64_t i = 0; i < kRows; ++i) {
    EXPECT_EQ(drawn[rows[i].drawn_slot], got.out[i].token);
    EXPECT_EQ(drawn[rows[i].drawn_slot + 1], -7);
    EXPECT_EQ(got.out[i].logits_hash, HashLogits({&logits[i * vocab], static_cast<size_t>(vocab)}));
  }
}

// A recording of plain rows meets later rows with other slots, which are on the device alone.
TEST_P(SampleParity, RecordedLaunchesFindTheSlotsOnTheDevice) {
  if (ops().device->host_memory()) GTEST_SKIP() << "nothing is recorded";
  const int64_t vocab = 9000;
  constexpr int64_t kRows = 70;
  const std::vector<float> logits = NoiseF32(16, kRows * vocab, 6.0f);
  std::vector<SampleRow> rows(kRows);
  std::vector<int32_t> drawn(2 * kRows, -7), slots(kRows), none(kRows, -1);
  for (int64_t i = 0; i < kRows; ++i) {
    rows[i] = WantingAll({.temperature = 0.0f, .drawn_slot = static_cast<int32_t>(2 * i)});
    slots[i] = static_cast<int32_t>(2 * (kRows - 1 - i) + 1);
  }
  const SampleResult got = RunSample(ops(), logits, vocab, rows, 0, 1, drawn.data(), slots.data());
  ExpectSame(
      rows, got,
      RunSample(RefOps(), logits, vocab, std::vector<SampleRow>(kRows, {.temperature = 0.0f})));
  for (int64_t i = 0; i < kRows; ++i) {
    EXPECT_EQ(drawn[slots[i]], got.out[i].token);
    EXPECT_EQ(drawn[slots[i] - 1], -7);
  }
  std::ranges::fill(drawn, -7);
  RunSample(ops(), logits, vocab, rows, 0, 1, drawn.data(), none.data());
  EXPECT_EQ(std::ranges::count(drawn, -7), std::ssize(drawn));
  // Rows of other kinds are not recorded: what they say themselves counts.
  rows[0].temperature = 1.0f;
  RunSample(ops(), logits, vocab, rows, 0, 1, drawn.data(), none.data());
  EXPECT_NE(drawn[0], -7);
}

// Padding at the end of the vocabulary is banned in every row, and may hold the best raw logits.
TEST_P(SampleParity, PaddedVocabulary) {
  const int64_t vocab = 9000, tokens = 8990;
  std::vector<int32_t> padding(vocab - tokens);
  std::iota(padding.begin(), padding.end(), static_cast<int32_t>(tokens));
  const std::vector<float> logits = NoiseF32(9, 70 * vocab, 30.0f);
  std::vector<SampleRow> greedy(70, WantingAll({.temperature = 0, .banned = padding}));
  ExpectSame(greedy, RunSample(ops(), logits, vocab, greedy),
             RunSample(RefOps(), logits, vocab, greedy));
  std::vector<SampleRow> rows = greedy;
  for (size_t i = 0; i < rows.size(); i += 3) {
    rows[i].temperature = 1.0f + static_cast<float>(i);
    rows[i].top_p = i % 2 == 0 ? 0.8f : 1.0f;
    rows[i].uniform = static_cast<double>(i) / 70;
    rows[i].top_logprobs = 3;
  }
  ExpectSame(rows, RunSample(ops(), logits, vocab, rows, 3),
             RunSample(RefOps(), logits, vocab, rows, 3));
}

// Whatever is listed for the exact cut: a few tokens, some thousands, all.
TEST_P(SampleParity, CutsAmongManyCloseTokens) {
  const int64_t vocab = 20000;
  for (float spread : {0.0f, 1e-4f, 0.02f, 0.3f, 3.0f}) {
    const std::vector<float> logits = NoiseF32(4, vocab, spread);
    for (const auto& [top_k, top_p] :
         {std::pair{0, 0.5f}, {7000, 0.3f}, {12000, 1.0f}, {100, 0.9f}, {15000, 0.999f}}) {
      SCOPED_TRACE(testing::Message()
                   << "spread " << spread << ", top_k " << top_k << ", top_p " << top_p);
      for (double uniform : {0.0, 0.31, 0.99999}) {
        const SampleRow row = WantingAll({.top_k = top_k, .top_p = top_p, .uniform = uniform});
        ExpectSame({row}, RunSample(ops(), logits, vocab, {row}),
                   RunSample(RefOps(), logits, vocab, {row}));
      }
    }
  }
}

TEST_P(SampleParity, LargeVocabulary) {
  const int64_t vocab = 151936;
  for (float spread : {0.0f, 0.5f, 12.0f}) {
    const std::vector<float> logits = NoiseF32(3, vocab, spread);
    for (const SampleRow& settings :
         {SampleRow{.temperature = 0, .top_logprobs = 20}, SampleRow{.uniform = 0.37},
          SampleRow{.uniform = 0.99999999}, SampleRow{.top_p = 0.9f, .uniform = 0.61},
          SampleRow{.top_p = 0.999f, .uniform = 0.123}, SampleRow{.top_k = 50, .uniform = 0.4},
          SampleRow{.top_k = 100000, .top_p = 0.5f, .uniform = 0.77},
          SampleRow{.min_p = 0.1f, .uniform = 0.2}}) {
      const SampleRow row = WantingAll(settings);
      SCOPED_TRACE(testing::Message() << "spread " << spread << ", top_k " << row.top_k
                                      << ", top_p " << row.top_p << ", uniform " << row.uniform);
      ExpectSame({row}, RunSample(ops(), logits, vocab, {row}, 20),
                 RunSample(RefOps(), logits, vocab, {row}, 20));
    }
  }
}

TEST_P(SampleParity, ExtremeLogits) {
  const std::vector<std::vector<float>> rows_of_logits = {
      {3e38f, -3e38f, 0, 3e38f, -kInfinity},
      {-3e38f, -3.4e38f, -kInfinity, -kInfinity, -3e38f},
      {-kInfinity, -kInfinity, -kInfinity, 2, -kInfinity},
      {1e-40f, 0, -1e-40f, -0.0f, 1e-40f},
  };
  const std::vector<int32_t> all = {0, 1, 2, 3, 4};
  const uint32_t none = 0, middle = 0b01100;
  const TokenBias bias[] = {{1, 3e38f}, {2, -kInfinity}};
  for (const std::vector<float>& logits : rows_of_logits)
    for (const SampleRow& settings :
         {SampleRow{.temperature = 0, .top_logprobs = 5}, SampleRow{.uniform = 0.7},
          SampleRow{.temperature = 1e-30f, .uniform = 0.3}, SampleRow{.top_p = 0.5f},
          SampleRow{.temperature = 1e30f, .top_p = 0.5f, .uniform = 0.9}, SampleRow{.top_k = 2},
          SampleRow{.banned = all}, SampleRow{.allowed_mask = &none},
          SampleRow{.banned = all, .allowed_mask = &middle}, SampleRow{.bias = bias},
          SampleRow{.top_p = 0.0f, .min_p = 1.0f, .uniform = 0.99}}) {
      const SampleRow row = WantingAll(settings);
      SCOPED_TRACE(testing::Message() << "first logit " << logits[0] << ", T " << row.temperature);
      const SampleResult got = RunSample(ops(), logits, 5, {row}, 5);
      ExpectSame({row}, got, RunSample(RefOps(), logits, 5, {row}, 5));
      EXPECT_FALSE(got.out[0].broken);
    }
}

// Wherever in a row something stands that is no logit, that row says so, whatever its settings are,
// and the others are what they are without it.
TEST_P(SampleParity, BrokenRowsSaySoAndHarmNoOthers) {
  const int64_t vocab = 9000;
  const std::vector<float> healthy = NoiseF32(21, 40 * vocab, 9.0f);
  std::vector<int32_t> padding(100);
  std::iota(padding.begin(), padding.end(), static_cast<int32_t>(vocab - 100));
  std::vector<uint32_t> mask((vocab + 31) / 32, 0x5555'5555u);
  std::vector<std::unique_ptr<RandomRow>> owners;
  std::vector<SampleRow> greedy, rows;
  std::vector<float> logits = healthy;
  std::vector<int32_t> drawn(40, -7);
  for (int64_t i = 0; i < 40; ++i) {
    greedy.push_back({.temperature = 0, .banned = padding});
    owners.push_back(std::make_unique<RandomRow>(700 + i, vocab));
    rows.push_back(owners.back()->row);
    if (i % 4 == 1) rows.back().allowed_mask = mask.data();
    rows.back().drawn_slot = static_cast<int32_t>(i);
    rows.back().counts_drawn = false;
    float* row = &logits[i * vocab];
    if (i % 2 == 0) continue;
    if (i % 10 == 1) row[(i * 997) % vocab] = NAN;
    if (i % 10 == 3) row[vocab - 1] = -NAN;  // padding
    if (i % 10 == 5) row[(i * 997) % vocab] = kInfinity;
    if (i % 10 == 7) std::fill_n(row, vocab, NAN);
    if (i % 10 == 9) std::fill_n(row, vocab, -kInfinity);
  }
  for (const std::vector<SampleRow>& settings : {greedy, rows}) {
    const SampleResult got = RunSample(ops(), logits, vocab, settings, 6, 3, drawn.data());
    ExpectSame(settings, got, RunSample(RefOps(), logits, vocab, settings, 6, 1, drawn.data()));
    const SampleResult want = RunSample(ops(), healthy, vocab, settings, 6, 3, drawn.data());
    for (int64_t i = 0; i < 40; ++i) {
      SCOPED_TRACE(testing::Message() << "row " << i);
      EXPECT_EQ(got.out[i].broken, i % 2 == 1);
      EXPECT_EQ(got.out[i].token, i % 2 == 1 ? 0 : want.out[i].token);
      EXPECT_EQ(got.out[i].logprob, i % 2 == 1 ? 0 : want.out[i].logprob);
      EXPECT_TRUE(i % 2 == 0 || got.top_tokens[i * 6] == -1);
    }
  }
  RunSample(ops(), logits, vocab, rows, 6, 3, drawn.data());
  for (int64_t i = 1; i < 40; i += 2) EXPECT_EQ(drawn[i], 0);
}

// Chi-square of 40,000 draws against the exact distribution, fixed seeds.
TEST_P(SampleParity, DrawsFollowTheDistribution) {
  const int64_t vocab = 50;
  constexpr int kDraws = 40000;
  const std::vector<float> logits = NoiseF32(77, vocab, 2.0f);
  std::vector<SampleRow> rows(kDraws);
  std::vector<float> repeated;
  for (int i = 0; i < kDraws; ++i) {
    rows[i].uniform = Noise(78, i) * 0.5 + 0.5;
    repeated.insert(repeated.end(), logits.begin(), logits.end());
  }
  const SampleResult result = RunSample(ops(), repeated, vocab, rows);
  std::vector<double> expected;
  for (float logit : logits) expected.push_back(std::exp(double{logit}));
  const double total = std::accumulate(expected.begin(), expected.end(), 0.0);
  std::vector<int> hits(vocab);
  for (const SampledToken& token : result.out) ++hits[token.token];
  double chi_square = 0;
  for (int64_t i = 0; i < vocab; ++i) {
    const double mean = expected[i] / total * kDraws;
    chi_square += (hits[i] - mean) * (hits[i] - mean) / mean;
  }
  EXPECT_LT(chi_square, 85.4);  // 49 degrees of freedom: exceeded once in a thousand
  EXPECT_GT(chi_square, 23.9);  // and below this as rarely
}

}  // namespace
}  // namespace nibble::kernels

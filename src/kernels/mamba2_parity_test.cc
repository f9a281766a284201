// Mamba-2 of every CPU variant against ref, within tolerance.h; that a token's bits and the states
// do not depend on batch, chunk or threads; and ref against the definition as a sum over the past.
#include "kernels/parity_fixture.h"

namespace nibble::kernels {
namespace {

class Mamba2Parity : public testing::TestWithParam<const OpTable*> {
 protected:
  const OpTable& ops() const { return *GetParam(); }
};

INSTANTIATE_TEST_SUITE_P(Cpu, Mamba2Parity, testing::ValuesIn(TestedTables()),
                         [](const auto& info) { return std::string(info.param->variant); });

struct Mamba2Shape {
  int32_t heads = 4;
  int32_t head_dim = 16;
  int32_t groups = 2;
  int32_t state_dim = 32;
  int32_t conv_width = 4;
  bool conv_bias = true;
  float dt_min = 0.0f;
  float dt_max = 3.4e38f;
  int64_t pad = 4;  // of rows; multiples of 4 leave them as aligned as models' are

  int64_t width() const { return int64_t{heads} * head_dim; }
  int64_t channels() const { return width() + 2 * int64_t{groups} * state_dim; }
  int64_t window() const { return (conv_width - 1) * channels(); }
  int64_t state() const { return width() * state_dim; }
};

struct Mamba2Weights {
  explicit Mamba2Weights(const Mamba2Shape& shape)
      : conv(NoiseF32(11, shape.channels() * shape.conv_width)),
        conv_bias(NoiseF32(12, shape.channels())),
        a_log(NoiseF32(13, shape.heads, 2.0f)),
        dt_bias(NoiseF32(14, shape.heads, 2.0f)),
        d(NoiseF32(15, shape.heads, 2.0f)),
        norm(NoiseF32(16, shape.width(), 2.0f)) {}

  std::vector<float> conv, conv_bias, a_log, dt_bias, d, norm;
};

// A row of zxbcdt: a function of the sequence's id and the position alone.
std::vector<uint16_t> InputRow(const Mamba2Shape& shape, uint64_t id, int64_t position) {
  return NoiseBf16(id * 1000003 + position, shape.width() + shape.channels() + shape.heads, 3.0f);
}

// `done` tokens lie behind it.
struct Mamba2Sequence {
  uint64_t id = 0;
  int64_t done = 0;
  std::vector<uint16_t> window;  // (W - 1, C)
  std::vector<float> state;      // (H, P, N)
  std::vector<uint16_t> out;     // of all tokens so far

  // As if `done` tokens had been there.
  static Mamba2Sequence At(const Mamba2Shape& shape, uint64_t id, int64_t done) {
    return {.id = id,
            .done = done,
            .window = NoiseBf16(id + 100, shape.window(), 2.0f),
            .state = NoiseF32(id + 200, shape.state(), 0.3f)};
  }
};

// The next counts[i] tokens of each sequence as one step; slots in reverse order, rows padded.
void Step(const OpTable& ops, const Mamba2Shape& shape,
          const std::vector<Mamba2Sequence*>& sequences, const std::vector<int64_t>& counts,
          int threads = 1) {
  std::vector<uint16_t> rows;
  std::vector<int32_t> q_start = {0}, kv_len, slots;
  const auto batch = static_cast<int64_t>(sequences.size());
  for (int64_t b = 0; b < batch; ++b) {
    const Mamba2Sequence& s = *sequences[b];
    for (int64_t position = s.done; position < s.done + counts[b]; ++position) {
      const std::vector<uint16_t> row = InputRow(shape, s.id, position);
      rows.insert(rows.end(), row.begin(), row.end());
      rows.insert(rows.end(), shape.pad, uint16_t{0xFFFF});
    }
    q_start.push_back(q_start.back() + static_cast<int32_t>(counts[b]));
    kv_len.push_back(static_cast<int32_t>(s.done + counts[b]));
    slots.push_back(static_cast<int32_t>(batch - 1 - b));
  }
  // NaN unless written, and behind every sequence's.
  const int64_t window_bytes = (shape.window() * 2 + 127) / 64 * 64;
  const int64_t state_bytes = shape.state() * 4, state_stride = state_bytes + 64;
  std::vector<std::byte> windows(batch * window_bytes, std::byte{0xFF});
  std::vector<std::byte> states(batch * state_stride, std::byte{0xFF});
  const auto window_of = [&](int64_t b) { return windows.data() + slots[b] * window_bytes; };
  const auto state_of = [&](int64_t b) { return states.data() + slots[b] * state_stride; };
  for (int64_t b = 0; b < batch; ++b) {
    if (sequences[b]->done == 0) continue;
    std::memcpy(window_of(b), sequences[b]->window.data(), shape.window() * 2);
    std::memcpy(state_of(b), sequences[b]->state.data(), state_bytes);
  }

  const Mamba2Weights weights(shape);
  std::vector<uint16_t> out(q_start.back() * shape.width());
  const Mamba2Params params = {.zxbcdt = rows.data(),
                               .stride = shape.width() + shape.channels() + shape.heads + shape.pad,
                               .heads = shape.heads,
                               .head_dim = shape.head_dim,
                               .groups = shape.groups,
                               .state_dim = shape.state_dim,
                               .conv_width = shape.conv_width,
                               .conv_weight = weights.conv.data(),
                               .conv_bias = shape.conv_bias ? weights.conv_bias.data() : nullptr,
                               .a_log = weights.a_log.data(),
                               .dt_bias = weights.dt_bias.data(),
                               .d = weights.d.data(),
                               .norm_weight = weights.norm.data(),
                               .dt_min = shape.dt_min,
                               .dt_max = shape.dt_max,
                               .t = q_start.back(),
                               .sequences = {.count = batch,
                                             .q_start = q_start.data(),
                                             .kv_len = kv_len.data(),
                                             .slots = slots.data()},
                               .conv_state = {.base = windows.data(), .stride = window_bytes},
                               .recurrent_state = {.base = states.data(), .stride = state_stride},
                               .out = out.data()};
  ops.mamba2(DirtyContext(threads, ops.mamba2_workspace(threads, params)), params);

  for (int64_t b = 0; b < batch; ++b) {
    Mamba2Sequence& s = *sequences[b];
    s.out.insert(s.out.end(), out.begin() + q_start[b] * shape.width(),
                 out.begin() + q_start[b + 1] * shape.width());
    s.done += counts[b];
    s.window.resize(shape.window());
    s.state.resize(shape.state());
    std::memcpy(s.window.data(), window_of(b), shape.window() * 2);
    std::memcpy(s.state.data(), state_of(b), state_bytes);
  }
}

void ExpectSame(const Mamba2Sequence& a, const Mamba2Sequence& b) {
  EXPECT_EQ(a.out, b.out);
  EXPECT_EQ(a.window, b.window);
  EXPECT_EQ(a.state, b.state);
}

void ExpectNearReference(const Mamba2Shape& shape, const Mamba2Sequence& got,
                         const Mamba2Sequence& expected) {
  EXPECT_EQ(got.window, expected.window);
  ExpectNear(got.out, expected.out, shape.width() / shape.groups, kMamba2Tolerance);
  ExpectNear(got.state, expected.state, shape.state() / shape.heads, kMamba2Tolerance);
}

const Mamba2Shape kShapes[] = {
    {},
    {.heads = 6, .head_dim = 10, .groups = 3, .state_dim = 24, .conv_bias = false},
    {.heads = 4, .head_dim = 64, .groups = 1, .state_dim = 128},
    {.heads = 4, .head_dim = 64, .groups = 1, .state_dim = 128, .pad = 3},
    {.heads = 3, .head_dim = 7, .groups = 3, .state_dim = 16, .conv_width = 2},
    {.heads = 2, .head_dim = 17, .groups = 1, .state_dim = 100, .conv_width = 8},
    {.heads = 1, .head_dim = 5, .groups = 1, .state_dim = 250, .dt_min = 0.5f, .dt_max = 1.0f},
    {.heads = 5, .head_dim = 120, .groups = 1, .state_dim = 3},
    {.heads = 16, .head_dim = 64, .groups = 1, .state_dim = 32},
    {.heads = 20, .head_dim = 80, .groups = 1, .state_dim = 16},
    {.heads = 8, .head_dim = 64, .groups = 2, .state_dim = 128, .pad = 0},
    {.heads = 4, .head_dim = 18, .groups = 2, .state_dim = 60, .pad = 2},
    {.heads = 4,
     .head_dim = 16,
     .groups = 4,
     .state_dim = 16,
     .conv_width = 3,
     .conv_bias = false,
     .dt_min = 0.01f,
     .dt_max = 2.0f},
};

TEST_P(Mamba2Parity, MatchesTheReference) {
  for (const Mamba2Shape& shape : kShapes) {
    SCOPED_TRACE(testing::Message() << "P " << shape.head_dim << ", N " << shape.state_dim);
    Mamba2Sequence fresh = {.id = 1}, late = Mamba2Sequence::At(shape, 2, 7);
    Mamba2Sequence fresh_ref = fresh, late_ref = late;
    for (const std::vector<int64_t>& counts :
         std::vector<std::vector<int64_t>>{{37, 2}, {1, 1}, {3, 50}}) {
      Step(ops(), shape, {&fresh, &late}, counts);
      Step(RefOps(), shape, {&fresh_ref, &late_ref}, counts);
    }
    ExpectNearReference(shape, fresh, fresh_ref);
    ExpectNearReference(shape, late, late_ref);
  }
}

TEST_P(Mamba2Parity, ChunksDoNotMatter) {
  constexpr int64_t kCount = 83;
  for (const Mamba2Shape& shape : kShapes) {
    Mamba2Sequence whole = {.id = 3};
    Step(ops(), shape, {&whole}, {kCount});
    for (const int64_t chunk : {1, 2, 3, 16, 17, 65}) {
      SCOPED_TRACE(testing::Message() << "P " << shape.head_dim << ", chunk " << chunk);
      Mamba2Sequence pieces = {.id = 3};
      while (pieces.done < kCount)
        Step(ops(), shape, {&pieces}, {std::min<int64_t>(chunk, kCount - pieces.done)});
      ExpectSame(whole, pieces);
    }
  }
}

// As in Nemotron 3 Nano.
TEST_P(Mamba2Parity, MatchesTheReferenceAtFullSize) {
  const Mamba2Shape shape = {.heads = 64, .head_dim = 64, .groups = 8, .state_dim = 128, .pad = 0};
  Mamba2Sequence got = {.id = 1}, expected = got;
  for (const int64_t count : {9, 1}) {
    Step(ops(), shape, {&got}, {count});
    Step(RefOps(), shape, {&expected}, {count});
  }
  ExpectNearReference(shape, got, expected);
}

// Longer than what a backend may take through its workspace at once.
TEST_P(Mamba2Parity, CutsOfLongPromptsDoNotMatter) {
  const Mamba2Shape shape = {.heads = 2, .head_dim = 16, .groups = 2, .state_dim = 16};
  Mamba2Sequence whole = {.id = 3}, pieces = whole, other = {.id = 4};
  Step(ops(), shape, {&whole}, {4200});
  Step(ops(), shape, {&other, &pieces}, {1023, 1025});
  Step(ops(), shape, {&pieces, &other}, {2047, 2});
  Step(ops(), shape, {&pieces}, {1128});
  ExpectSame(whole, pieces);
}

TEST_P(Mamba2Parity, BatchAndThreadsDoNotMatter) {
  const Mamba2Shape shape = {.heads = 6, .head_dim = 96, .groups = 2, .state_dim = 48};
  Mamba2Sequence alone = Mamba2Sequence::At(shape, 5, 11);
  Mamba2Sequence watched = alone, first = {.id = 6}, last = Mamba2Sequence::At(shape, 7, 1);
  Step(ops(), shape, {&alone}, {70});
  Step(ops(), shape, {&alone}, {1});
  Step(ops(), shape, {&first, &watched, &last}, {41, 70, 1}, 3);
  Step(ops(), shape, {&last, &watched}, {2, 1}, 2);
  ExpectSame(alone, watched);
}

// Decoding at sizes where a backend may divide its work otherwise than for one sequence.
TEST_P(Mamba2Parity, ALargeBatchDoesNotMatter) {
  const Mamba2Shape shape = {.heads = 32, .head_dim = 64, .groups = 8, .state_dim = 128};
  std::vector<Mamba2Sequence> batch;
  for (uint64_t id = 20; id < 28; ++id)
    batch.push_back(Mamba2Sequence::At(shape, id, static_cast<int64_t>(id)));
  std::vector<Mamba2Sequence> alone = batch;
  std::vector<Mamba2Sequence*> together;
  for (Mamba2Sequence& s : batch) together.push_back(&s);
  Step(ops(), shape, together, std::vector<int64_t>(batch.size(), 1));
  for (size_t i = 0; i < batch.size(); ++i) {
    Step(ops(), shape, {&alone[i]}, {1});
    ExpectSame(alone[i], batch[i]);
  }
}

// A sequence without tokens in the step keeps its state, wherever it stands in the batch.
TEST_P(Mamba2Parity, AnEmptySequenceIsLeftAlone) {
  const Mamba2Shape shape;
  Mamba2Sequence first = Mamba2Sequence::At(shape, 8, 5), last = Mamba2Sequence::At(shape, 9, 2);
  Mamba2Sequence busy = {.id = 10};
  const Mamba2Sequence first_before = first, last_before = last;
  Step(ops(), shape, {&first, &busy, &last}, {0, 3, 0});
  ExpectSame(first_before, first);
  ExpectSame(last_before, last);
}

// Without a recurrence: y at token t is d x + Σ over tokens s <= t of (C_t · B_s) dt_s x_s, each
// faded by exp of the sum of -exp(a_log) dt between s and t.
TEST(Mamba2Reference, EqualsTheSumOverThePast) {
  const Mamba2Shape shape = {.heads = 2, .head_dim = 3, .groups = 1, .state_dim = 5};
  const Mamba2Weights weights(shape);
  constexpr int64_t kCount = 12;
  Mamba2Sequence sequence = {.id = 4};
  Step(RefOps(), shape, {&sequence}, {5});
  Step(RefOps(), shape, {&sequence}, {kCount - 5});

  const auto silu = [](double x) { return x / (1 + std::exp(-x)); };
  std::vector<std::vector<float>> rows;
  for (int64_t t = 0; t < kCount; ++t) rows.push_back(Widen(InputRow(shape, 4, t)));
  const auto mixed = [&](int64_t t, int64_t channel) {
    double sum = weights.conv_bias[channel];
    for (int64_t j = 0; j < shape.conv_width && j <= t; ++j)
      sum += weights.conv[channel * shape.conv_width + shape.conv_width - 1 - j] *
             double{rows[t - j][shape.width() + channel]};
    return double{RoundToBf16(static_cast<float>(silu(sum)))};
  };
  const auto step_of = [&](int64_t t, int64_t head) {
    return std::log1p(
        std::exp(rows[t][shape.width() + shape.channels() + head] + double{weights.dt_bias[head]}));
  };
  std::vector<uint16_t> expected;
  for (int64_t t = 0; t < kCount; ++t) {
    std::vector<double> u;
    double squares = 0;
    for (int64_t i = 0; i < shape.width(); ++i) {
      const int64_t head = i / shape.head_dim;
      double y = weights.d[head] * mixed(t, i);
      double fade = 0;
      for (int64_t s = t; s >= 0; --s) {
        double match = 0;
        for (int64_t n = 0; n < shape.state_dim; ++n)
          match += mixed(s, shape.width() + n) * mixed(t, shape.width() + shape.state_dim + n);
        y += std::exp(fade) * match * step_of(s, head) * mixed(s, i);
        fade -= std::exp(double{weights.a_log[head]}) * step_of(s, head);
      }
      u.push_back(y * silu(rows[t][i]));
      squares += u.back() * u.back();
    }
    const double inverse = 1 / std::sqrt(squares / static_cast<double>(shape.width()) + 1e-5);
    for (int64_t i = 0; i < shape.width(); ++i)
      expected.push_back(Bf16FromFloat(static_cast<float>(u[i] * inverse * weights.norm[i])));
  }
  // The state between tokens is FP32.
  ExpectNear(sequence.out, expected, shape.width(), {0x1p-7f, 0x1p-16f});
}

}  // namespace
}  // namespace nibble::kernels

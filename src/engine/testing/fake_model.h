// A model whose logits are a pure, deterministic function of the token history, which it reads back
// from the KV pool. So a wrong page, a stale page, a wrong position or a wrong row shows as wrong
// logits. For tests.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "models/model.h"

namespace nibble::engine {

class FakeModel : public models::Model {
 public:
  struct Options {
    int64_t vocab = 300;
    int64_t max_positions = 4096;
    // Added to the logit of this token: makes ends likely. Ignored when negative.
    int32_t favourite = -1;
    float favour = 0.0f;
    // A recurrent layer, whose state is checked against the history.
    bool recurrent = false;
    // It computes prompts in chunks, and its logits and state show which tokens were.
    bool chunks = false;
    int64_t rope_border = 0;
    // After this one logits are NaN, whatever follows. None when negative.
    int32_t breaking_token = -1;
  };

  explicit FakeModel(const Options& options) : options_(options) {
    info_.architecture = "FakeForCausalLM";
    info_.vocab_size = options.vocab;
    info_.hidden_size = 8;
    info_.max_positions = options.max_positions;
    info_.kv = {{.kv_heads = 1, .head_dim = 8}, {.kv_heads = 2, .head_dim = 8}};
    if (options.recurrent)
      info_.state = {{.conv = 8, .recurrent = sizeof(State), .chunks = options.chunks}};
    info_.rope_border = options.rope_border;
    info_.weight_bytes = 1 << 20;
    info_.bytes_per_token = 1 << 20;
  }

  const models::ModelInfo& info() const override { return info_; }
  int64_t ActivationBytes(const models::MaxStep& max) const override {
    return max.tokens * 16 + max.rows * options_.vocab * 4;
  }
  Status Prepare(const models::MaxStep& max) override {
    max_tokens_ = max.tokens;
    max_rows_ = max.rows;
    logits_.resize(static_cast<size_t>(max.rows * options_.vocab));
    return {};
  }
  const kernels::OpTable& ops() const override { return kernels::RefOps(); }

  const float* Forward(const models::Batch& batch, const models::KvPool& kv) override {
    if (before_forward) before_forward(batch);
    const auto sequences = static_cast<int64_t>(batch.kv_len.size());
    Expect(static_cast<int64_t>(batch.tokens.size()) <= max_tokens_, "more tokens than prepared");
    Expect(static_cast<int64_t>(batch.logits_rows.size()) <= max_rows_, "more rows than prepared");
    for (int64_t b = 0; b < sequences; ++b) {
      Expect(batch.rope_sets[b] == 1 || options_.rope_border == 0 ||
                 batch.kv_len[b] <= options_.rope_border,
             "a long sequence with frequencies for short ones");
      for (int32_t i = batch.q_start[b]; i < batch.q_start[b + 1]; ++i)
        Write(kv, batch.slots[i], Token(batch, i) | Form(batch, b, i),
              Mark(batch, b, batch.positions[i]));
    }
    size_t row = 0;
    for (int64_t b = 0; b < sequences; ++b) {
      std::vector<int32_t> history = Read(batch, b, kv);
      if (options_.recurrent) Advance(batch, b, history, kv);
      for (int32_t i = batch.q_start[b]; i < batch.q_start[b + 1]; ++i) {
        const int32_t position = batch.kv_len[b] - (batch.q_start[b + 1] - i);
        Expect(batch.positions[i] == position, "positions are not consecutive");
        for (; row < batch.logits_rows.size() && batch.logits_rows[row] == i; ++row)
          FillLogits(std::span(history).first(position + 1),
                     logits_.data() + static_cast<int64_t>(row) * options_.vocab);
      }
    }
    Expect(row == batch.logits_rows.size(), "rows are not in order");
    if (batch.tail != nullptr) batch.tail->Launch(logits_.data(), batch.drawn_slots.data());
    return logits_.data();
  }

  // The oracle: logits after this history.
  std::vector<float> Logits(std::span<const int32_t> history) const {
    std::vector<float> logits(static_cast<size_t>(options_.vocab));
    FillLogits(history, logits.data());
    return logits;
  }

  std::function<void(const models::Batch&)> before_forward;  // may throw or block

 private:
  // What the recurrent layer keeps: so many tokens, with this hash.
  struct State {
    int64_t tokens = 0;
    uint64_t hash = 0;
  };

  static State StateAfter(std::span<const int32_t> history) {
    State state{.tokens = static_cast<int64_t>(history.size())};
    for (const int32_t token : history)
      state.hash = Mix(state.hash * 31 + static_cast<uint64_t>(token) + 1);
    return state;
  }

  static void Advance(const models::Batch& batch, int64_t b, std::span<const int32_t> history,
                      const models::KvPool& kv) {
    const auto first = static_cast<size_t>(batch.positions[batch.q_start[b]]);
    const kernels::StateView view = kv.state(0).recurrent;
    std::byte* cell = view.base + batch.state_slots[b] * view.stride;
    State state;
    std::memcpy(&state, cell, sizeof(state));
    const State expected = StateAfter(history.first(first));
    Expect(first == 0 || (state.tokens == expected.tokens && state.hash == expected.hash),
           "a state slot holds another history");
    state = StateAfter(history);
    std::memcpy(cell, &state, sizeof(state));
  }

  // A bit beside the token.
  static int32_t Form(const models::Batch& batch, int64_t b, int32_t row) {
    if (batch.chunked.empty()) return 0;
    const int32_t first = batch.q_start[b], chunked = batch.chunked[b];
    Expect(chunked % kernels::kDeltaChunk == 0 &&
               (chunked == 0 || batch.positions[first] % kernels::kDeltaChunk == 0) &&
               first + chunked <= batch.q_start[b + 1],
           "chunks of other borders");
    return row < first + chunked ? 1 << 30 : 0;
  }

  static int32_t Token(const models::Batch& batch, int32_t i) {
    const int32_t token = batch.tokens[i];
    return token >= 0 ? token : batch.drawn[-1 - token];
  }

  // Position and frequencies, as they go into the cache.
  static int32_t Mark(const models::Batch& batch, int64_t b, int32_t position) {
    return position | batch.rope_sets[b] << 24;
  }

  static void Expect(bool condition, const char* what) {
    if (!condition) throw std::logic_error(std::string("fake model: ") + what);
  }

  // Token and position go into the first eight bytes of k and v of every head.
  static std::byte* Cell(const kernels::KvLayerView& layer, std::byte* base, int64_t slot,
                         int32_t head) {
    const int64_t page = slot / layer.page_size;
    const int64_t offset = slot % layer.page_size;
    return base + (((page * layer.kv_heads + head) * layer.page_size + offset) * layer.head_dim) *
                      kernels::KvElementBytes(layer.format);
  }

  void Write(const models::KvPool& kv, int64_t slot, int32_t token, int32_t position) const {
    const int32_t cell[2] = {token, position};
    for (size_t l = 0; l < info_.kv.size(); ++l) {
      const kernels::KvLayerView layer = kv.layer(static_cast<int64_t>(l));
      for (int32_t head = 0; head < layer.kv_heads; ++head) {
        std::memcpy(Cell(layer, layer.k, slot, head), cell, sizeof(cell));
        std::memcpy(Cell(layer, layer.v, slot, head), cell, sizeof(cell));
      }
    }
  }

  std::vector<int32_t> Read(const models::Batch& batch, int64_t b, const models::KvPool& kv) const {
    std::vector<int32_t> history;
    for (int32_t position = 0; position < batch.kv_len[b]; ++position) {
      const int64_t page = batch.page_table[b * batch.max_pages + position / kv.page_size()];
      const int64_t slot = page * kv.page_size() + position % kv.page_size();
      for (size_t l = 0; l < info_.kv.size(); ++l) {
        const kernels::KvLayerView layer = kv.layer(static_cast<int64_t>(l));
        int32_t k[2];
        int32_t v[2];
        std::memcpy(k, Cell(layer, layer.k, slot, layer.kv_heads - 1), sizeof(k));
        std::memcpy(v, Cell(layer, layer.v, slot, 0), sizeof(v));
        const int32_t mark = Mark(batch, b, position);
        Expect(k[1] == mark && v[1] == mark && k[0] == v[0],
               "a page holds another position, or other frequencies");
        if (l == 0) history.push_back(k[0]);
        Expect(history.back() == k[0], "layers disagree");
      }
    }
    return history;
  }

  static uint64_t Mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }

  void FillLogits(std::span<const int32_t> history, float* logits) const {
    uint64_t hash = history.size();
    for (const int32_t token : history) hash = Mix(hash * 31 + static_cast<uint64_t>(token) + 1);
    for (int64_t v = 0; v < options_.vocab; ++v) {
      const uint64_t bits = Mix(hash + 0x9e3779b97f4a7c15u * static_cast<uint64_t>(v + 1));
      logits[v] = static_cast<float>(bits >> 40) * (12.0f / 16777216.0f) - 6.0f;
    }
    if (options_.favourite >= 0) logits[options_.favourite] += options_.favour;
    for (const int32_t token : history)
      if (token == options_.breaking_token) logits[0] = std::numeric_limits<float>::quiet_NaN();
  }

  const Options options_;
  models::ModelInfo info_;
  int64_t max_tokens_ = 0;
  int64_t max_rows_ = 0;
  std::vector<float> logits_;
};

}  // namespace nibble::engine

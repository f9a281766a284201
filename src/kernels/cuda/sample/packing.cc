#include "kernels/cuda/sample/packing.h"

#include <algorithm>
#include <cfloat>
#include <cstring>

#include "base/check.h"

namespace nibble::kernels::cuda::sampling {
namespace {

constexpr int64_t kAlign = 16;

int64_t Aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

int64_t MaskBytes(int64_t vocab) { return (vocab + 31) / 32 * 4; }

// Tokens [result, V) are banned by ascending entries at the list's end, as padding is.
int32_t EndOfUnbanned(std::span<const int32_t> banned, int64_t vocab) {
  auto end = static_cast<int32_t>(vocab);
  for (auto id = banned.rbegin(); id != banned.rend() && *id == end - 1; ++id) --end;
  return end;
}

bool Penalizes(const SampleRow& row) {
  return (!row.counts.empty() || row.counts_drawn) &&
         (row.repetition_penalty != 1.0f || row.presence_penalty != 0.0f ||
          row.frequency_penalty != 0.0f);
}

// Bytes of a row's edits, at most.
int64_t EditBytes(const SampleRow& row, int64_t vocab) {
  return Aligned(row.allowed_mask != nullptr ? MaskBytes(vocab) : 0) +
         Aligned(static_cast<int64_t>(row.bias.size() * sizeof(BiasEdit))) +
         Aligned(static_cast<int64_t>(row.banned.size() * sizeof(int32_t))) +
         Aligned(Penalizes(row) ? static_cast<int64_t>(row.counts.size() * sizeof(CountEdit)) : 0);
}

int64_t WantedTops(const SampleRow& row, int64_t max_top_logprobs) {
  return std::clamp<int64_t>(row.top_logprobs, 0, max_top_logprobs);
}

bool IsPlain(const SampleRow& row, int64_t tops, int32_t end, int64_t vocab) {
  return row.temperature == 0.0f && tops == 0 && row.bias.empty() && !Penalizes(row) &&
         row.allowed_mask == nullptr && static_cast<int64_t>(row.banned.size()) == vocab - end;
}

class EditWriter {
 public:
  EditWriter(std::byte* base, int64_t vocab) : base_(base), vocab_(vocab) {}

  Row Write(const SampleRow& row) {
    const int32_t end = EndOfUnbanned(row.banned, vocab_);
    const auto listed = row.banned.first(row.banned.size() - (vocab_ - end));
    Row packed = {.mask_at = -1,
                  .bias_at = 0,
                  .banned_at = 0,
                  .counts_at = 0,
                  .biases = static_cast<int32_t>(row.bias.size()),
                  .banned = static_cast<int32_t>(listed.size()),
                  .counts = Penalizes(row) ? static_cast<int32_t>(row.counts.size()) : 0,
                  .repetition_penalty = row.repetition_penalty,
                  .presence_penalty = row.presence_penalty,
                  .frequency_penalty = row.frequency_penalty,
                  .changed = 0,
                  .end = end,
                  .search = -1,
                  .unseen = Penalizes(row) && row.counts_drawn ? row.drawn_slot : -1};
    if (row.allowed_mask != nullptr) packed.mask_at = Put(row.allowed_mask, MaskBytes(vocab_));
    packed.bias_at = at_;
    auto* biases = reinterpret_cast<BiasEdit*>(Reserve(packed.biases * sizeof(BiasEdit)));
    for (int32_t i = 0; i < packed.biases; ++i) biases[i] = {row.bias[i].token, row.bias[i].bias};
    const auto by_token = [](const BiasEdit& a, const BiasEdit& b) { return a.token < b.token; };
    if (!std::is_sorted(biases, biases + packed.biases, by_token))
      std::stable_sort(biases, biases + packed.biases, by_token);
    packed.banned_at = Put(listed.data(), static_cast<int64_t>(listed.size_bytes()));
    packed.counts_at = at_;
    auto* counts = reinterpret_cast<CountEdit*>(Reserve(packed.counts * sizeof(CountEdit)));
    for (int32_t i = 0; i < packed.counts; ++i)
      counts[i] = {row.counts[i].token, row.counts[i].count};
    packed.changed = packed.mask_at >= 0 || packed.biases > 0 || packed.banned > 0 ||
                     packed.counts > 0 || packed.unseen >= 0;
    return packed;
  }
  int64_t bytes() const { return at_; }

 private:
  std::byte* Reserve(size_t bytes) {
    std::byte* place = base_ + at_;
    at_ += Aligned(static_cast<int64_t>(bytes));
    return place;
  }
  int64_t Put(const void* from, int64_t bytes) {
    const int64_t at = at_;
    if (bytes > 0) std::memcpy(Reserve(static_cast<size_t>(bytes)), from, bytes);
    return at;
  }

  std::byte* base_;
  int64_t vocab_;
  int64_t at_ = 0;
};

Search DrawOf(const SampleRow& row, int32_t r, const Row& packed, int64_t vocab) {
  return {.uniform = row.uniform,
          .inverse_temperature = std::min(1.0f / row.temperature, FLT_MAX),
          .top_p = row.top_p,
          .min_p = row.min_p,
          .top_k = row.top_k > 0 && row.top_k < vocab ? row.top_k : 0,
          .row = r,
          .end = packed.end,
          .changed = packed.changed,
          .lists_best = 0,
          .top_at = 0};
}

Search ListOf(int64_t tops, int32_t r, int64_t vocab, int64_t top_at) {
  return {.uniform = 0,
          .inverse_temperature = 1.0f,
          .top_p = 1.0f,
          .min_p = 0.0f,
          .top_k = static_cast<int32_t>(tops),
          .row = r,
          .end = static_cast<int32_t>(vocab),
          .changed = 0,
          .lists_best = 1,
          .top_at = top_at};
}

constexpr int64_t kTableBytes = kMaxGroup * static_cast<int64_t>(sizeof(Row) + 2 * sizeof(Search));

}  // namespace

int64_t MaxUploadBytes(int64_t vocab) {
  const int64_t per_token = sizeof(BiasEdit) + sizeof(int32_t) + sizeof(CountEdit);
  const int64_t one_row = MaskBytes(vocab) + vocab * per_token + 4 * kAlign;
  return Aligned(kTableBytes) + 2 * kAlign + std::max(one_row, int64_t{1} << 20);
}

PackedGroup FormGroup(std::span<const SampleRow> rows, int64_t vocab, int64_t max_top_logprobs,
                      int64_t room) {
  PackedGroup group;
  int64_t edits = 0;
  for (const SampleRow& row : rows) {
    const int64_t tops = WantedTops(row, max_top_logprobs);
    NIBBLE_CHECK(tops <= kMaxTopLogprobs, "{} log-probabilities of a row; at most {}", tops,
                 kMaxTopLogprobs);
    edits += EditBytes(row, vocab);
    const bool fits = group.rows < kMaxGroup && edits <= room - Aligned(kTableBytes) - 2 * kAlign;
    if (!fits) break;
    const int32_t end = EndOfUnbanned(row.banned, vocab);
    if (group.rows == 0) group.end = end;
    group.plain = group.plain && end == group.end && IsPlain(row, tops, end, vocab);
    ++group.rows;
  }
  NIBBLE_CHECK(group.rows > 0, "a row's biases, bans and counts name tokens more than once");
  return group;
}

void Pack(std::span<const SampleRow> rows, int64_t vocab, int64_t max_top_logprobs,
          std::byte* upload, PackedGroup* packed) {
  PackedGroup& group = *packed;
  group.searches_at = Aligned(group.rows * static_cast<int64_t>(sizeof(Row)));
  auto* packed_rows = reinterpret_cast<Row*>(upload);
  auto* searches = reinterpret_cast<Search*>(upload + group.searches_at);
  for (int32_t r = 0; r < group.rows; ++r)
    group.searches += (rows[r].temperature != 0.0f) + (WantedTops(rows[r], max_top_logprobs) > 0);
  group.edits_at =
      group.searches_at + Aligned(group.searches * static_cast<int64_t>(sizeof(Search)));
  EditWriter writer(upload + group.edits_at, vocab);
  int32_t s = 0;
  for (int32_t r = 0; r < group.rows; ++r) {
    const SampleRow& row = rows[r];
    packed_rows[r] = writer.Write(row);
    if (row.temperature != 0.0f) {
      packed_rows[r].search = s;
      searches[s++] = DrawOf(row, r, packed_rows[r], vocab);
    }
    if (const int64_t tops = WantedTops(row, max_top_logprobs); tops > 0)
      searches[s++] = ListOf(tops, r, vocab, r * max_top_logprobs);
  }
  for (int32_t i = 0; i < group.searches; ++i)
    group.histogram = group.histogram || searches[i].top_k > 0 || searches[i].limits_mass();
  group.bytes = group.edits_at + writer.bytes();
}

}  // namespace nibble::kernels::cuda::sampling

#include "formats/int_weights.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "formats/gather.h"
#include "formats/json_file.h"
#include "formats/quantization_config.h"

namespace nibble::formats {
namespace {

constexpr int64_t kNibbles = 8;  // of a word
constexpr int64_t kWordBytes = 4;

// AutoAWQ's words: nibble i holds column kAwqOrder[i] of eight.
constexpr std::array<int64_t, kNibbles> kAwqOrder = {0, 2, 4, 6, 1, 3, 5, 7};

uint32_t WordAt(const std::byte* data, int64_t index) {
  uint32_t word;
  std::memcpy(&word, data + index * kWordBytes, sizeof word);
  return word;
}

uint8_t ByteAt(const std::byte* data, int64_t index) {
  return std::to_integer<uint8_t>(data[index]);
}

class IntegerReader {
 public:
  IntegerReader(const Checkpoint& checkpoint, const LinearParts& parts)
      : checkpoint_(checkpoint),
        parts_(parts),
        n_(parts.n),
        k_(parts.k),
        groups_(parts.groups()),
        bits_(parts.format == WeightFormat::kInt4 ? 4 : 8) {}

  Result<LinearData> Read() {
    QuantView& view = data_.view;
    view.format = parts_.format;
    view.n = n_;
    view.k = k_;
    view.scale_block_k = parts_.scale_block_k;
    view.scale_dtype = parts_.scale->dtype;
    NIBBLE_ASSIGN(const TensorData codes, checkpoint_.Read(*parts_.weight));
    view.data = Keep(ReadCodes(codes.view.data), codes.owner);
    NIBBLE_ASSIGN(const TensorData scales, checkpoint_.Read(*parts_.scale));
    view.scales = Keep(ReadScales(scales.view), scales.owner);
    if (parts_.zeros != nullptr) NIBBLE_TRY(ReadZeros());
    if (parts_.group_index != nullptr) NIBBLE_TRY(SortColumns());
    data_.owner = JoinOwners(std::move(owners_));
    return std::move(data_);
  }

 private:
  const std::byte* Keep(GatheredBytes bytes, std::shared_ptr<const void> stored) {
    owners_.push_back(bytes.owner != nullptr ? std::move(bytes.owner) : std::move(stored));
    return bytes.data;
  }

  int64_t RowBytes() const { return k_ * bits_ / 8; }

  GatheredBytes ReadCodes(const std::byte* stored) const {
    switch (parts_.layout) {
      case CodeLayout::kWordsAlongK: {
        // Words of one row, the last perhaps not full; their bytes are the codes in order.
        const int64_t stride = parts_.weight->shape[1] * kWordBytes;
        return GatherRows({.data = stored, .columns = RowBytes(), .row_stride = stride},
                          {.count = n_});
      }
      case CodeLayout::kGptq: {
        const int64_t words = RowBytes() / kWordBytes;
        return GatherRows({.data = stored,
                           .element_bytes = kWordBytes,
                           .columns = words,
                           .row_stride = 1,
                           .column_stride = n_},
                          {.count = n_});
      }
      case CodeLayout::kAwq:
        return AwqCodes(stored);
      case CodeLayout::kPairsAlongN:
        return CodesOfRowPairs(stored);
      case CodeLayout::kSignedBytes:
      case CodeLayout::kAsViewed:
        break;
    }
    auto buffer = MakeBuffer(n_ * k_);
    for (int64_t i = 0; i < n_ * k_; ++i) buffer[i] = stored[i] ^ std::byte{0x80};
    return {buffer.get(), buffer};
  }

  // Words (K, N/8) → pairs (N, K/2).
  GatheredBytes AwqCodes(const std::byte* stored) const {
    constexpr int64_t kTile = 64;  // rows of K at a time: what is written then stays in cache
    auto buffer = MakeBuffer(n_ * RowBytes());
    const int64_t words = n_ / kNibbles;
    for (int64_t k0 = 0; k0 < k_; k0 += kTile) {
      const int64_t k_end = std::min(k0 + kTile, k_);
      for (int64_t word = 0; word < words; ++word) {
        for (int64_t k = k0; k < k_end; k += 2) {
          const uint32_t even = WordAt(stored, k * words + word);
          const uint32_t odd = WordAt(stored, (k + 1) * words + word);
          for (int64_t i = 0; i < kNibbles; ++i) {
            const uint32_t pair = ((even >> (4 * i)) & 15u) | (((odd >> (4 * i)) & 15u) << 4);
            const int64_t row = word * kNibbles + kAwqOrder[static_cast<size_t>(i)];
            buffer[row * RowBytes() + k / 2] = static_cast<std::byte>(pair);
          }
        }
      }
    }
    return {buffer.get(), buffer};
  }

  // Signed nibbles (N/2, K), rows 2i and 2i+1 in one byte → unsigned pairs (N, K/2).
  GatheredBytes CodesOfRowPairs(const std::byte* stored) const {
    auto buffer = MakeBuffer(n_ * RowBytes());
    for (int64_t pair = 0; pair < n_ / 2; ++pair) {
      const std::byte* from = stored + pair * k_;
      std::byte* low = buffer.get() + 2 * pair * RowBytes();
      std::byte* high = low + RowBytes();
      for (int64_t k = 0; k < k_; k += 2) {
        const unsigned even = ByteAt(from, k) ^ 0x88u;  // a sign bit becomes the offset of 8
        const unsigned odd = ByteAt(from, k + 1) ^ 0x88u;
        low[k / 2] = static_cast<std::byte>((even & 15u) | ((odd & 15u) << 4));
        high[k / 2] = static_cast<std::byte>((even >> 4) | (odd & 0xF0u));
      }
    }
    return {buffer.get(), buffer};
  }

  GatheredBytes ReadScales(const TensorView& stored) const {
    const bool transposed = parts_.layout == CodeLayout::kAwq || parts_.layout == CodeLayout::kGptq;
    const bool for_all_rows = stored.shape.elements() == 1;
    return GatherRows({.data = stored.data,
                       .element_bytes = DTypeBits(stored.dtype) / 8,
                       .columns = groups_,
                       .row_stride = for_all_rows ? 0 : (transposed ? 1 : groups_),
                       .column_stride = transposed ? n_ : 1},
                      {.count = n_});
  }

  Status ReadZeros() {
    NIBBLE_ASSIGN(const TensorData stored, checkpoint_.Read(*parts_.zeros));
    auto buffer = MakeBuffer(n_ * groups_);
    for (int64_t n = 0; n < n_; ++n) {
      for (int64_t group = 0; group < groups_; ++group) {
        buffer[n * groups_ + group] =
            static_cast<std::byte>(StoredZero(stored.view.data, n, group));
      }
    }
    if (parts_.layout == CodeLayout::kGptq) NIBBLE_TRY(AdjustGptqZeros(buffer.get()));
    // In the middle throughout: what a view without zero points means.
    if (AllAre(buffer.get(), Middle())) return {};
    data_.view.zeros = reinterpret_cast<const uint8_t*>(buffer.get());
    owners_.push_back(std::move(buffer));
    return {};
  }

  uint8_t Middle() const { return static_cast<uint8_t>(1u << (bits_ - 1)); }

  bool AllAre(const std::byte* zeros, uint8_t value) const {
    return std::all_of(zeros, zeros + n_ * groups_,
                       [value](std::byte zero) { return zero == std::byte{value}; });
  }

  uint8_t StoredZero(const std::byte* stored, int64_t n, int64_t group) const {
    const int64_t fields = 32 / bits_;
    const auto field = [&](uint32_t word, int64_t i) {
      return static_cast<uint8_t>((word >> (bits_ * i)) & ((1u << bits_) - 1u));
    };
    switch (parts_.layout) {
      case CodeLayout::kWordsAlongK:  // packed along N
        return field(WordAt(stored, n / fields * groups_ + group), n % fields);
      case CodeLayout::kGptq:
        return field(WordAt(stored, group * (n_ / fields) + n / fields), n % fields);
      case CodeLayout::kAwq: {
        const auto place = std::ranges::find(kAwqOrder, n % kNibbles) - kAwqOrder.begin();
        return field(WordAt(stored, group * (n_ / kNibbles) + n / kNibbles), place);
      }
      default:  // signed bytes (N, G)
        return static_cast<uint8_t>(ByteAt(stored, n * groups_ + group) ^ 0x80u);
    }
  }

  // Files of the first convention hold the zero point less 1.
  Status AdjustGptqZeros(std::byte* zeros) const {
    const GptqZeros configured = ConfiguredGptqZeros(checkpoint_.config());
    bool minus_one = configured.minus_one;
    if (configured.symmetric) {
      // All must be in the middle, which shows the convention whatever the config says of it.
      if (AllAre(zeros, Middle())) return {};
      if (!AllAre(zeros, static_cast<uint8_t>(Middle() - 1))) {
        return Fail(Code::kCorruption,
                    "{}: tensor {}: zero points differ or are not {} ({} in files of the format "
                    "\"gptq\"), but config.json says \"sym\": true; remove the entry if the "
                    "weights are asymmetric",
                    checkpoint_.path(), Quoted(parts_.zeros->name), Middle(), Middle() - 1);
      }
      minus_one = true;
    }
    if (!minus_one) return {};
    const auto mask = static_cast<unsigned>((1 << bits_) - 1);
    for (int64_t i = 0; i < n_ * groups_; ++i) {
      zeros[i] = static_cast<std::byte>((std::to_integer<unsigned>(zeros[i]) + 1u) & mask);
    }
    return {};
  }

  // Nothing if the groups follow each other, as they do without act-order.
  Result<std::optional<std::vector<int32_t>>> ReadGroupIndex() const {
    NIBBLE_ASSIGN(const TensorData stored, checkpoint_.Read(*parts_.group_index));
    std::vector<int32_t> index(static_cast<size_t>(k_));
    std::memcpy(index.data(), stored.view.data, index.size() * sizeof(int32_t));
    // compressed-tensors' mark of a tensor that was never set.
    if (std::ranges::all_of(index, [](int32_t group) { return group == -1; })) return std::nullopt;
    bool is_trivial = true;
    for (int64_t column = 0; column < k_; ++column) {
      const int32_t group = index[static_cast<size_t>(column)];
      is_trivial = is_trivial && group == column / parts_.scale_block_k;
      if (group >= 0 && group < groups_) continue;
      return Fail(Code::kCorruption, "{}: tensor {}: element {} is {}, expected a group, 0 to {}",
                  checkpoint_.path(), Quoted(parts_.group_index->name), column, group, groups_ - 1);
    }
    if (is_trivial) return std::nullopt;
    return index;
  }

  Status SortColumns() {
    NIBBLE_ASSIGN(const auto index, ReadGroupIndex());
    if (!index) return {};
    auto order = std::make_shared<std::vector<int32_t>>(static_cast<size_t>(k_));
    std::iota(order->begin(), order->end(), 0);
    std::ranges::stable_sort(*order, {},
                             [&](int32_t column) { return (*index)[static_cast<size_t>(column)]; });
    for (int64_t column = 0; column < k_; ++column) {
      const int64_t group = (*index)[static_cast<size_t>((*order)[static_cast<size_t>(column)])];
      if (group == column / parts_.scale_block_k) continue;
      return Fail(Code::kUnsupported,
                  "{}: tensor {}: group {} has more or fewer than {} columns; groups of unequal "
                  "size are not supported",
                  checkpoint_.path(), Quoted(parts_.group_index->name),
                  std::min(group, column / parts_.scale_block_k), parts_.scale_block_k);
    }
    data_.view.data = PermutedCodes(*order);
    data_.view.column_order = order->data();
    owners_.push_back(std::move(order));
    return {};
  }

  const std::byte* PermutedCodes(const std::vector<int32_t>& order) {
    auto buffer = MakeBuffer(n_ * RowBytes());
    for (int64_t n = 0; n < n_; ++n) {
      const std::byte* from = data_.view.data + n * RowBytes();
      std::byte* to = buffer.get() + n * RowBytes();
      const auto code = [&](int64_t column) -> unsigned {
        const int64_t source = order[static_cast<size_t>(column)];
        if (bits_ == 8) return ByteAt(from, source);
        return (ByteAt(from, source / 2) >> (4 * (source % 2))) & 15u;
      };
      for (int64_t i = 0; i < RowBytes(); ++i) {
        to[i] = static_cast<std::byte>(bits_ == 8 ? code(i) : code(2 * i) | (code(2 * i + 1) << 4));
      }
    }
    owners_.push_back(buffer);
    return buffer.get();
  }

  const Checkpoint& checkpoint_;
  const LinearParts& parts_;
  const int64_t n_;
  const int64_t k_;
  const int64_t groups_;
  const int64_t bits_;
  LinearData data_;
  std::vector<std::shared_ptr<const void>> owners_;
};

}  // namespace

Result<LinearData> ReadIntegers(const Checkpoint& checkpoint, const LinearParts& parts) {
  return IntegerReader(checkpoint, parts).Read();
}

}  // namespace nibble::formats

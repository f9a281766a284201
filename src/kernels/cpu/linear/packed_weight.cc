#include "kernels/cpu/linear/packed_weight.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <mutex>
#include <numeric>
#include <optional>

#include "base/thread_pool.h"
#include "kernels/cpu/linear/layout.h"
#include "kernels/weight_check.h"
#include "numerics/bf16.h"
#include "numerics/e2m1.h"
#include "numerics/e4m3.h"
#include "numerics/e8m0.h"
#include "numerics/f16.h"
#include "numerics/nvfp4.h"

namespace nibble::kernels::cpu {
namespace {

constexpr int64_t kVectorBytes = 64;
constexpr int64_t kAlignment = 64;
constexpr int64_t kMaxGroupK = 128;

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

CpuPackedWeight::Group GroupOf(WeightFormat format) {
  switch (format) {
    case WeightFormat::kNvfp4:
      return {.k = 64, .bytes = kScaleBytes + 2 * kCodeBytes};
    case WeightFormat::kMxfp4:
      return {.k = 128, .bytes = kScaleBytes + 4 * kCodeBytes};
    case WeightFormat::kFp8:
      return {.k = 64, .bytes = kPanelRows * 64};
    case WeightFormat::kBf16:
    case WeightFormat::kF16:
      return {.k = 64, .bytes = kPanelRows * 64 * 2};
    case WeightFormat::kF32:
      return {.k = 64, .bytes = kPanelRows * 64 * 4};
    case WeightFormat::kInt4:
      return {.k = kBlockK, .bytes = kCodeBytes};
    case WeightFormat::kInt8:
      return {.k = kBlockK, .bytes = 2 * kCodeBytes};
  }
  return {};
}

// E4M3 without sign -> UE5M3: same value with an exponent bias of 23 and no subnormals.
constexpr uint8_t Ue5m3FromE4M3(uint8_t code) {
  if (code == 0) return 0;
  if (code >= 8) return static_cast<uint8_t>(code + (16 << 3));  // bias 7 -> 23
  // Subnormal m * 2^-9 = 1.xxx * 2^(top - 9).
  const int top = std::bit_width(static_cast<unsigned>(code)) - 1;
  const int exponent = top - 9 + 23;
  const int mantissa = (code << (3 - top)) & 7;
  return static_cast<uint8_t>(exponent << 3 | mantissa);
}

float FloatFromUe5m3(uint8_t code) {
  return std::bit_cast<float>(static_cast<uint32_t>(code) << 20) * 0x1p104f;
}
static_assert(kUe5m3Shift == 104);

// Where element (row, k) of a group's codes lies: byte and bits to shift.
struct CodePlace {
  int64_t byte;
  int shift;
};
CodePlace PlaceOfCode(int64_t row, int64_t k) {
  return {k / kBlockK * kCodeBytes + k % kBlockK / 8 * kVectorBytes + row * 4 + k % 4,
          k % 8 < 4 ? 0 : 4};
}

// Position of k within its block of 32 once pairs (0,2) (4,6) (1,3) (5,7) stand in order.
constexpr int64_t PairPosition(int64_t k) {
  constexpr int kPositionIn8[8] = {0, 4, 1, 5, 2, 6, 3, 7};
  return k / 8 * 8 + kPositionIn8[k % 8];
}

constexpr bool PairPositionsMatch() {
  for (int pair = 0; pair < kPairsPerBlock; ++pair) {
    const int low = 8 * (pair / 4) + kPairLow[pair % 4];
    if (PairPosition(low) != 2 * pair || PairPosition(low + 2) != 2 * pair + 1) return false;
  }
  return true;
}
static_assert(PairPositionsMatch());

// Offset in bytes of element (row, k) of a 64-k group of a format without codes.
int64_t PlaceOfElement(WeightFormat format, int64_t row, int64_t k) {
  const int64_t position = k / kBlockK * kBlockK + PairPosition(k % kBlockK);
  const int64_t pair = position / 2;
  const int64_t member = position % 2;
  switch (format) {
    case WeightFormat::kBf16:
      return pair * kVectorBytes + row * 4 + member * 2;
    case WeightFormat::kFp8:
      return pair / 2 * kVectorBytes + row / 4 * 16 + pair % 2 * 8 + row % 4 * 2 + member;
    case WeightFormat::kF16:
      return (position * kPanelRows + row) * 2;
    default:
      return (position * kPanelRows + row) * 4;
  }
}

int64_t ElementBytes(WeightFormat format) {
  if (format == WeightFormat::kFp8) return 1;
  return format == WeightFormat::kF32 ? 4 : 2;
}

// Eight nibbles -> four bytes: byte j gets nibble j low and nibble 4 + j high. In both halves of a
// uint64_t, or of a vector of them.
template <typename W>
W InterleaveNibbles(W codes) {
  const auto spread = [](W half) {
    half = (half | half << 8) & 0x00FF00FF00FF00FFu;
    return (half | half << 4) & 0x0F0F0F0F0F0F0F0Fu;
  };
  constexpr uint64_t kLowHalves = 0x0000FFFF0000FFFFu;
  return spread(codes & kLowHalves) | spread(codes >> 16 & kLowHalves) << 4;
}

// Where element (row, k) of 32 k of INT8 lies.
int64_t PlaceOfInt8(int64_t row, int64_t k) { return k / 4 * kVectorBytes + row * 4 + k % 4; }

// The codes of one row's k [0, k_count), a multiple of 16: 8 k are one dword of the panel each.
void PackCodes(const std::byte* codes, int64_t k_count, int64_t row, CpuPackedWeight::Group group,
               std::byte* panel) {
  static_assert(kCodeBytes == kBlockK / 8 * kVectorBytes, "dwords of a row at one distance");
  for (int64_t begin = 0; begin < k_count; begin += group.k, panel += group.bytes) {
    const int64_t count = std::min(group.k, k_count - begin);
    std::byte* place = panel + kScaleBytes + PlaceOfCode(row, 0).byte;
    for (int64_t k = 0; k < count; k += 16, place += 2 * kVectorBytes) {
      uint64_t words;
      std::memcpy(&words, codes + (begin + k) / 2, sizeof(words));
      words = InterleaveNibbles(words);
      const auto low = static_cast<uint32_t>(words);
      const auto high = static_cast<uint32_t>(words >> 32);
      std::memcpy(place, &low, sizeof(low));
      std::memcpy(place + kVectorBytes, &high, sizeof(high));
    }
  }
}

// Four BF16 0 1 2 3 -> pairs (0,2) (1,3), likewise.
template <typename W>
W PairBf16(W four) {
  constexpr uint64_t kEven = 0x0000FFFF0000FFFFu;
  const W even = four & kEven, odd = four >> 16 & kEven;
  return ((even | even >> 16) & 0xFFFFFFFFu) | (odd | odd >> 16) << 32;
}

// The BF16 elements of one row's k [0, k_count), a multiple of 8: four dwords of the panel, pairs
// (0,2) (4,6) (1,3) (5,7).
void PackBf16(const std::byte* elements, int64_t k_count, int64_t row, std::byte* panel) {
  std::byte* place = panel + row * 4;
  for (int64_t k = 0; k < k_count; k += 8, place += 4 * kVectorBytes) {
    uint64_t four[2];
    std::memcpy(four, elements + k * 2, sizeof(four));
    for (int i = 0; i < 2; ++i) {
      const uint64_t pairs = PairBf16(four[i]);
      const auto even = static_cast<uint32_t>(pairs);
      const auto odd = static_cast<uint32_t>(pairs >> 32);
      std::memcpy(place + i * kVectorBytes, &even, sizeof(even));
      std::memcpy(place + (i + 2) * kVectorBytes, &odd, sizeof(odd));
    }
  }
}

// ---- Whole panels: 16 rows at once, in vectors ----

using Words __attribute__((vector_size(16))) = uint64_t;
using Dwords __attribute__((vector_size(16))) = uint32_t;

// 16 bytes of every row become four vectors of 64 B, a dword per row: dword i of what arrange makes
// of a row goes to vector order[i].
template <typename Arrange>
void PackVectors(const std::byte* rows, int64_t row_bytes, const int (&order)[4], std::byte* to,
                 Arrange arrange) {
  for (int row = 0; row < kPanelRows; row += 4) {
    const auto load = [&](int i) {
      Words words;
      std::memcpy(&words, rows + (row + i) * row_bytes, sizeof(words));
      return std::bit_cast<Dwords>(arrange(words));
    };
    const Dwords a = load(0), b = load(1), c = load(2), d = load(3);
    const Dwords ab[2] = {__builtin_shufflevector(a, b, 0, 4, 1, 5),
                          __builtin_shufflevector(a, b, 2, 6, 3, 7)};
    const Dwords cd[2] = {__builtin_shufflevector(c, d, 0, 4, 1, 5),
                          __builtin_shufflevector(c, d, 2, 6, 3, 7)};
    for (int i = 0; i < 2; ++i) {
      const Dwords even = __builtin_shufflevector(ab[i], cd[i], 0, 1, 4, 5);
      const Dwords odd = __builtin_shufflevector(ab[i], cd[i], 2, 3, 6, 7);
      std::memcpy(to + order[2 * i] * kVectorBytes + row * 4, &even, sizeof(even));
      std::memcpy(to + order[2 * i + 1] * kVectorBytes + row * 4, &odd, sizeof(odd));
    }
  }
}

// Asks for the 64 bytes of each row that lie a panel further on. Harmless where nothing is.
void AskForNextPanel(const std::byte* rows, int64_t row_bytes) {
  for (int row = 0; row < kPanelRows; ++row)
    __builtin_prefetch(rows + (row + kPanelRows) * row_bytes);
}

// k_count is a multiple of 32.
void PackCodePanel(const std::byte* codes, int64_t k_count, CpuPackedWeight::Group group,
                   std::byte* panel) {
  for (int64_t k = 0; k < k_count; k += kBlockK) {
    std::byte* block = panel + k / group.k * group.bytes + kScaleBytes;
    if (k % (2 * kVectorBytes) == 0) AskForNextPanel(codes + k / 2, k_count / 2);
    PackVectors(codes + k / 2, k_count / 2, {0, 1, 2, 3},
                block + k % group.k / kBlockK * kCodeBytes,
                [](Words words) { return InterleaveNibbles(words); });
  }
}

// k_count is a multiple of 8.
void PackBf16Panel(const std::byte* elements, int64_t k_count, std::byte* panel) {
  for (int64_t k = 0; k < k_count; k += 8, panel += 4 * kVectorBytes) {
    if (k % (kVectorBytes / 2) == 0) AskForNextPanel(elements + k * 2, k_count * 2);
    PackVectors(elements + k * 2, k_count * 2, {0, 2, 1, 3}, panel,
                [](Words words) { return PairBf16(words); });
  }
}

using Recode = std::array<uint8_t, 256>;

// A block without a legal scale holds zeros only (CheckBlockScales): its signs stay, scale 0.
constexpr Recode kNvfp4Scales = [] {
  Recode table = {};
  for (int code = 0; code < 0x7F; ++code) table[code] = Ue5m3FromE4M3(static_cast<uint8_t>(code));
  return table;
}();

constexpr Recode kMxfp4Scales = [] {
  constexpr int kLargest = 227;  // 2^100; above it CheckBlockScales lets zero blocks through
  Recode table = {};
  for (int code = 0; code < 256; ++code)
    table[code] = static_cast<uint8_t>(std::min(code, kLargest));
  return table;
}();

// The scales of one row, one per kBlock k, as recode has them. RecodeFour(four, &out): the same of
// four at once, if it can.
template <int64_t kBlock, typename RecodeFour>
void PackScales(const std::byte* scales, int64_t k_count, int64_t row, const Recode& recode,
                RecodeFour recode_four, CpuPackedWeight::Group group, std::byte* panel) {
  for (int64_t begin = 0; begin < k_count; begin += group.k, panel += group.bytes) {
    const int64_t count = CeilDiv(std::min(group.k, k_count - begin), kBlock);
    const std::byte* from = scales + begin / kBlock;
    std::byte* to = panel + row * 4;
    uint32_t four = 0, recoded;
    std::memcpy(&four, from, count);
    if (count == 4 && recode_four(four, &recoded)) {
      std::memcpy(to, &recoded, sizeof(recoded));
      continue;
    }
    for (int64_t i = 0; i < count; ++i)
      to[i] = std::byte{recode[std::to_integer<uint8_t>(from[i])]};
  }
}

// Of positive normal numbers the exponent's highest bit is all that changes.
bool RecodeFourNvfp4(uint32_t codes, uint32_t* out) {
  constexpr uint32_t kTops = 0x80808080u, kLeastNormals = 0x08080808u;
  const bool negative_or_nan = ((codes + 0x01010101u) & kTops) != 0;
  if (negative_or_nan || (((codes | kTops) - kLeastNormals) & kTops) != kTops) return false;
  *out = codes | kTops;
  return true;
}

uint8_t ZeroPoint(const QuantView& view, int64_t row, int64_t column) {
  if (view.zeros == nullptr) return view.format == WeightFormat::kInt4 ? 8 : 128;
  return view.zeros[row * CeilDiv(view.k, view.scale_block_k) + column / view.scale_block_k];
}

// What brings an accumulator back to the product of the stored values (layout.h).
float RowScale(const QuantView& view) {
  switch (view.format) {
    case WeightFormat::kNvfp4:  // codes are doubled
      return view.global_scale * 0x1p43f;
    case WeightFormat::kMxfp4:
      return 0x1p-61f;
    case WeightFormat::kBf16:
    case WeightFormat::kFp8:
    case WeightFormat::kInt4:
    case WeightFormat::kInt8:
      return 0x1p-60f;
    default:
      return 1.0f;
  }
}
static_assert(kUe5m3Shift - kActivationShift - 1 == 43 && kActivationShift == 60);

// Of E4M3 codes. One NaN makes a row's outputs NaN: their scale says so, and kernels may take the
// code for a number.
bool HasNan(std::span<const std::byte> codes) {
  return std::memchr(codes.data(), 0x7F, codes.size()) != nullptr ||
         std::memchr(codes.data(), 0xFF, codes.size()) != nullptr;
}

// The first error of several threads: the one of the lowest row, so that messages do not depend on
// timing.
class FirstError {
 public:
  void Set(int64_t row, const Error& error) {
    const std::lock_guard lock(mutex_);
    if (!error_ || row < row_) {
      row_ = row;
      error_ = error;
    }
  }
  Status Take() {
    if (error_) return tl::unexpected<Error>(std::move(*error_));
    return {};
  }

 private:
  std::mutex mutex_;
  int64_t row_ = 0;
  std::optional<Error> error_;
};

}  // namespace

Result<std::unique_ptr<CpuPackedWeight>> CpuPackedWeight::Pack(const PackParams& params,
                                                               const LinearKernels& kernels) {
  NIBBLE_TRY(CheckWeight(params));
  const QuantView& first = params.parts[0];
  std::unique_ptr<CpuPackedWeight> weight(new CpuPackedWeight());
  weight->format_ = first.format;
  weight->activations_ = EffectiveActivations(first.format, params.activations);
  weight->kernels_ = &kernels;
  weight->k_ = first.k;
  for (const QuantView& part : params.parts) {
    weight->parts_.push_back({.row_begin = weight->n_, .tensor_scale = part.global_scale});
    weight->n_ += part.n;
  }
  weight->group_ = GroupOf(first.format);
  weight->groups_ = CeilDiv(first.k, weight->group_.k);
  weight->panels_ = CeilDiv(weight->n_, kPanelRows);
  weight->SetScaleColumns(params.parts);
  if (first.column_order != nullptr) {
    weight->column_order_.assign(first.column_order, first.column_order + first.k);
  }
  if (first.input_multiplier != nullptr) {
    weight->input_multiplier_.assign(first.input_multiplier, first.input_multiplier + first.k);
  }
  const int64_t padded_rows = weight->panels_ * kPanelRows;
  const int64_t panel_bytes = weight->panels_ * weight->panel_bytes();
  const int64_t row_scale_bytes = RoundUp(padded_rows * sizeof(float), kAlignment);
  const int64_t block_scale_bytes =
      weight->is_int() ? 0 : padded_rows * weight->scale_columns_ * sizeof(float);
  NIBBLE_ASSIGN(weight->buffer_,
                Buffer::Allocate(panel_bytes + row_scale_bytes + block_scale_bytes));
  std::byte* base = weight->buffer_.data();
  weight->row_scales_ = reinterpret_cast<float*>(base + panel_bytes);
  if (block_scale_bytes > 0) {
    weight->block_scales_ = reinterpret_cast<float*>(base + panel_bytes + row_scale_bytes);
  }
  NIBBLE_TRY(weight->PackPanels(params));
  return weight;
}

void CpuPackedWeight::SetScaleColumns(std::span<const QuantView> parts) {
  if (format_ != WeightFormat::kFp8 && !is_int()) return;
  // Parts may differ in their scale columns: the finest one serves all. The last may be shorter.
  int64_t column = 0;
  for (const QuantView& part : parts) {
    if (part.scale_block_k < part.k) column = std::gcd(column, part.scale_block_k);
  }
  if (column == 0) column = padded_k();
  if (is_int()) {
    header_bytes_ = kIntHeaderBytes;
    for (const QuantView& part : parts) {
      if (part.scale_dtype == DType::kF32) header_bytes_ = kWideIntHeaderBytes;
    }
  }
  blocks_per_scale_ = column / kBlockK;
  scale_columns_ = CeilDiv(padded_k(), column);
}

Status CpuPackedWeight::PackPanels(const PackParams& params) {
  FirstError first_error;
  // By panels, as linear reads them: each thread first touches the pages that it will read.
  auto pack = [&](int64_t panel_begin, int64_t panel_end, int) {
    const int64_t row_end = std::min(panel_end * kPanelRows, n_);
    size_t part = 0;
    for (int64_t row = panel_begin * kPanelRows, rows = 0; row < row_end; row += rows) {
      while (part + 1 < parts_.size() && parts_[part + 1].row_begin <= row) ++part;
      const int64_t view_row = row - parts_[part].row_begin;
      const bool whole = row % kPanelRows == 0 && view_row + kPanelRows <= params.parts[part].n &&
                         PacksWholePanels();
      rows = whole ? kPanelRows : 1;
      if (Status status = PackRows(params.parts[part], view_row, row, rows); !status) {
        first_error.Set(row, parts_.size() == 1
                                 ? status.error()
                                 : status.error().Context(fmt::format("part {}", part)));
        return;
      }
    }
  };
  if (params.pool != nullptr) {
    params.pool->ParallelFor(panels_, 1, pack);
  } else {
    pack(0, panels_, 0);
  }
  return first_error.Take();
}

bool CpuPackedWeight::PacksWholePanels() const {
  return is_code() ? k_ % kBlockK == 0 : format_ == WeightFormat::kBf16 && k_ % 8 == 0;
}

Status CpuPackedWeight::PackRows(const QuantView& view, int64_t view_row, int64_t row,
                                 int64_t rows) {
  NIBBLE_TRY(CheckBlockScales(view, view_row, view_row + rows));
  std::byte* panel = buffer_.data() + row / kPanelRows * panel_bytes();
  std::fill_n(row_scales_ + row, rows, RowScale(view));
  if (rows < kPanelRows) {
    PackRow(view, view_row, row, panel);
  } else if (format_ == WeightFormat::kBf16) {
    PackBf16Panel(view.data + view_row * k_ * 2, k_, panel);
  } else {
    PackCodePanel(view.data + view_row * (k_ / 2), k_, group_, panel);
    for (int64_t i = 0; i < rows; ++i) PackRowScales(view, view_row + i, i, panel);
  }
  return {};
}

void CpuPackedWeight::PackRowScales(const QuantView& view, int64_t view_row, int64_t in_panel,
                                    std::byte* panel) const {
  if (format_ == WeightFormat::kNvfp4) {
    PackScales<kNvfp4Block>(view.scales + view_row * (k_ / kNvfp4Block), k_, in_panel, kNvfp4Scales,
                            RecodeFourNvfp4, group_, panel);
  } else {
    const auto never = [](uint32_t, uint32_t*) { return false; };
    PackScales<kBlockK>(view.scales + view_row * (k_ / kBlockK), k_, in_panel, kMxfp4Scales, never,
                        group_, panel);
  }
}

void CpuPackedWeight::PackRow(const QuantView& view, int64_t view_row, int64_t row,
                              std::byte* panel) {
  const int64_t panel_index = row / kPanelRows;
  const int64_t in_panel = row % kPanelRows;
  if (is_code()) {
    PackCodes(view.data + view_row * (k_ / 2), k_, in_panel, group_, panel);
    PackRowScales(view, view_row, in_panel, panel);
    return;
  }
  if (is_int()) {
    PackIntRow(view, view_row, in_panel, panel);
    return;
  }
  const std::byte* elements = view.data + view_row * k_ * ElementBytes(format_);
  if (format_ == WeightFormat::kFp8 && HasNan({elements, static_cast<size_t>(k_)})) {
    row_scales_[row] = std::numeric_limits<float>::quiet_NaN();
  }
  PackElements(elements, in_panel, panel);
  for (int64_t column = 0; column < scale_columns_; ++column) {
    const int64_t k = column * blocks_per_scale_ * kBlockK;
    if (k >= k_) break;
    block_scales_[(panel_index * scale_columns_ + column) * kPanelRows + in_panel] =
        BlockScale(view, view_row, k);
  }
}

void CpuPackedWeight::PackElements(const std::byte* elements, int64_t in_panel, std::byte* panel) {
  if (format_ == WeightFormat::kBf16 && k_ % 8 == 0) return PackBf16(elements, k_, in_panel, panel);
  const int64_t size = ElementBytes(format_);
  int64_t places[kMaxGroupK];
  for (int64_t k = 0; k < group_.k; ++k) places[k] = PlaceOfElement(format_, in_panel, k);
  for (int64_t begin = 0; begin < k_; begin += group_.k, panel += group_.bytes) {
    const int64_t count = std::min(group_.k, k_ - begin);
    for (int64_t k = 0; k < count; ++k) {
      const std::byte* from = elements + (begin + k) * size;
      std::byte* to = panel + places[k];
      // A constant size each: a copy of one register.
      if (size == 2) {
        std::memcpy(to, from, 2);
      } else if (size == 1) {
        *to = *from;
      } else {
        std::memcpy(to, from, 4);
      }
    }
  }
}

void CpuPackedWeight::PackIntRow(const QuantView& view, int64_t view_row, int64_t in_panel,
                                 std::byte* panel) {
  const bool wide = header_bytes_ == kWideIntHeaderBytes;
  for (int64_t column = 0; column < scale_columns_; ++column) {
    const int64_t k = column * blocks_per_scale_ * kBlockK;
    auto scale = std::bit_cast<uint32_t>(BlockScale(view, view_row, k));
    const uint32_t zero = ZeroPoint(view, view_row, k);
    std::byte* place = panel + HeaderOffset(column) + in_panel * 4;
    if (wide) {
      std::memcpy(place + kIntHeaderBytes, &zero, sizeof(zero));
    } else {
      scale |= zero;
    }
    std::memcpy(place, &scale, sizeof(scale));
  }
  // 32 k at a time: the last ones may be fewer.
  const bool int4 = format_ == WeightFormat::kInt4;
  const std::byte* codes = view.data + view_row * (int4 ? k_ / 2 : k_);
  for (int64_t begin = 0; begin < k_; begin += kBlockK) {
    const int64_t count = std::min<int64_t>(kBlockK, k_ - begin);
    std::byte* block = panel + BlockOffset(begin / kBlockK);
    uint32_t words[kBlockK / 4] = {};
    std::memcpy(words, codes + (int4 ? begin / 2 : begin), int4 ? count / 2 : count);
    const int word_k = int4 ? 8 : 4;  // of one dword
    for (int64_t k = 0; k < kBlockK; k += word_k) {
      const auto word =
          static_cast<uint32_t>(int4 ? InterleaveNibbles<uint64_t>(words[k / 8]) : words[k / 4]);
      const int64_t place = int4 ? PlaceOfCode(in_panel, k).byte : PlaceOfInt8(in_panel, k);
      std::memcpy(block + place, &word, sizeof(word));
    }
  }
}

void CpuPackedWeight::GatherRow(int64_t row, uint16_t* out) const {
  if (is_int()) {
    GatherInts(row, out);
    return;
  }
  if (is_code()) {
    GatherCodes(row, out);
    return;
  }
  const std::byte* row_panel = panel(row / kPanelRows);
  const int64_t in_panel = row % kPanelRows;
  for (int64_t k = 0; k < k_; ++k) {
    const std::byte* element =
        row_panel + k / group_.k * group_.bytes + PlaceOfElement(format_, in_panel, k % group_.k);
    if (format_ == WeightFormat::kFp8) {
      const int64_t column = k / kBlockK / blocks_per_scale_;
      const float scale =
          block_scales_[(row / kPanelRows * scale_columns_ + column) * kPanelRows + in_panel];
      out[k] = Bf16FromFloat(E4M3ToFloat(std::to_integer<uint8_t>(*element)) * scale);
    } else if (format_ == WeightFormat::kF32) {
      float value;
      std::memcpy(&value, element, sizeof(value));
      out[k] = Bf16FromFloat(value);
    } else {
      uint16_t bits;
      std::memcpy(&bits, element, sizeof(bits));
      out[k] = format_ == WeightFormat::kF16 ? Bf16FromFloat(F16ToFloat(bits)) : bits;
    }
  }
}

void CpuPackedWeight::GatherCodes(int64_t row, uint16_t* out) const {
  const std::byte* row_panel = panel(row / kPanelRows);
  const int64_t in_panel = row % kPanelRows;
  size_t part = parts_.size() - 1;
  while (parts_[part].row_begin > row) --part;
  const int64_t scale_block = format_ == WeightFormat::kNvfp4 ? kNvfp4Block : kBlockK;
  for (int64_t begin = 0; begin < k_; begin += scale_block) {
    const std::byte* group = row_panel + begin / group_.k * group_.bytes;
    const auto code =
        std::to_integer<uint8_t>(group[in_panel * 4 + begin % group_.k / scale_block]);
    const float scale = format_ == WeightFormat::kNvfp4
                            ? FloatFromUe5m3(code) * parts_[part].tensor_scale
                            : E8M0ToFloat(code);
    for (int64_t k = begin; k < begin + scale_block; ++k) {
      const CodePlace place = PlaceOfCode(in_panel, k % group_.k);
      const auto byte = std::to_integer<uint8_t>(group[kScaleBytes + place.byte]);
      out[k] = Bf16FromFloat(E2M1ToFloat((byte >> place.shift) & 0xFu) * scale);
    }
  }
}

void CpuPackedWeight::GatherInts(int64_t row, uint16_t* out) const {
  const std::byte* row_panel = panel(row / kPanelRows);
  const int64_t in_panel = row % kPanelRows;
  const bool wide = header_bytes_ == kWideIntHeaderBytes;
  for (int64_t k = 0; k < k_; ++k) {
    const int64_t block = k / kBlockK;
    const std::byte* header = row_panel + HeaderOffset(block / blocks_per_scale_) + in_panel * 4;
    uint32_t scale, zero;
    std::memcpy(&scale, header, sizeof(scale));
    std::memcpy(&zero, wide ? header + kIntHeaderBytes : header, sizeof(zero));
    if (!wide) scale &= kNarrowScaleMask;
    const std::byte* codes = row_panel + BlockOffset(block);
    int code;
    if (format_ == WeightFormat::kInt4) {
      const CodePlace place = PlaceOfCode(in_panel, k % kBlockK);
      code = std::to_integer<int>(codes[place.byte]) >> place.shift & 0xF;
    } else {
      code = std::to_integer<int>(codes[PlaceOfInt8(in_panel, k % kBlockK)]);
    }
    const int difference = code - static_cast<int>(zero & 0xFFu);
    out[k] = Bf16FromFloat(static_cast<float>(difference) * std::bit_cast<float>(scale));
  }
}

}  // namespace nibble::kernels::cpu

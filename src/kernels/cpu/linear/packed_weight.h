// PackedWeight of the CPU backend: panels in the layout of layout.h plus the output multiplier of
// every row, in one buffer.
//
// The layout is the same for every instruction set; which kernels read it is fixed at packing.
// Immutable after packing, so safe to read from any thread.
#pragma once

#include <vector>

#include "device/buffer.h"
#include "kernels/cpu/linear/linear_kernels.h"
#include "kernels/ops.h"

namespace nibble::kernels::cpu {

class CpuPackedWeight final : public PackedWeight {
 public:
  // The bytes of one group along K of one panel, and how many k it covers. The groups of INT4 and
  // INT8 are blocks of 32 k; a header precedes the first of every scale column (layout.h).
  struct Group {
    int64_t k = 0;
    int64_t bytes = 0;
  };

  // Rows [row_begin, next part's row_begin) share what the stored weight has once per tensor.
  struct Part {
    int64_t row_begin = 0;
    float tensor_scale = 1.0f;
  };

  // Errors: those of CheckWeight, and kResourceExhausted without memory.
  static Result<std::unique_ptr<CpuPackedWeight>> Pack(const PackParams& params,
                                                       const LinearKernels& kernels);

  WeightFormat format() const override { return format_; }
  ActivationFormat activations() const override { return activations_; }
  int64_t n() const override { return n_; }
  int64_t k() const override { return k_; }
  int64_t bytes() const override { return static_cast<int64_t>(buffer_.size()); }

  const LinearKernels& kernels() const { return *kernels_; }
  int64_t panels() const { return panels_; }
  int64_t groups() const { return groups_; }
  int64_t padded_k() const { return groups_ * group_.k; }
  int64_t panel_bytes() const {
    return groups_ * group_.bytes + (header_bytes_ > 0 ? scale_columns_ * header_bytes_ : 0);
  }
  const std::byte* panel(int64_t index) const { return buffer_.data() + index * panel_bytes(); }
  const float* row_scales() const { return row_scales_; }

  // What activations go through before they are prepared, (K) each; null: as in QuantView.
  const int32_t* column_order() const {
    return column_order_.empty() ? nullptr : column_order_.data();
  }
  const float* input_multiplier() const {
    return input_multiplier_.empty() ? nullptr : input_multiplier_.data();
  }

  // Scale columns of FP8, INT4 and INT8 hold blocks_per_scale blocks of 32 k each. FP8's scales are
  // block_scales, (panels, scale_columns, 16), null elsewhere; those of INT4 and INT8 stand in
  // headers of header_bytes.
  const float* block_scales() const { return block_scales_; }
  int64_t header_bytes() const { return header_bytes_; }
  int64_t scale_columns() const { return scale_columns_; }
  int64_t blocks_per_scale() const { return blocks_per_scale_; }

  // Row `row`: DequantizeElement of the stored weight, rounded to BF16; out holds K.
  void GatherRow(int64_t row, uint16_t* out) const;

 private:
  CpuPackedWeight() = default;
  void SetScaleColumns(std::span<const QuantView> parts);
  Status PackPanels(const PackParams& params);
  bool PacksWholePanels() const;  // else row by row
  // One row or a whole panel of one part.
  Status PackRows(const QuantView& view, int64_t view_row, int64_t row, int64_t rows);
  void PackRow(const QuantView& view, int64_t view_row, int64_t row, std::byte* panel);
  void PackRowScales(const QuantView& view, int64_t view_row, int64_t in_panel,
                     std::byte* panel) const;
  void PackElements(const std::byte* elements, int64_t in_panel, std::byte* panel);
  void PackIntRow(const QuantView& view, int64_t view_row, int64_t in_panel, std::byte* panel);
  void GatherCodes(int64_t row, uint16_t* out) const;
  void GatherInts(int64_t row, uint16_t* out) const;

  bool is_code() const {
    return format_ == WeightFormat::kNvfp4 || format_ == WeightFormat::kMxfp4;
  }
  bool is_int() const { return format_ == WeightFormat::kInt4 || format_ == WeightFormat::kInt8; }
  // Offsets within a panel of INT4 and INT8: of a scale column's header and of a block of 32 k.
  int64_t HeaderOffset(int64_t column) const {
    return column * (header_bytes_ + blocks_per_scale_ * group_.bytes);
  }
  int64_t BlockOffset(int64_t block) const {
    return (block / blocks_per_scale_ + 1) * header_bytes_ + block * group_.bytes;
  }

  WeightFormat format_ = WeightFormat::kBf16;
  ActivationFormat activations_ = ActivationFormat::kBf16;
  const LinearKernels* kernels_ = nullptr;
  int64_t n_ = 0;
  int64_t k_ = 0;
  int64_t panels_ = 0;
  int64_t groups_ = 0;
  Group group_;
  int64_t scale_columns_ = 0;
  int64_t blocks_per_scale_ = 0;
  int64_t header_bytes_ = 0;
  std::vector<int32_t> column_order_;
  std::vector<float> input_multiplier_;
  std::vector<Part> parts_;
  Buffer buffer_;  // panels, then row scales, then FP8 block scales
  float* row_scales_ = nullptr;
  float* block_scales_ = nullptr;
};

}  // namespace nibble::kernels::cpu

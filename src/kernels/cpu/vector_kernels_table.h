// Compiles every *_impl.h for the instruction set whose native_*.h came first, and fills its table.
#pragma once

#include "kernels/cpu/attention/attention_chunk.h"
#include "kernels/cpu/gated_delta_net/delta_block.h"
#include "kernels/cpu/mamba2/mamba2_block.h"
#include "kernels/cpu/simd/simd.h"
#include "kernels/cpu/vector_kernels.h"
#include "kernels/logits_hash.h"
// The kernels themselves:
#include "kernels/cpu/activation/activation_impl.h"
#include "kernels/cpu/attention/attention_impl.h"
#include "kernels/cpu/causal_conv/causal_conv_impl.h"
#include "kernels/cpu/gated_delta_net/gated_delta_net_impl.h"
#include "kernels/cpu/mamba2/mamba2_impl.h"
#include "kernels/cpu/moe/moe_impl.h"
#include "kernels/cpu/norm/norm_impl.h"
#include "kernels/cpu/rope/rope_impl.h"
#include "kernels/cpu/sample/sample_impl.h"

namespace nibble::kernels::NIBBLE_ISA {

constinit const VectorKernels kVectorKernels = {
    .add = AddRow,
    .rms_norm = RmsNorm,
    .activate = Activate,
    .sigmoid_gate = SigmoidGate,
    .accumulate = Accumulate,
    .rotate = Rotate,
    .rotate_neighbours = RotateNeighbours,
    .scale_row = ScaleRow,
    .encode_e4m3 = EncodeE4M3Row,
    .attend_chunk = AttendChunk,
    .merge_state = MergeState,
    .finish_row = FinishRow,
    .copy_queries = CopyQueries,
    .round = RoundRow,
    .conv_silu = ConvSilu,
    .unit_rows = UnitRows,
    .delta_rows = DeltaRows,
    .gated_norm = GatedNorm,
    .mamba2_rows = Mamba2Rows,
    .gate_then_norm = GateThenNorm,
    .best_logit = BestLogit,
    .softmax_weights = SoftmaxWeights,
    .softmax_sum = SoftmaxSum,
    .collect_above = CollectAbove,
    .count_above = CountAbove,
    .count_equal = CountEqual,
    .sum_hash_terms = SumHashTerms,
};

}  // namespace nibble::kernels::NIBBLE_ISA

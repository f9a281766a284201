#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda/linear/fill.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostPieces = 8;  // of a launch

struct Pieces {
  RowsToFill of[kMostPieces];
};

// Words where rows begin and end on one, else bytes.
NIBBLE_HD int ItemBytes(const RowsToFill& piece) {
  return (piece.rows.first | piece.rows.stride | piece.row_bytes) % 8 == 0 ? 8 : 1;
}

NIBBLE_HD int64_t ItemsOf(const RowsToFill& piece) {
  return piece.count * (piece.row_bytes / ItemBytes(piece));
}

// A thread per item, blockIdx.y: the piece.
__global__ void __launch_bounds__(kThreads) FillKernel(const __grid_constant__ Pieces pieces) {
  const RowsToFill& piece = pieces.of[blockIdx.y];
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= ItemsOf(piece)) return;
  const int bytes = ItemBytes(piece);
  const int64_t row_items = piece.row_bytes / bytes;
  const int64_t at =
      piece.rows.first + item / row_items * piece.rows.stride + item % row_items * bytes;
  const uint64_t word = MadeUpWord(piece.rows.bytes, at / 8);
  if (bytes == 8) {
    reinterpret_cast<uint64_t*>(piece.out)[item] = word;
  } else {
    piece.out[item] = static_cast<std::byte>(word >> (at % 8 * 8));
  }
}

}  // namespace

void FillRows(std::span<const RowsToFill> pieces, void* stream) {
  for (size_t begin = 0; begin < pieces.size(); begin += kMostPieces) {
    const size_t count = std::min<size_t>(kMostPieces, pieces.size() - begin);
    Pieces some;
    int64_t items = 0;
    for (size_t i = 0; i < count; ++i) {
      some.of[i] = pieces[begin + i];
      items = std::max(items, ItemsOf(some.of[i]));
    }
    if (items == 0) continue;
    const dim3 grid(static_cast<unsigned>((items + kThreads - 1) / kThreads),
                    static_cast<unsigned>(count));
    FillKernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(some);
  }
}

}  // namespace nibble::kernels::cuda

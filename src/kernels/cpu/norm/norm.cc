#include "kernels/cpu/norm/norm.h"

#include "kernels/cpu/parallel.h"

namespace nibble::kernels::cpu {
namespace {

// Elements per thread below which another thread costs more than it saves.
constexpr int64_t kGrainElements = 16384;

int64_t RowGrain(int64_t d) { return kGrainElements / d + 1; }

}  // namespace

void RmsNorm(const VectorKernels& kernels, const OpContext& context, const RmsNormParams& p) {
  ForEachRange(context, p.t, RowGrain(p.d), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      uint16_t* x = p.x + t * p.d;
      if (p.delta != nullptr) kernels.add(x, p.delta + t * p.d, p.d);
      kernels.rms_norm(x, p.weight, p.d, p.eps, p.style, p.out + t * p.d);
    }
  });
}

void NormRows(const VectorKernels& kernels, const OpContext& context, const InputNorm& norm,
              const uint16_t* x, int64_t x_stride, int64_t rows, int64_t d, uint16_t* out) {
  ForEachRange(context, rows, RowGrain(d), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      kernels.rms_norm(x + t * x_stride, norm.weight, d, norm.eps, norm.style, out + t * d);
  });
}

void Add(const VectorKernels& kernels, const OpContext& context, const AddParams& p) {
  ForEachRange(context, p.t * p.d, kGrainElements, [&](int64_t begin, int64_t end) {
    kernels.add(p.x + begin, p.delta + begin, end - begin);
  });
}

void Round(const VectorKernels& kernels, const OpContext& context, const RoundParams& p) {
  ForEachRange(context, p.n, kGrainElements, [&](int64_t begin, int64_t end) {
    kernels.round(p.x + begin, end - begin, p.y + begin);
  });
}

}  // namespace nibble::kernels::cpu

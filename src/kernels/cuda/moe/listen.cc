#include "kernels/cuda/moe/listen.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <vector>

#include "numerics/bf16.h"

namespace nibble::kernels::cuda::moe {
namespace {

template <typename T>
std::vector<T> FromDevice(const OpContext& context, const T* from, int64_t count) {
  std::vector<T> values(count);
  const auto stream = static_cast<cudaStream_t>(context.stream);
  cudaMemcpyAsync(values.data(), from, count * sizeof(T), cudaMemcpyDefault, stream);
  cudaStreamSynchronize(stream);
  return values;
}

}  // namespace

void TellListener(const OpContext& context, const ListenParams& p) {
  const auto first_row = FromDevice(context, p.lists.first_row, p.experts + 2);
  const int64_t rows = first_row.back();
  const auto token = FromDevice(context, p.lists.row_token, rows);
  const auto weight = FromDevice(context, p.lists.row_weight, rows);
  const auto x = FromDevice(context, p.x, p.t * p.d);
  const auto h = FromDevice(context, p.h, rows * p.h_stride);
  std::vector<uint16_t> input(p.d);
  for (int32_t e = 0; e <= p.experts; ++e) {
    const bool shared = e == p.experts;
    const int32_t id = shared ? MoeListener::kShared : e;
    for (int32_t row = first_row[e]; row < first_row[e + 1]; ++row) {
      std::copy_n(x.data() + token[row] * p.d, p.d, input.data());
      if (p.weight_on_input && !shared) {
        for (uint16_t& value : input) value = Bf16FromFloat(Bf16ToFloat(value) * weight[row]);
      }
      p.listener->OnExpertInput(id, false, input.data(), 1, p.d);
      p.listener->OnExpertInput(id, true, h.data() + row * p.h_stride, 1,
                                shared ? p.shared_f : p.f);
    }
  }
}

}  // namespace nibble::kernels::cuda::moe

#include <cstring>

#include "kernels/ref/ref.h"

namespace nibble::kernels::ref {

void GatherRows(const OpContext&, const GatherRowsParams& p) {
  for (int64_t r = 0; r < p.r; ++r) {
    std::memcpy(p.out + r * p.d, p.x + p.rows[r] * p.d, p.d * sizeof(uint16_t));
  }
}

}  // namespace nibble::kernels::ref

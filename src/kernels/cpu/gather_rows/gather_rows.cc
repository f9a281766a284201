#include "kernels/cpu/gather_rows/gather_rows.h"

#include <algorithm>

namespace nibble::kernels::cpu {

void GatherRows(const OpContext&, const GatherRowsParams& p) {
  for (int64_t r = 0; r < p.r; ++r) std::copy_n(p.x + p.rows[r] * p.d, p.d, p.out + r * p.d);
}

}  // namespace nibble::kernels::cpu

#include "quantize/report.h"

#include <fmt/format.h>

#include "base/progress.h"

namespace nibble::quantize {

double QuantizeReport::mean_relative_error() const {
  double sum = 0, weight = 0;
  for (const TensorReport& tensor : quantised) {
    const auto elements = static_cast<double>(tensor.n * tensor.k);
    sum += tensor.relative_error * elements;
    weight += elements;
  }
  return weight > 0 ? sum / weight : 0;
}

std::string QuantizeReport::ToString() const {
  std::string out =
      fmt::format("{:<48} {:>14} {:>10} {:>10}\n", "module", "shape", "rms error", "max error");
  for (const TensorReport& tensor : quantised) {
    out += fmt::format("{:<48} {:>14} {:>9.2f}% {:>9.2f}%{}{}\n", tensor.module,
                       fmt::format("{}x{}", tensor.n, tensor.k), 100 * tensor.relative_error,
                       100 * tensor.largest_error, tensor.note.empty() ? "" : "  ", tensor.note);
  }
  for (const Kept& tensor : kept)
    out += fmt::format("{:<48} kept: {}\n", tensor.module, tensor.reason);
  if (copied > 0) out += fmt::format("{} were in the target format and are copied\n", copied);
  if (widened > 0) out += fmt::format("{} became BF16\n", widened);
  if (borrowed_input_scales > 0) {
    out += fmt::format(
        "{} linears belong to experts that no token of the text chose: their input scales are the "
        "largest of the layer's other experts; a longer --text reaches more\n",
        borrowed_input_scales);
  }
  if (inexact_tensor_scales > 0) {
    out += fmt::format(
        "{} copied tensor scales are rounded in their last bit: this layout stores divisors; "
        "--layout modelopt keeps them\n",
        inexact_tensor_scales);
  }
  out += fmt::format("{} of {} quantised, mean rms error {:.2f} %, {} -> {}\n", quantised.size(),
                     quantised.size() + kept.size() + copied, 100 * mean_relative_error(),
                     FormatBytes(static_cast<double>(bytes_before)),
                     FormatBytes(static_cast<double>(bytes_after)));
  return out;
}

}  // namespace nibble::quantize

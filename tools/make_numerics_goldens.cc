// Prints tests/golden/numerics/encodings.txt: per format and chunk of inputs the hash of what the
// host side of CUDA's headers makes of it.
//
//   g++ -std=c++20 -O2 -I src -isystem /usr/local/cuda/include tools/make_numerics_goldens.cc \
//       -o /tmp/make_numerics_goldens && /tmp/make_numerics_goldens >
//       tests/golden/numerics/encodings.txt
#include <cinttypes>
#include <cstdio>

#include "testing/cuda_number_formats.h"
#include "testing/encoding_cases.h"

int main() {
  for (const nibble::NumberFormat& format : nibble::kNumberFormats) {
    const auto encode = nibble::CudaEncoder(format.name);
    for (int chunk = 0; chunk < nibble::kEncodingChunks; ++chunk) {
      std::vector<uint16_t> codes;
      for (const float input : nibble::EncodingInputs(format, chunk))
        codes.push_back(nibble::CanonicalCode(format, encode(input)));
      std::printf("%s %d %016" PRIx64 "\n", format.name.data(), chunk,
                  nibble::HashCodes<uint16_t>(codes));
    }
  }
}

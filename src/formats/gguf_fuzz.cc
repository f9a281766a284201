// GGUF files from untrusted bytes: the header, and all that an importer makes of it.
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/log.h"
#include "formats/gguf.h"

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  nibble::SetLogLevel(nibble::LogLevel::kOff);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble::formats;
  auto file = GgufFile::Parse(std::as_bytes(std::span(data, size)), "fuzz.gguf", nullptr);
  if (!file) return 0;
  const auto checkpoint = ImportGguf({*std::move(file)}, "fuzz.gguf");
  if (!checkpoint) return 0;
  for (const char* name :
       {"config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}) {
    (void)(*checkpoint)->ReadText(name);
  }
  for (const TensorEntry& entry : (*checkpoint)->tensors()) {
    if (entry.stored_bytes < 1 << 16) (void)(*checkpoint)->Read(entry);
  }
  return 0;
}

// What becomes of every tensor of a checkpoint, decided from names, shapes and stored formats
// before any weight is read.
//
// Linears are found by what is stored: matrices named "<module>.weight" and their quantised forms,
// and stacked experts ("<experts>.gate_up_proj", "<experts>.down_proj", wide or in blocks), which
// come out as "<experts>.<e>.gate_proj" and so on. Everything else keeps its name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "formats/checkpoint.h"
#include "quantize/encoder.h"
#include "quantize/policy.h"

namespace nibble::quantize {

struct Unit {
  enum class Action {
    kEncode,     // dequantised, encoded
    kCopyCodes,  // stored in the target format: codes and scales as they are
    kFromMxfp4,  // MXFP4 to NVFP4: codes as they are where the exponents allow
    kWiden,      // to BF16
    kCopyBias,   // an expert's part of a stacked bias
    kCopy,       // a tensor as it is
  };
  Action action = Action::kCopy;
  std::string name;  // module of a linear, else the tensor's name
  int64_t n = 0;
  int64_t k = 0;
  WeightFormat stored = WeightFormat::kBf16;
  std::vector<std::string> tensors;  // of the source; stacked ones appear in several units
  // Of stacked experts: where this one lies.
  std::string experts;
  int64_t expert = 0;
  std::string projection;

  bool is_linear() const { return action < Action::kCopyBias; }
};

struct Kept {
  std::string module;
  std::string reason;
  std::string stored;  // the quantised format that it is and stays in, "" if it is wide
};

struct Plan {
  std::vector<Unit> units;
  std::vector<Kept> kept;  // matrices that stay as they are, or become BF16
  formats::ExpertLayout experts;
  int64_t bytes_before = 0;
};

// kInvalidArgument where the target format would lose what the source has saved already.
Result<Plan> MakePlan(const formats::Checkpoint& source, Format format,
                      const QuantizePolicy& policy);

// The weight of a linear unit.
Result<formats::LinearData> ReadUnit(const formats::Checkpoint& source, const Plan& plan,
                                     const Unit& unit);

}  // namespace nibble::quantize

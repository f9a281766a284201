// Before the first test: every buffer of a GPU begins full of NaN, as memory does that was in use
// before.
#include "device/buffer.h"

namespace nibble {
namespace {

[[maybe_unused]] const bool dirty = (FillNewBuffers(std::byte{0xFF}), true);

}  // namespace
}  // namespace nibble

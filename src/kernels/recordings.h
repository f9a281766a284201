// Launches recorded from a table of ops (Device::Record) are valid for the recordings' number that
// they were made under: whoever changes what entries do moves on to another one (OpProbe), while no
// op runs. 0 is the table as it is.
#pragma once

#include <cstdint>

namespace nibble::kernels {

uint32_t RecordingNumber();
void SetRecordingNumber(uint32_t number);

}  // namespace nibble::kernels

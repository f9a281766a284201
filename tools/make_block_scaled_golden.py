#!/usr/bin/env python3
"""Writes tests/golden/kernels/block_scaled_mma.txt: where CuTe says that the elements of the fragments of the
block-scaled FP4 MMA (SM120_16x8x64_TN_VS) lie. Needs g++, the CUDA headers and CUTLASS, which PyPI carries:

    pip download --no-deps nvidia-cutlass==4.2.0.0
    tools/make_block_scaled_golden.py nvidia_cutlass-4.2.0.0-py3-none-any.whl

A line is "operand lane value row column"; for A the row is m and the column k, for B n and k, for C m and n. SFA and
SFB: the row (m or n) that the scales in a lane's register belong to, and the group of 16 columns of each byte.
"""
import pathlib
import subprocess
import sys
import tempfile
import zipfile

PROGRAM = r"""
#include <cstdio>
#include <cute/tensor.hpp>
#include <cute/atom/mma_traits_sm120.hpp>

using namespace cute;
using Traits = MMA_Traits<SM120::BLOCKSCALED::SM120_16x8x64_TN_VS<float_e2m1_t, float_e2m1_t, float, float_ue4m3_t, 16>>;

// Layouts map (lane, value) to row + rows * column.
template <typename L>
void Print(const char* name, L layout, int rows, int step, int per) {
  for (int lane = 0; lane < int(size<0>(layout)); ++lane)
    for (int v = 0; v < int(size<1>(layout)); v += step) {
      const int at = layout(lane, v);
      std::printf("%s %d %d %d %d\n", name, lane, v / step, at % rows, at / rows / per);
    }
}

int main() {
  Print("A", Traits::ALayout{}, 16, 1, 1);
  Print("B", Traits::BLayout{}, 8, 1, 1);
  Print("C", Traits::CLayout{}, 16, 1, 1);
  Print("SFA", Traits::SFALayout{}, 16, 16, 16);
  Print("SFB", Traits::SFBLayout{}, 8, 16, 16);
}
"""


def main():
    wheel = pathlib.Path(sys.argv[1])
    cuda = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "/usr/local/cuda/include")
    out = pathlib.Path(__file__).parent.parent / "tests/golden/kernels/block_scaled_mma.txt"
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work)
        (work / "print.cc").write_text(PROGRAM)
        include = work / "cutlass_library/source/include"
        subprocess.run(["g++", "-std=c++17", "-w", "-O0", f"-I{include}", f"-I{cuda}", f"-I{cuda}/cccl", "-o",
                        work / "print", work / "print.cc"], check=True)
        table = subprocess.run([work / "print"], check=True, capture_output=True, text=True).stdout
    out.write_text("# CuTe (CUTLASS 4.2.0), SM120_16x8x64_TN_VS: operand lane value row column\n" + table)


if __name__ == "__main__":
    main()

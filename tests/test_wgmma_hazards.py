"""The check of wgmma's registers follows groups over branches, as ptxas does not."""
import importlib.util
import pathlib

PATH = pathlib.Path(__file__).resolve().parent.parent / "tools" / "wgmma_hazards.py"
spec = importlib.util.spec_from_file_location("wgmma_hazards", PATH)
wgmma = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wgmma)

HEAD = """
\t.section\t.text._Z1kv,"ax",@progbits
.text._Z1kv:
"""
FIRST = "HGMMA.64x16x16.F32.BF16 R24, R112, gdesc[UR16], RZ, !UPT"
SECOND = "HGMMA.64x16x16.F32.BF16 R24, R116, gdesc[UR16], R24, gsb0"


def listing(*lines):
    """As nvdisasm prints it; names of labels stand alone."""
    text = HEAD
    for i, line in enumerate(lines):
        text += f"{line}:\n" if line.startswith(".L") else f"        /*{16 * i:04x}*/                   {line} ;\n"
    return text + "\t.section\t.nv.info\n"


def found(*lines):
    return wgmma.hazards(listing(*lines)).get("_Z1kv", [])


def test_registers_of_a_are_busy_until_the_wait_for_their_group():
    wait = "WARPGROUP.DEPBAR.LE gsb0, 0x0"
    move = "MOV R117, R2"
    assert found(FIRST, SECOND, wait, move, "EXIT") == []
    assert found(FIRST, SECOND, move, wait, "EXIT") == [("0020", "MOV R117, R2")]
    assert found(FIRST, SECOND, "MOV R120, R117", wait, "EXIT") == []  # it may be read


def test_a_wait_may_leave_the_newest_groups_under_way():
    newer = "HGMMA.64x16x16.F32.BF16 R24, R120, gdesc[UR16], R24, gsb0"
    wait = "WARPGROUP.DEPBAR.LE gsb0, 0x1"
    assert found(FIRST, SECOND, newer, wait, "MOV R112, R2", "EXIT") == []
    assert found(FIRST, SECOND, newer, wait, "LDS.128 R120, [R3]", "EXIT") == [("0040", "LDS.128 R120, [R3]")]


def test_a_branch_is_followed():
    lines = (FIRST, SECOND, "@P1 BRA `(.L_x_1)", "WARPGROUP.DEPBAR.LE gsb0, 0x0", "EXIT", ".L_x_1")
    assert found(*lines, "LDS.128 R116, [R3]", "EXIT") == [("0060", "LDS.128 R116, [R3]")]
    assert found(*lines, "LDS.128 R128, [R3]", "EXIT") == []


def test_a_loop_ends():
    assert found(".L_x_1", FIRST, SECOND, "WARPGROUP.DEPBAR.LE gsb0, 0x0", "IADD3 R112, R112, 0x1, RZ", "@P0 BRA `(.L_x_1)", "EXIT") == []


def test_sums_are_not_even_read():
    assert found(FIRST, SECOND, "FADD R2, R31, R3", "WARPGROUP.DEPBAR.LE gsb0, 0x0", "EXIT") == [("0020", "FADD R2, R31, R3")]
    assert found(FIRST, SECOND, "FADD R2, R32, R3", "WARPGROUP.DEPBAR.LE gsb0, 0x0", "EXIT") == []

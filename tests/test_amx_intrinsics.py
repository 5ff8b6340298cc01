"""The header with which llama.cpp is compiled."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HEADER = Path(__file__).parents[1] / "packaging" / "amx_intrinsics.h"
CONFIGURE = """
#include <immintrin.h>
#include <stdint.h>
struct config { uint8_t palette, start_row, reserved[14]; uint16_t colsb[16]; uint8_t rows[16]; };
void configure(void) {
    struct config c = {0};
    c.palette = 1;
    c.colsb[15] = 4242;
    c.rows[15] = 77;
    _tile_loadconfig(&c);
}
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AMX is x86's")
@pytest.mark.skipif(shutil.which("c++") is None, reason="llama.cpp was compiled elsewhere")
@pytest.mark.parametrize("optimization", ["-O0", "-O2", "-O3"])
def test_optimizer_keeps_the_whole_tile_configuration(tmp_path, optimization):
    source = tmp_path / "configure.cpp"
    source.write_text(CONFIGURE)
    command = [
        "c++",
        optimization,
        "-mamx-tile",
        "-include",
        str(HEADER),
        "-S",
        "-o",
        "-",
        str(source),
    ]
    assembly = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "ldtilecfg" in assembly
    assert "$4242" in assembly
    assert "$77" in assembly

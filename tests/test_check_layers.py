"""The include check refuses what it should and passes what it should."""
import pathlib
import subprocess
import sys

CHECK = pathlib.Path(__file__).resolve().parent.parent / "tools" / "check_layers.py"


def run(tmp_path, files):
    for name, text in files.items():
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = subprocess.run([sys.executable, CHECK, tmp_path], capture_output=True, text=True)
    return done.returncode, done.stdout


def test_lower_layers_are_allowed(tmp_path):
    code, out = run(tmp_path, {"engine/a.cc": '#include "models/model.h"\n#include "text/tokenizer.h"\n'})
    assert code == 0, out


def test_a_higher_layer_is_refused_with_file_and_line(tmp_path):
    code, out = run(tmp_path, {"kernels/a.h": '#include <cstdint>\n#include "models/model.h"\n'})
    assert code == 1
    assert "src/kernels/a.h:2" in out and "models" in out


def test_equal_levels_are_refused(tmp_path):
    assert run(tmp_path, {"text/a.cc": '#include "formats/checkpoint.h"\n'})[0] == 1


def test_server_never_includes_models_or_kernels(tmp_path):
    assert run(tmp_path, {"server/a.cc": '#include "kernels/ops.h"\n'})[0] == 1


def test_third_party_headers_stay_in_their_layer(tmp_path):
    assert run(tmp_path, {"engine/a.cc": "#include <boost/asio.hpp>\n"})[0] == 1
    assert run(tmp_path, {"base/b.cc": "#include <spdlog/spdlog.h>\n"})[0] == 1


def test_product_code_never_includes_test_code(tmp_path):
    assert run(tmp_path, {"engine/a.cc": '#include "testing/golden.h"\n'})[0] == 1
    assert run(tmp_path / "other", {"engine/a_test.cc": '#include "testing/golden.h"\n'})[0] == 0


def test_long_files_are_refused(tmp_path):
    assert run(tmp_path, {"base/a.cc": "\n" * 1001})[0] == 1

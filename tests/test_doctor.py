"""`jpo doctor` tells what is there, and says so when a switch asks for what is not."""

import io
import os
import subprocess
import sys

from jpo import _core, doctor


def test_report_prints_what_it_returns():
    text = io.StringIO()
    found = doctor.main(text)
    assert found["isa"] in ("generic", "avx2", "avx512", "neon")
    assert found["threads"] >= 1 and found["memory"]["total_gb"] > found["memory"]["available_gb"] > 0
    assert found["gflops"]["float32"] > 0.1
    for expected in (found["blas"], found["isa"], f"{found['threads']} of", "float32"):
        assert expected in text.getvalue()


def test_features_can_be_masked():
    code = "from jpo import _core; i = _core.system_info(); print(i['isa'], *i['features'], '|', *i['masked'], i['isa_unavailable'])"
    machine = _core.system_info()
    for setting in ("-amx", "avx2,-amx", "-avx512", "-amx,-vnni,nonsense"):
        result = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "JPO_CPU": setting},
        )
        used, left_out = result.stdout.split("|")
        assert "amx" not in used and ("nonsense" in left_out) == ("nonsense" in setting)
        if machine["isa_best"] == "avx512":
            assert used.split()[0] == ("avx2" if "avx" in setting else "avx512")
            assert ("vnni" in used) == (setting == "-amx")


def test_extras_are_found_without_import():
    code = (
        "import sys; from jpo import doctor; doctor.report(False); print({'openai', 'scipy', 'torch'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_lowered_and_unknown_instruction_sets():
    code = "from jpo import doctor; print('\\n'.join(doctor.lines(doctor.report(False))))"
    for asked, expected in (("generic", "instruction set    generic"), ("sse9", "JPO_CPU=sse9 is not available")):
        result = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "JPO_CPU": asked},
        )
        assert expected in result.stdout

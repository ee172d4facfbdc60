"""`jpo doctor` tells what is there, and says so when a switch asks for what is not."""

import io
import os
import subprocess
import sys

from jpo import doctor


def test_report_prints_what_it_returns():
    text = io.StringIO()
    found = doctor.main(text)
    assert found["isa"] in ("generic", "avx2", "avx512", "neon")
    assert found["threads"] >= 1 and found["memory"]["total_gb"] > found["memory"]["available_gb"] > 0
    assert found["gflops"]["float32"] > 0.1
    for expected in (found["blas"], found["isa"], f"{found['threads']} of", "float32"):
        assert expected in text.getvalue()


def test_extras_are_found_without_import():
    code = (
        "import sys; from jpo import doctor; doctor.report(False); print({'openai', 'scipy', 'torch'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_lowered_and_unknown_instruction_sets():
    code = "from jpo import doctor; print('\\n'.join(doctor.lines(doctor.report(False))))"
    for asked, expected in (("generic", "instruction set  generic"), ("sse9", "JPO_CPU=sse9 is not available")):
        result = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "JPO_CPU": asked},
        )
        assert expected in result.stdout

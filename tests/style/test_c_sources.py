"""The mechanical rules of csrc/: layers, allocation, shapes at pointers, compiler flags, sizes of files."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".c", ".h", ".inc"))
# layer -> the layers whose headers it may include
LAYERS = {
    "base": {"base"},
    "kernels": {"base", "kernels"},
    "ops": {"base", "kernels", "ops"},
    "objective": {"base", "kernels", "objective"},
    "model": {"base", "kernels", "ops", "model"},
    "bind": {"base", "kernels", "ops", "objective", "model", "bind"},
}
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
ARRAY = re.compile(r"(?:const\s+)?(?:float|double)\s*\*\s*(?:const\s+|restrict\s+)*(\w+)")


def layer(path):
    return path.relative_to(ROOT / "csrc").parts[0]


def code_of(text):
    """The text with each comment blanked, so that positions and lines stay."""
    return COMMENT.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), text)


def unshaped(text):
    """Array parameters of a header's prototypes without their shape. The comments of the same paragraph (no blank line
    between) must hold some shape in parentheses or point to another header, or the name has its shape elsewhere."""
    code = code_of(text)
    everywhere = " ".join(COMMENT.findall(text))
    missing = []
    for prototype in re.finditer(r"^[a-z][\w \*]*?\bjpo_\w+\s*\(([^;{}]*)\)\s*;", code, re.MULTILINE):
        start = text.rfind("\n\n", 0, prototype.start()) + 1
        end = text.find("\n", prototype.end())
        notes = " ".join(COMMENT.findall(text[start : len(text) if end < 0 else end]))
        for name in ARRAY.findall(prototype.group(1)):
            shaped = re.search(rf"\b{name}\b\s*[\[(]", everywhere)
            if not shaped and not re.search(r"\([^()]*\w[^()]*\)|\w\.h\b", notes):
                missing.append(name)
    return missing


def test_there_is_something_to_check():
    assert len(SOURCES) > 20 and {layer(path) for path in SOURCES if path.name != "README.md"} <= set(LAYERS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source(path):
    text = path.read_text(encoding="utf-8")
    code = code_of(text)
    faults = []
    if layer(path) != "bind" and re.search(r"#\s*include\s*[<\"](Python|numpy/)", code):
        faults.append("includes Python's or NumPy's headers, which only bind/ may")
    for included in re.findall(r'#\s*include\s*"([a-z_]+)/', text):
        if included in LAYERS and included not in LAYERS[layer(path)]:
            faults.append(f"includes {included}/, which does not lie below {layer(path)}/")
    if layer(path) in ("ops", "kernels") and re.search(r"\b(malloc|calloc|realloc|aligned_alloc|alloca)\s*\(", code):
        faults.append("allocates: operators and kernels get their scratch from the caller")
    if layer(path) != "bind" and re.search(r"\b(printf|fprintf|abort|exit)\s*\(", code):
        faults.append("prints or ends the process: return a jpo_status with a message")
    if "Py_BEGIN_ALLOW_THREADS" in code and path.name not in ("arguments.h", "system.c"):
        faults.append("releases the GIL by itself: JPO_COMPUTE_BEGIN also holds the number of threads")
    if path.suffix == ".h" and layer(path) not in ("bind", "kernels") and unshaped(text):
        faults.append(f"array parameters without a shape comment: {', '.join(unshaped(text))}")
    if len(text.splitlines()) > 600:
        faults.append(f"has {len(text.splitlines())} lines; a file should stay under 600")
    long = [number for number, line in enumerate(text.splitlines(), 1) if len(line) > 120]
    if long:
        faults.append(f"lines of more than 120 columns: {long}")
    if not text.startswith("/*"):
        faults.append("does not begin with a comment that says what it does")
    assert not faults, f"{path.relative_to(ROOT)}: " + "; ".join(faults)


def test_no_unsafe_or_unportable_flags():
    setup = code_of((ROOT / "setup.py").read_text(encoding="utf-8"))
    assert not re.search(r"-ffast-math|-Ofast|-march=native|-funsafe", setup)
    for path in SOURCES:
        assert not re.search(r"fast-math|Ofast", path.read_text(encoding="utf-8")), path


def test_the_shape_rule_can_fail():
    assert unshaped("void jpo_scale(float *values, int64_t n);\n") == ["values"]
    assert unshaped("void jpo_scale(float *values, /* (N) */ int64_t n);\n") == []
    assert unshaped("/* values (N, K) *= 2 */\nvoid jpo_scale(float *values, int64_t n);\n") == []

"""Builds jpo._core from csrc/ and puts its OpenBLAS beside it.

The BLAS comes from the pinned build requirement scipy-openblas32. It is copied into jpo/_libs under a name and soname
of its own, so that the installed package needs no system BLAS and never meets NumPy's or SciPy's copy.

Switches (environment):
  JPO_SYSTEM_BLAS=1                    link the system's OpenBLAS instead (Debian: libopenblas-dev); nothing is vendored
  JPO_SANITIZE=address,undefined       build with these sanitizers (run with libasan preloaded)
  JPO_COVERAGE=1                       build for gcov
  JPO_WERROR=1                         every warning is an error
  JPO_BUILD_JOBS=N                     compiler processes at once (default: one a processor)
"""

import glob
import os
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

SYSTEM_BLAS = os.environ.get("JPO_SYSTEM_BLAS", "0") not in ("", "0")
SANITIZE = os.environ.get("JPO_SANITIZE", "")
COVERAGE = os.environ.get("JPO_COVERAGE", "0") not in ("", "0")
WERROR = os.environ.get("JPO_WERROR", "0") not in ("", "0")

# Both names have 20 characters: the string table of the library keeps its size.
STOCK_NAME = "libscipy_openblas.so"
OWN_NAME = "libjpo32_openblas.so"


def stop(message):
    """Ends the build with one clear paragraph instead of a traceback."""
    raise SystemExit("\njpo cannot be built: " + message + "\n")


# ---- what the machine must have -----------------------------------------------------------------------------------


def check_toolchain(compiler):
    """A compiler that works, the C library's headers and Python.h; each missing one names its Debian package."""
    if not hasattr(compiler, "compiler_so"):
        stop("it needs a C11 compiler with GCC's options (gcc or clang); MSVC is not supported.")
    program = compiler.compiler_so[0]
    if shutil.which(program) is None:
        stop(
            f"the C compiler '{program}' was not found. On Debian or Ubuntu: apt-get install build-essential"
            " (another compiler: set CC)."
        )
    include = sysconfig.get_path("include")
    if not any(Path(folder, "Python.h").is_file() for folder in (include, sysconfig.get_path("platinclude"))):
        stop(
            f"Python.h was not found in {include}. On Debian or Ubuntu: apt-get install python3-dev"
            f" (for this interpreter: python{sys.version_info.major}.{sys.version_info.minor}-dev)."
        )
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "probe.c")
        probe.write_text("#include <math.h>\n#include <pthread.h>\n#include <stdio.h>\nint main(void) { return 0; }\n")
        command = [*compiler.compiler_so, "-std=c11", "-c", str(probe), "-o", str(Path(folder, "probe.o"))]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        stop(
            f"the C compiler '{program}' cannot compile a program of three standard headers. On Debian or Ubuntu:"
            f" apt-get install build-essential (it brings libc6-dev). The compiler said:\n{result.stderr.strip()}"
        )


# ---- the vendored BLAS --------------------------------------------------------------------------------------------


def dynamic_strings(image):
    """(offset, size) of the dynamic string table in a 64-bit little-endian ELF file, and the soname's offset in it."""
    if image[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    (headers,) = struct.unpack_from("<Q", image, 32)
    entry_size, count = struct.unpack_from("<HH", image, 54)
    segments = [struct.unpack_from("<IIQQQQ", image, headers + i * entry_size) for i in range(count)]
    tags = {}
    for kind, _flags, offset, _address, _physical, size in segments:
        if kind == 2:  # PT_DYNAMIC
            for place in range(offset, offset + size, 16):
                tag, value = struct.unpack_from("<qQ", image, place)
                tags.setdefault(tag, value)
    address, size, soname = tags[5], tags[10], tags[14]  # DT_STRTAB, DT_STRSZ, DT_SONAME
    for kind, _flags, offset, start, _physical, length in segments:
        if kind == 1 and start <= address < start + length:  # PT_LOAD
            return offset + address - start, size, soname
    raise ValueError("no segment holds the dynamic string table")


def rename_soname(image):
    """The library's bytes with OWN_NAME for STOCK_NAME as its soname."""
    table, size, soname = dynamic_strings(image)
    stock, own = STOCK_NAME.encode() + b"\0", OWN_NAME.encode() + b"\0"
    if image[table + soname : table + soname + len(stock)] != stock or soname + len(stock) > size:
        raise ValueError(f"its soname is not {STOCK_NAME}")
    return image[: table + soname] + own + image[table + soname + len(own) :]


def vendor_blas(folder):
    """Writes OpenBLAS under its own soname into `folder`, with its licence beside it."""
    import scipy_openblas32

    source = Path(scipy_openblas32.get_lib_dir(), STOCK_NAME)
    try:
        image = rename_soname(source.read_bytes())
    except (OSError, ValueError, KeyError, struct.error) as reason:
        stop(
            f"cannot take OpenBLAS from {source} ({reason}). Vendoring works on 64-bit Linux; elsewhere install"
            " OpenBLAS by the system's means (Debian: libopenblas-dev) and set JPO_SYSTEM_BLAS=1."
        )
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / OWN_NAME
    if not (target.is_file() and target.read_bytes() == image):
        temporary = folder / f"{OWN_NAME}.{os.getpid()}.tmp"
        temporary.write_bytes(image)
        temporary.chmod(0o755)
        os.replace(temporary, target)  # a process that has the old one mapped keeps it
    site = Path(scipy_openblas32.__file__).parent.parent
    licences = sorted(site.glob("scipy_openblas32-*.dist-info/**/LICENSE*"))
    for licence in licences[:1]:
        shutil.copyfile(licence, folder / "LICENSE-openblas.txt")


# ---- the extension ------------------------------------------------------------------------------------------------


def core_extension():
    """jpo._core: every C file of csrc/, portable flags (instruction sets are chosen at run time)."""
    compile_args = ["-std=c11", "-O3", "-Wall", "-Wextra", "-Werror=implicit-function-declaration"]
    compile_args += ["-fvisibility=hidden", "-D_GNU_SOURCE", "-pthread"]
    link_args = ["-pthread"]
    include_dirs = ["csrc", numpy.get_include()]
    extension = {"libraries": ["m"], "define_macros": []}
    if WERROR:
        compile_args.append("-Werror")
    if SANITIZE:
        flags = [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer", "-g", "-fno-var-tracking-assignments"]
        compile_args += [*flags, "-O1", "-fno-sanitize-recover=undefined"]
        link_args += flags
    if COVERAGE:
        # inlining after counting: a branch of an inline function is one branch, not one for each of its callers
        compile_args += ["--coverage", "-O1", "-fprofile-update=atomic", "-fno-early-inlining"]
        link_args.append("--coverage")
    if SYSTEM_BLAS:
        extension["libraries"].insert(0, "openblas")
        extension["define_macros"].append(("JPO_SYSTEM_BLAS", "1"))
    else:
        import scipy_openblas32

        include_dirs.append(scipy_openblas32.get_include_dir())
        extension["libraries"].insert(0, OWN_NAME[3:-3])
        link_args.append("-Wl,-rpath,$ORIGIN/_libs")
    headers = glob.glob("csrc/**/*.h", recursive=True) + glob.glob("csrc/**/*.inc", recursive=True)
    return Extension(
        "jpo._core",
        sorted(glob.glob("csrc/**/*.c", recursive=True)),
        include_dirs=include_dirs,
        depends=sorted(headers),
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        **extension,
    )


class BuildCore(build_ext):
    """Checks the toolchain, compiles the files side by side and vendors the BLAS."""

    def finalize_options(self):
        super().finalize_options()
        parts = [SANITIZE.replace(",", "-"), "coverage" if COVERAGE else "", "system-blas" if SYSTEM_BLAS else ""]
        self.build_temp = "-".join([self.build_temp, *filter(None, parts)])  # objects of other flags stay apart

    def run(self):
        """Builds; what is built for an installation is put beside the sources too. In the repository's root Python
        finds the folder jpo/ before the installed package, and must find its extension there."""
        super().run()
        if not self.inplace and self.extensions:
            try:
                self.copy_extensions_to_source()
            except OSError as reason:  # a tree that cannot be written: the installation is whole without it
                print(f"jpo: the extension was not put beside the sources ({reason})", file=sys.stderr)

    def build_extensions(self):
        check_toolchain(self.compiler)
        if not SYSTEM_BLAS:
            link_folder = Path(self.build_temp, "blas")
            vendor_blas(link_folder)
            self.compiler.add_library_dir(str(link_folder))
            vendor_blas(Path(self.get_ext_fullpath("jpo._core")).parent / "_libs")
        self.compile_side_by_side()
        super().build_extensions()

    def compile_side_by_side(self):
        """One compiler process per core; an object newer than its source and every header is kept."""
        compile_files = self.compiler.compile
        (extension,) = self.extensions
        newest = max(os.path.getmtime(path) for path in [*extension.depends, "setup.py"])

        def compile_one(source, output_dir, options):
            (path,) = self.compiler.object_filenames([source], output_dir=output_dir)
            if os.path.isfile(path) and os.path.getmtime(path) > max(newest, os.path.getmtime(source)):
                return path
            compile_files([source], output_dir=output_dir, **options)
            return path

        def compile_all(sources, output_dir=None, **options):
            jobs = min(len(sources), int(os.environ.get("JPO_BUILD_JOBS", "0")) or os.cpu_count() or 1)
            with ThreadPoolExecutor(jobs) as pool:
                return list(pool.map(lambda source: compile_one(source, output_dir, options), sources))

        self.compiler.compile = compile_all

    def copy_extensions_to_source(self):
        """In-place and editable builds: the BLAS goes where the extension goes."""
        super().copy_extensions_to_source()
        if not SYSTEM_BLAS:
            folder = self.get_finalized_command("build_py").get_package_dir("jpo")
            vendor_blas(Path(folder, "_libs"))


class SourceArchive(sdist):
    """The source archive holds what a build reads, and no test: setuptools would add those at the top of tests/ alone."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, [name for name in files if not name.startswith("tests" + os.sep)])


setup(ext_modules=[core_extension()], cmdclass={"build_ext": BuildCore, "sdist": SourceArchive})

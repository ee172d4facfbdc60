"""Builds jpo._core from csrc/ against OpenBLAS."""
import glob

import numpy
import scipy_openblas32
from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "jpo._core",
            sorted(glob.glob("csrc/**/*.c", recursive=True)),
            include_dirs=["csrc", numpy.get_include(), scipy_openblas32.get_include_dir()],
            depends=glob.glob("csrc/**/*.h", recursive=True) + glob.glob("csrc/**/*.inc", recursive=True),
            library_dirs=[scipy_openblas32.get_lib_dir()],
            runtime_library_dirs=[scipy_openblas32.get_lib_dir()],
            libraries=["scipy_openblas", "m"],
            extra_compile_args=["-std=c11", "-O3", "-Wall", "-Wextra", "-Werror=implicit-function-declaration", "-fvisibility=hidden", "-D_GNU_SOURCE", "-pthread"],
            extra_link_args=["-pthread"],
        )
    ]
)

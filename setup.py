"""The quantization kernels. Everything else is in pyproject.toml, where an extension could be listed
too, but setuptools calls that experimental and warns at every build.

Optional: without a C++ compiler medlite installs all the same and uses ggml's functions.
MEDLITE_KERNEL_FLAGS adds flags for compiler and linker, and makes a failure to compile an error
(`make lint-kernels`, `make sanitize`).
"""

import os
from glob import glob

from setuptools import Extension, setup

FLAGS = os.environ.get("MEDLITE_KERNEL_FLAGS", "").split()

setup(
    ext_modules=[
        Extension(
            "quantize.kernels._kernels",
            sources=sorted(glob("quantize/kernels/*.cc")),
            depends=sorted(glob("quantize/kernels/*.h")),
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-g0", *FLAGS],
            extra_link_args=FLAGS,
            optional=not FLAGS,
        )
    ]
)

"""Environment variables for compiling for absent hardware, to be set before JAX is imported."""

import os

# Without these libtpu asks a metadata server about the machine, and only one process at a time can load it.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # the compiler needs no CUDA run-time libraries
}


def prepare() -> None:
    """Keep JAX from looking for hardware, its plugins from checking for libraries, and compilers from printing warnings
    (they warn of programs that are too large, which a plan reports itself). Call before JAX is imported."""
    for name, value in (QUIET | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}).items():
        os.environ.setdefault(name, value)

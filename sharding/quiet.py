"""What compilers for absent hardware must be told by the environment, before JAX is imported."""

import os

# Without these libtpu asks a metadata server which machine this is, and only one process at a time may load it.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # the plugin asks for CUDA's run-time libraries, the compiler does not
}


def prepare() -> None:
    """Have JAX look for no hardware, its plugins for no libraries of it, and compilers keep their warnings (a program
    that is too large is what they warn of, and what a plan is there to find). Before JAX is imported."""
    for name, value in (QUIET | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}).items():
        os.environ.setdefault(name, value)

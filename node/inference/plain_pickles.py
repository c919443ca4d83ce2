"""What torch's reader of plain tensors may make besides tensors: arrays and numbers of numpy, and nothing else."""

from typing import Any


def numpy_globals() -> list[Any]:
    """Answers what arrays and numbers of numpy are pickled by, under the names of numpy 1 and 2."""
    import numpy as np  # here, and not above: only a process of a single thread can leave its namespaces
    from numpy._core import multiarray

    kinds = [getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType")]
    reconstruct, scalar = multiarray._reconstruct, multiarray.scalar  # noqa: SLF001 - the names that pickles hold
    old = [(reconstruct, "numpy.core.multiarray._reconstruct"), (scalar, "numpy.core.multiarray.scalar")]
    return [reconstruct, scalar, *old, np.ndarray, np.dtype, *kinds]

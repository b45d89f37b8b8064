"""Shared fixtures. Threads are held to two before numpy loads, so that tests run alike on small machines."""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS"):
    if not os.environ.get(_name, "").isdigit() or int(os.environ[_name]) > 2:
        os.environ[_name] = "2"

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

SHARED_DATA = Path(__file__).resolve().parents[1] / ".." / "shared/data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Give the folder of real data beside the checkout, or skip the test."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real data in a folder shared/data beside the checkout; it is not there")
    return SHARED_DATA.resolve()

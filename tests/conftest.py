"""Two test processes share the machine's cores, and so do the lessons and tools that they start."""

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # set before torch is imported
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Keep in one process what shares something expensive: the tests of a file, and in `test_lessons` of a lesson."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            parameters = getattr(getattr(item, "callspec", None), "params", {})
            lesson = parameters.get("lesson") if item.path.name == "test_lessons.py" else None
            item.add_marker(pytest.mark.xdist_group(lesson or item.path.name))

"""Two test processes share the machine's cores, and so do the lessons and tools that they start."""

import os
import re

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # set before torch is imported
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """The lessons first, then the other files that run one: what comes last should be short."""
    long = {item.path for item in items if item.get_closest_marker("notebook") or item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name != "test_lessons.py", item.path not in long))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keeps in one process what shares something expensive: the tests of a file, and in `test_lessons` of a lesson."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFileOrLesson(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            lesson = re.search(r"test_lessons\.py::.*\b(\d\d_[a-z]\w+)", nodeid)
            return lesson[1] if lesson else nodeid.partition("::")[0]

    return ByFileOrLesson(config, log)

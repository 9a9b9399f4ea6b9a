"""Options, skips and the isolation that all tests share."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests import systems
from tests.isolation import Isolation

UPSTREAM = ("KOHYA_SS_GIT", "SD_SCRIPTS_GIT", "SD_SCRIPTS_FORK_GIT")

HAS_TORCH = importlib.util.find_spec("torch") is not None

# Installer, presets and command line must work in a Python without torch, and are tested there too.
NEED_TORCH = ["ema", "optim", "demo", "lora", "tensors/test_compiled.py", "upstream/test_lora.py"]
collect_ignore = [] if HAS_TORCH else NEED_TORCH
collect_ignore_glob = [] if HAS_TORCH else ["upstream/*rig*.py"]

os.environ.setdefault("OMP_NUM_THREADS", "1")

# Time says how loaded the machine is, not whether the code is right: no deadline, and no complaint about slow inputs.
# A fixture of one test is shared by all its examples: tests that use one make a new folder or file for each.
settings.register_profile(
    "local", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

isolation = Isolation()
if systems.WINDOWS:
    collect_ignore += ["fuzz", "upstream"]  # they need `resource`, and real trees with torch
    systems.skip_what_windows_lacks()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported: some libraries read the variables then."""
    hands_out = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if not hands_out:  # the processes that it starts isolate themselves, and must not find its guard
        isolation.begin()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    isolation.rest()


def pytest_unconfigure() -> None:
    isolation.end()


@pytest.fixture(scope="session", autouse=True)
def tests_own_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests write below pytest's temporary folder only."""
    isolation.watch(tmp_path_factory)


@pytest.fixture(autouse=True)
def nothing_that_is_not_ours() -> Iterator[None]:
    """Fails the test in which anything reached outside, whether or not the code under test swallowed the refusal."""
    yield
    refused = isolation.refused()
    if refused:
        pytest.fail("a test reached for what is not its own:\n" + "\n".join(refused), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Iterator[None]:
    try:
        return (yield)
    except (AttributeError, ImportError) as error:
        reason = systems.reason_to_skip(error)
        if reason is None:
            raise
        pytest.skip(reason)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_report_header() -> str | None:
    return None if HAS_TORCH else "no torch in this Python: the tests of ema, optim and demo are skipped"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = [name for name in UPSTREAM if not os.environ.get(name)]
    for item in items:
        if systems.belongs_to_windows_suite(item.path):
            item.add_marker("windows")
        if "upstream" in item.keywords and missing:
            item.add_marker(
                pytest.mark.skip(reason=f"needs git directories of the real Kohya: set {', '.join(missing)}")
            )
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: run with --slow"))
        if "gpu" in item.keywords and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())

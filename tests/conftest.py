"""What every test shares: no network, one torch thread, a fixed seed, torch's settings put back after it."""

from __future__ import annotations

import os

# Read when huggingface_hub and tokenizers are imported, so they are set before anything imports them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("MPLBACKEND", "Agg")
# Threads that wait by spinning take the cores from other workers: many times slower with --threads above 1.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A CUDA matrix product is repeatable only with this, and only if it is set before the first one.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--disturb", type=int, metavar="N", help="sum in other orders, see tests/disturbed.py")
    parser.addoption(
        "--threads", type=int, metavar="N", help="torch threads of every test, in the place of 1"
    )


def pytest_configure(config: pytest.Config) -> None:
    if (number := config.getoption("--disturb")) is not None:
        from tests.disturbed import disturb

        disturb(number)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first, so that no worker is left alone with one of them in the end."""
    items.sort(key=lambda item: sum(item.get_closest_marker(mark) is None for mark in ("real", "slow")))


@pytest.fixture(autouse=True)
def torch_settings() -> Iterator[None]:
    """Put back the default dtype, grad mode and determinism flags that a test changed."""
    dtype = torch.get_default_dtype()
    grad = torch.is_grad_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, cudnn_deterministic = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    yield
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, cudnn_deterministic


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """So many threads in this process, and in those that it starts meanwhile."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.setenv(variable, str(threads))
        # As set_num_threads has it: no fewer where there are fewer cores.
        patch.setenv("MKL_DYNAMIC", "FALSE")
        torch.set_num_threads(threads)
        yield
        torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def usual_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread for tiny models, which more threads slow down, or as many as were asked for."""
    with computing_with(request.config.getoption("--threads") or 1):
        yield


@pytest.fixture(autouse=True)
def torch_threads(request: pytest.FixtureRequest, usual_threads: None) -> Iterator[None]:
    """One thread, unless a number was asked for: more slow tiny models down, and the other cores run other tests."""
    with computing_with(request.config.getoption("--threads") or 1):
        yield


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed Python, numpy and torch, so that no test depends on those before it. Returns the seed."""
    value = 0
    random.seed(value)
    numpy.random.seed(value)  # noqa: NPY002  the global state is what libraries that take no generator read
    torch.manual_seed(value)
    return value

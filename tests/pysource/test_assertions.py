from __future__ import annotations

from typing import Any

import pytest

from kohya_ext.pysource.assertions import refusals
from kohya_ext.pysource.sources import TextSources
from kohya_ext.pysource.values import Unknown

TRAIN_UTIL = """
def verify_training_args(args):
    if args.v2 and args.clip_skip is not None:
        logger.warning("unexpected")
    if args.disk and not args.cache:
        args.cache = True
    if args.zero_snr and not args.v_parameterization:
        raise ValueError("zero_snr needs v_parameterization / only then")
    try:
        assert not args.caught, "caught"
    except AssertionError:
        pass

def prepare(args):
    if args.resolution is not None:
        args.resolution = tuple([int(r) for r in args.resolution.split(",")])
"""
NETWORK = """
import library.train_util as train_util

class NetworkTrainer:
    def assert_extra_args(self, args, data):
        raise NotImplementedError("a base")

    def is_trained(self, args):
        return not args.unet_only

    def post(self, args):
        assert not args.posted, f"posted {args.posted}"

    def train(self, args):
        train_util.verify_training_args(args)
        train_util.prepare(args)
        if len(args.data_group) == 0:
            return
        if unknowable():
            assert not args.doubtful, "doubtful"
        self.assert_extra_args(args, None)
        if args.debug:
            return
        self.post(args)
        assert not args.late or not self.is_trained(args), "late"
"""
FAMILY = """
import train_network
from library import train_util

class SdxlNetworkTrainer(train_network.NetworkTrainer):
    def assert_extra_args(self, args, data):
        assert (
            args.unet_only or not args.cache
        ), "cannot be trained with caching / japanese"
        assert data.is_cacheable(), "depends on data"
"""
PLAIN = """
from library.train_util import verify_training_args

def train(args):
    verify_training_args(args)
    assert args.rate > 0, "no rate"
"""
SOURCES = TextSources(
    {
        "library/train_util.py": TRAIN_UTIL,
        "train_network.py": NETWORK,
        "sdxl_train_network.py": FAMILY,
        "plain.py": PLAIN,
    }
)
QUIET = dict.fromkeys(
    (
        "v2",
        "disk",
        "cache",
        "zero_snr",
        "v_parameterization",
        "caught",
        "doubtful",
        "unet_only",
        "debug",
        "posted",
        "late",
    ),
    False,
) | {"resolution": "512", "clip_skip": None, "data_group": Unknown("data"), "rate": 1}


def found(script: str, **changes: Any) -> list[str]:
    return [one.message for one in refusals(SOURCES, script, QUIET | changes)]


@pytest.mark.parametrize("script", ["plain.py", "train_network.py", "sdxl_train_network.py", "missing.py"])
def test_arguments_that_nothing_refuses(script: str) -> None:
    assert found(script) == []


@pytest.mark.parametrize(
    ("script", "changes", "expected"),
    [
        ("plain.py", {"rate": 0}, ["no rate"]),
        ("plain.py", {"rate": Unknown("file")}, []),
        ("plain.py", {"zero_snr": True}, ["zero_snr needs v_parameterization"]),
        ("plain.py", {"zero_snr": True, "v_parameterization": True}, []),
        ("plain.py", {"caught": True}, []),
        ("sdxl_train_network.py", {"cache": True}, ["cannot be trained with caching"]),
        ("sdxl_train_network.py", {"disk": True}, ["cannot be trained with caching"]),
        ("sdxl_train_network.py", {"cache": True, "unet_only": True}, []),
        ("sdxl_train_network.py", {"posted": 3}, ["posted 3"]),
        ("sdxl_train_network.py", {"posted": 3, "debug": True}, []),
        ("sdxl_train_network.py", {"doubtful": True}, []),
        ("sdxl_train_network.py", {"late": True}, ["late"]),
        ("sdxl_train_network.py", {"late": True, "unet_only": True}, []),
    ],
)
def test_a_check_counts_where_arguments_alone_decide(script: str, changes: dict[str, Any], expected: list[str]) -> None:
    assert found(script, **changes) == expected


def test_a_refusal_names_the_arguments_and_the_file() -> None:
    (one,) = refusals(SOURCES, "sdxl_train_network.py", QUIET | {"cache": True})
    assert (one.arguments, one.file) == (("unet_only", "cache"), "sdxl_train_network.py")


@pytest.mark.parametrize(
    "text",
    [
        "def train(args):\n    train(args)\n",
        "def train(args):\n    while True:\n        assert args.rate, 'x'\n",
        "def train(:",
    ],
)
def test_circles_endless_loops_and_broken_source_end(text: str) -> None:
    assert refusals(TextSources({"a.py": text}), "a.py", {"rate": 0}) == []

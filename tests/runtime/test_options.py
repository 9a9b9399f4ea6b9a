"""Our flags come last and give way to a fork's own; settings come as strings or unconverted from Kohya's TOML files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import fields

import pytest

from kohya_ext.runtime import options
from kohya_ext.runtime.options import add_optimizer_arguments
from kohya_ext.runtime.run import run
from kohya_ext.spec.flags import BY_KEY, EMA


def parse(*words: str, **from_toml: object) -> argparse.Namespace:
    """What Kohya's scripts do: TOML values into the namespace first, then the command line over it."""
    parser = argparse.ArgumentParser()
    add_optimizer_arguments(lambda parser: parser.add_argument("--optimizer_type", default=""), parser)
    return parser.parse_args(list(words), namespace=argparse.Namespace(**from_toml))


def read(*words: str, **from_toml: object) -> options.EmaOptions:
    settings = options.read(parse(*words, **from_toml))
    assert settings is not None
    return settings


def test_off_without_the_flag() -> None:
    assert options.read(parse()) is None


def test_off_for_tools_that_have_no_such_arguments() -> None:
    """`tools/cache_latents.py` calls prepare_accelerator with a parser of its own."""
    assert options.read(argparse.Namespace()) is None


def test_says_that_settings_without_the_flag_do_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert options.read(parse("--ema_decay=0.99")) is None
    assert "no EMA" in capsys.readouterr().out


def test_defaults() -> None:
    settings = read("--enable_ema")
    assert settings == options.EmaOptions(
        0.9995, "debiased", 1, 0, "auto", "float32", "beside", "raw", None, 15.0, None, "float32", None
    )


def test_every_ema_flag_reaches_the_run() -> None:
    """A new row of the table needs a field here, or the run would ignore the flag."""
    of_others = {"enable_ema", "ema_save_only_ema_weights"}  # whether there is an EMA at all; another word for `save`
    held = {f"ema_{field.name}" for field in fields(options.EmaOptions)} | of_others
    assert {key for key, flag in BY_KEY.items() if flag.feature == EMA} == held


def test_toml_values_are_converted() -> None:
    settings = read(enable_ema="true", ema_decay="0.999", ema_update_every="4", ema_start_step=2.0)
    assert (settings.decay, settings.update_every, settings.start_step) == (0.999, 4, 2)


@pytest.mark.parametrize(
    ("words", "schedule"),
    [
        ([], "debiased"),
        (["--ema_schedule=constant"], "constant"),
        (["--ema_exp_beta=15"], "exp"),
        (["--ema_exp_beta=0"], "warmup"),
        (["--ema_schedule=power", "--ema_sigma_rel=0.1"], "power"),
    ],
)
def test_schedules_and_their_old_spelling(words: list[str], schedule: str) -> None:
    assert read("--enable_ema", *words).schedule == schedule


def test_old_flag_for_saving_only_the_average() -> None:
    assert read("--enable_ema", "--ema_save_only_ema_weights").save == "only"


@pytest.mark.parametrize(
    ("from_toml", "named"),
    [
        ({"ema_decay": "1"}, "--ema_decay"),
        ({"ema_decay": "high"}, "--ema_decay"),
        ({"ema_decay": float("nan")}, "--ema_decay"),
        ({"ema_update_every": 0}, "--ema_update_every"),
        ({"ema_update_every": 1.5}, "--ema_update_every"),
        ({"ema_start_step": -1}, "--ema_start_step"),
        ({"ema_dtype": "float16"}, "--ema_dtype"),
        ({"ema_schedule": "linear"}, "--ema_schedule"),
        ({"ema_schedule": "constant", "ema_exp_beta": 15}, "--ema_exp_beta"),
        ({"ema_schedule": "power"}, "--ema_sigma_rel"),
        ({"ema_sigma_rel": 0.1}, "--ema_sigma_rel"),
        ({"deepspeed": True, "fused_backward_pass": True}, "DeepSpeed"),
        ({"deepspeed": True, "offload_optimizer_device": "nvme"}, "on a disk"),
        ({"deepspeed": True, "offload_param_device": "nvme"}, "on a disk"),
        ({"optimizer_type": "AdamWScheduleFree"}, "schedule-free"),
    ],
)
def test_what_cannot_be_honoured_ends_the_run(
    from_toml: dict[str, object], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        options.read(parse(enable_ema=True, **from_toml))
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer_type": "adacoor", "deepspeed": True, "optimizer_args": ["eps=1e-8", "auto_lr=True"]},
        {"optimizer_type": "adacoor", "fused_backward_pass": True, "deepspeed": True},
        {"optimizer_type": "AdaCoor", "fused_backward_pass": True, "gradient_accumulation_steps": "2"},
        {"optimizer_type": "kohya_ext.optim.AdaCoor", "fused_backward_pass": True, "mixed_precision": "fp16"},
        {"optimizer_type": "AdaCoor", "fused_optimizer_groups": 10, "mixed_precision": "fp16"},
        {"optimizer_type": "AdaCoor", "fused_optimizer_groups": 10, "gradient_accumulation_steps": 4},
        {"optimizer_type": "AdaCoor", "blockwise_fused_optimizers": True, "mixed_precision": "fp16"},
    ],
)
def test_what_cannot_be_done_is_refused_before_the_models_are_loaded(
    settings: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        options.check(argparse.Namespace(**settings))
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert all(
        flag.startswith("optimizer") or f"--{flag}" in said or flag == "deepspeed" for flag in list(settings)[:2]
    )


def test_measurements_of_what_deepspeed_divides_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert options.log_every(argparse.Namespace(deepspeed=True)) == 0
    assert options.log_every(argparse.Namespace(deepspeed=False, kohya_ext_log_every=5)) == 5
    with pytest.raises(SystemExit):
        options.log_every(argparse.Namespace(deepspeed=True, kohya_ext_log_every=5))
    assert "--kohya_ext_log_every" in capsys.readouterr().err


def test_what_can_be_done_is_let_through() -> None:
    options.check(argparse.Namespace(optimizer_type="AdaCoor", fused_backward_pass=True, mixed_precision="bf16"))
    options.check(argparse.Namespace(optimizer_type="AdaCoor", fused_optimizer_groups=None, mixed_precision="fp16"))
    options.check(argparse.Namespace(optimizer_type="AdamW", deepspeed=True))
    for words in (["auto_lr=False"], ["auto_lr=True", "auto_lr=False"]):  # sd-scripts takes the last
        options.check(argparse.Namespace(optimizer_type="AdaCoor", deepspeed=True, optimizer_args=words))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(run, "yielded", {})
    yield


def parser_of(add: Callable[[argparse.ArgumentParser], None] = lambda parser: None) -> argparse.ArgumentParser:
    """A script's parser: Kohya's optimizer flags with ours, then what `add` adds."""

    def add_optimizer_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--optimizer_type", default="")
        parser.add_argument("--enable_bucket", action="store_true")

    parser = argparse.ArgumentParser()
    options.add_optimizer_arguments(add_optimizer_arguments, parser)
    add(parser)
    return parser


def test_ours_are_there() -> None:
    args = parser_of().parse_args(["--enable_ema", "--ema_decay", "0.9"])
    assert (args.enable_ema, args.ema_decay, args.optimizer_type) == (True, 0.9, "")
    assert options.read(args) is not None


def test_they_are_in_the_help() -> None:
    parser = parser_of()
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "--enable_ema" in parser.format_help()


def test_reading_twice_adds_them_once() -> None:
    """sd-scripts reads its command line again after a TOML."""
    parser = parser_of()
    first = parser.parse_args(["--enable_ema"])
    assert parser.parse_args(["--ema_decay", "0.5"], namespace=first).enable_ema is True
    options.add_optimizer_arguments(lambda parser: None, parser)
    assert parser.parse_args([]).enable_ema is False


def fork(parser: argparse.ArgumentParser) -> None:
    """As the branch `ema_anima_main` of a public fork: flags of our names, added after Kohya's optimizer flags."""
    parser.add_argument("--use_ema", action="store_true")
    parser.add_argument("--ema_decay", type=float, default=0.999)
    parser.add_argument("--ema_device", type=str, default=None)
    parser.add_argument("--ema_sample", action="store_true")


def test_a_forks_own_flags_win(capsys: pytest.CaptureFixture[str]) -> None:
    args = parser_of(fork).parse_args(["--use_ema", "--ema_decay", "0.9", "--ema_sample"])
    assert (args.ema_decay, args.ema_sample, args.ema_device) == (0.9, True, None)
    assert parser_of(fork).parse_args([]).ema_decay == 0.999
    assert options.read(args) is None
    assert capsys.readouterr().out.count("--ema_decay of its own: EMA of kohya_ext is not available") == 1


def test_in_a_fork_ours_are_unknown_as_a_whole() -> None:
    """Half of an EMA read from somebody else's flags would be a wrong one."""
    with pytest.raises(SystemExit):
        parser_of(fork).parse_args(["--enable_ema"])
    args = parser_of(fork).parse_args(["--kohya_ext_log_every", "5"])
    assert options.log_every(args) == 5


def test_in_a_fork_a_toml_that_asks_for_ours_ends_the_run() -> None:
    args = parser_of(fork).parse_args([], namespace=argparse.Namespace(enable_ema=True))
    with pytest.raises(SystemExit):
        options.read(args)


def test_short_forms_of_kohyas_flags_stay_short_forms() -> None:
    """--enable is short for --enable_bucket in an unpatched Kohya, and stays so."""
    assert parser_of().parse_args(["--enable"]).enable_bucket is True
    assert parser_of().parse_args(["--enable_e"]).enable_ema is True

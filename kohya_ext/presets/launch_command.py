"""What the installed GUI would run for given settings: its `train_model` followed step by step, nothing executed.

Every release builds its command in its own way: a shell string up to v23.1, a list plus a TOML file from v24. Following
the release's own code as text gives its command, where a table of ours would give what we think it is.
"""

from __future__ import annotations

import ast
import math
import posixpath
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kohya_ext.core.errors import UnsupportedError
from kohya_ext.presets.keys import PATHS, PERSONAL, RENAMED, SECRETS
from kohya_ext.presets.release import Release
from kohya_ext.presets.schema import BUILDERS, LOADER, NOT_KEYS, PRESETS_LIST, Field, Tab
from kohya_ext.pysource.interpreter import Interpreter
from kohya_ext.pysource.sources import Sources
from kohya_ext.pysource.values import (
    External,
    Function,
    LoopEnded,
    NextRound,
    Returned,
    Scope,
    Signal,
    StandIn,
    Undecidable,
    Unknown,
    Value,
    World,
    known,
)

TRAIN = "train_model"
MOST_PLACES = 400  # to round to: of a float that is all, of a whole number more would not end
SWITCHES = ("headless", "print_only")  # the GUI's own parameters of the function, before the settings

# Functions of the GUI that look at the machine or write files; what they answer when all is well.
CHECKS_PASS = (
    "check_duplicate_filenames",
    "validate_file_path",
    "validate_folder_path",
    "validate_model_path",
    "validate_paths",
    "validate_toml_file",
    "verify_image_folder_pattern",
)
SILENT = ("SaveConfigFile", "save_inference_file", "print_command_and_toml", "setup_environment")

# Where a tab takes the images from: a folder of images, or one of folders called REPEATS_NAME.
DATA_KEYS: dict[Tab, str] = {
    "finetune": "image_folder",
    "lora": "train_data_dir",
    "dreambooth": "train_data_dir",
    "ti": "train_data_dir",
}


@dataclass(frozen=True)
class Surroundings:
    """Where the GUI would run: its folder, its Python, its accelerate, and the moment that goes into file names."""

    root: str
    python: str
    accelerate: str
    stamp: str


# A project that stands for any: checks ask what the GUI makes of a value, instead of guessing.
ANYWHERE = Surroundings("/kohya", "/env/bin/python", "/env/bin/accelerate", "20260101-000000")
DATA = "/data"
IMAGES = {"finetune": {DATA: ["a.png"]}}
IN_CONCEPTS = {DATA: ["10_a"], f"{DATA}/10_a": ["a.png"]}
WEIGHTS = ("lora_network_weights", "network_weights", "resume")  # paths that only become a flag
GIVEN = "/given.safetensors"
WORDS_OF_A_PROJECT = {"token_string": "token", "init_word": "cat"}  # of a textual inversion
KEPT = ("caption_metadata_filename", "latent_metadata_filename")


@dataclass
class LaunchCommands:
    """preparation: commands that run first. training: the last one. Each is a shell line or a list of words.

    toml: name of the TOML file that the training command reads -> its settings. prompts: name of the file of sample
    prompts -> its text; the GUI writes it even where it is empty.
    """

    preparation: list[str | list[str]] = field(default_factory=list)
    training: str | list[str] | None = None
    toml: dict[str, dict[str, Any]] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)


class GuiRefusesError(UnsupportedError):
    """The GUI would not start a training with these settings. complaints: what it says."""

    def __init__(self, complaints: Sequence[str]) -> None:
        super().__init__(f"the GUI would not start this training: {'; '.join(complaints) or 'it says nothing'}")
        self.complaints = tuple(complaints)


class _TrainingReached(Signal):
    """The training command has been handed over; what follows does not matter."""


def launch_commands(
    sources: Sources, tab: Tab, settings: Mapping[str, Any], images: Mapping[str, list[str]], where: Surroundings
) -> LaunchCommands:
    """What the GUI would run if its form held `settings` and "Start training" were clicked.

    images: folder -> names of the files in it. Raises UnsupportedError when the release's code cannot be followed,
    GuiRefusesError when it would refuse the settings.
    """
    result = LaunchCommands()
    interpreter = Interpreter(sources, _world(result, images, where))
    path = interpreter.find(BUILDERS[tab][0], f"def {LOADER}")
    try:
        module = interpreter.module(path) if path is not None else None
        function = module.names.get(TRAIN) if module is not None else None
        if not isinstance(function, Function) or not isinstance(function.node, ast.FunctionDef):
            raise UnsupportedError(f"this GUI has no {TRAIN} in its {tab} tab that could be followed")
        scope = Scope(function.scope.module)
        loader = module.names.get(LOADER) if module is not None else None
        keys = _keys(loader) if isinstance(loader, Function) else []
        scope.names.update(_parameters(function.node, settings, keys))
        interpreter.run_block(function.node.body, scope)
    except _TrainingReached:
        return result
    except (Returned, NextRound, LoopEnded):
        pass
    except Undecidable as place:
        raise UnsupportedError(f"{place}: depends on something that only the running GUI knows") from place
    except UnsupportedError:
        raise
    except Exception as error:  # whatever is in the source
        raise UnsupportedError(f"{path} is unlike any release's; its command cannot be determined") from error
    raise GuiRefusesError(result.complaints)


def commands_of_form(form: Mapping[str, Any], release: Release) -> LaunchCommands | None:
    """What the GUI would run for a form, None where its code cannot be followed. Raises GuiRefusesError."""
    if release.gui is None:
        return None
    tab = release.schema.tab
    fields, gradio = release.schema.fields, release.gradio
    blank = {key for key, value in form.items() if value is None or (isinstance(value, str) and _left_open(key))}
    settings = {key: "" if key in blank else as_sent(form[key], fields.get(key), gradio) for key in form}
    settings |= {DATA_KEYS[tab]: DATA, "pretrained_model_name_or_path": "/model.safetensors", "output_dir": "/output"}
    settings |= {"output_name": "last", **({"train_dir": "/output"} if tab == "finetune" else {})}
    settings |= {key: GIVEN for key in WEIGHTS if form.get(key)}
    settings |= WORDS_OF_A_PROJECT if tab == "ti" else {}
    try:
        return launch_commands(release.gui, tab, settings, IMAGES.get(tab, IN_CONCEPTS), ANYWHERE)
    except GuiRefusesError:
        raise
    except UnsupportedError:
        return None


def _left_open(key: str) -> bool:
    return key in SECRETS or key in PATHS or (key in PERSONAL and key not in KEPT)


def as_sent(value: Any, one: Field | None, gradio: int | None) -> Any:
    """A value as the browser sends it back: whole numbers without a point, in number fields of gradio 3 with.

    It shows where a release writes numbers into a line of text. A text box has text, whatever was put into it.
    """
    if one is None or not isinstance(value, (int, float)):
        number = one is not None and one.component == "Number" and gradio == 3 and isinstance(value, str)
        return float(value) if number and one is not None and _is_float(value) else value
    if one.component == "Textbox":
        return str(value)
    if isinstance(value, bool):
        return value
    if one.component == "Number" and one.precision is None and gradio == 3:
        return float(value)
    whole = one.component in ("Number", "Slider") and float(value).is_integer() and abs(value) < 2**53
    return int(value) if whole else value


def _is_float(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _keys(loader: Function) -> list[str]:
    """The keys of the form in the order in which the GUI hands their values over."""
    names = [parameter.arg for parameter in loader.node.args.args]
    return [name for name in names if name not in (*NOT_KEYS, PRESETS_LIST)]


def _parameters(node: ast.FunctionDef, settings: Mapping[str, Any], keys: list[str]) -> dict[str, Value]:
    """The arguments of the call. Up to v22 the GUI's switches come as what a label holds.

    A parameter that is called otherwise than its key gets the value at its place: that is how the GUI passes them.
    """
    as_labels = "print_only.get" in ast.unparse(node)
    names = [parameter.arg for parameter in node.args.args]
    places = [name for name in names if name not in SWITCHES]
    by_place = dict(zip(places, keys, strict=True)) if len(places) == len(keys) else {}
    values: dict[str, Value] = {}
    for name in names:
        if name in SWITCHES:
            on = name == "headless"
            values[name] = {"label": str(on)} if as_labels else on
        else:
            key = next((one for one in (name, RENAMED.get(name), by_place.get(name)) if one in settings), None)
            values[name] = None if key is None else settings[key]
    return values


def _world(result: LaunchCommands, images: Mapping[str, list[str]], where: Surroundings) -> World:
    def run(positional: list[Value], named: dict[str, Value]) -> Value:
        """Both kinds of commands take any of the ways to run one, depending on the release."""
        command = _command(positional[0] if positional else named.get("run_cmd", named.get("args")))
        if "launch" not in (command.split() if isinstance(command, str) else command):
            result.preparation.append(command)
            return None
        result.training = command
        raise _TrainingReached

    def dump(positional: list[Value], _: dict[str, Value]) -> Value:
        content, name = positional
        if not isinstance(content, dict) or not known(content):
            raise Undecidable("the TOML file")
        result.toml[str(name)] = dict(content)
        return None

    def complain(positional: list[Value], named: dict[str, Value]) -> Value:
        told = [*positional[:1], *([named["msg"]] if "msg" in named else [])]
        result.complaints += [str(value) for value in told if known(value)]
        return None

    def validate_words(positional: list[Value], _: dict[str, Value]) -> Value:
        """From v24 on: key=value pairs with one space between them, nothing else."""
        text = str(positional[0])
        valid = not text or all("=" in word[1:-1] and word.split() == [word] for word in text.split(" "))
        if not valid:
            result.complaints.append(f"{text!r} is not key=value pairs with single spaces between them")
        return valid

    calls: dict[str, StandIn] = {
        "validate_args_setting": validate_words,
        "os.system": run,
        "subprocess.run": run,
        "executor.execute_command": run,
        "setup_logging": lambda *_: External("log"),
        "executor.is_running": lambda *_: False,
        "toml.dump": dump,
        "log.error": complain,
        "output_message": complain,
        "os.listdir": lambda given, _: list(images[given[0]]),
        "os.path.isdir": lambda given, _: posixpath.dirname(given[0]) not in images or given[0] in images,
        "check_if_model_exist": lambda *_: False,
        "get_executable_path": lambda *_: where.accelerate,
        "builtins.open": lambda given, _: given[0],
        "datetime.datetime.now": lambda *_: External("now"),
        "now.strftime": lambda *_: where.stamp,
        "os.environ.copy": lambda *_: {},
        **dict.fromkeys(CHECKS_PASS, lambda *_: True),
        **dict.fromkeys((*SILENT, *(f"log.{level}" for level in ("info", "debug", "warning"))), lambda *_: None),
        **_PURE,
    }
    names = {
        "log": External("log"),
        "executor": External("executor"),
        "scriptdir": where.root,
    }
    return World(names, {"os.name": "posix", "os.pathsep": ":", "sys.executable": where.python}, calls, complete=True)


_PURE: dict[str, StandIn] = {
    "os.path.join": lambda given, _: posixpath.join(*given),
    "os.path.exists": lambda *_: True,
    "os.path.isfile": lambda *_: True,
    "os.access": lambda *_: True,
    "os.path.abspath": lambda given, _: posixpath.normpath(given[0]),
    "os.path.normpath": lambda given, _: posixpath.normpath(given[0]),
    "os.path.dirname": lambda given, _: posixpath.dirname(given[0]),
    "math.ceil": lambda given, _: math.ceil(given[0]),
    "shlex.quote": lambda given, _: shlex.quote(given[0]),
    "builtins.any": lambda given, _: any(given[0]),
    "builtins.all": lambda given, _: all(given[0]),
    "builtins.sum": lambda given, _: sum(given[0]),
    "builtins.max": lambda given, _: max(*given),
    "builtins.min": lambda given, _: min(*given),
    "builtins.round": lambda given, _: _rounded(*given),
    "builtins.sorted": lambda given, _: sorted(given[0]),
    "builtins.dict": lambda given, _: dict(given[0]) if given else {},
}


def _rounded(number: Any, places: Any = None) -> Value:
    return Unknown("round()") if places is not None and abs(places) > MOST_PLACES else round(number, places)


def _command(value: Value) -> str | list[str]:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and known(value):
        return [str(word) for word in value]
    reason = value.reason if isinstance(value, Unknown) else "a part of it"
    raise Undecidable(f"the command ({reason})")

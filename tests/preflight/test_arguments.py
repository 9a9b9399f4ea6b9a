"""Arguments on a command line and in a file of settings."""

from __future__ import annotations

from kohya_ext.preflight.arguments import ScriptCommand, script_command


def test_the_script_of_a_launch_command() -> None:
    words = ["accelerate", "launch", "--num_processes=1", "/x/sdxl_train.py", "--a=1"]
    found = script_command(words, {"/t.toml": {"b": 2, "table": {"c": 3}}})
    assert found == ScriptCommand("/x/sdxl_train.py", ["--a=1"], {"b": 2, "c": 3})
    assert script_command(["accelerate", "launch"], {}) is None


def test_asking() -> None:
    command = ScriptCommand("s.py", ["--a=1", "--flag", "--b", "two", "--a", "3"], {"b": "file", "c": 4})
    assert [command.value(name) for name in ("a", "b", "c", "flag", "none")] == ["3", "two", 4, True, None]
    assert command.given() == {"a": "3", "b": "two", "c": 4, "flag": True}


def test_changing() -> None:
    command = ScriptCommand("s.py", ["--a=1", "--b", "two"], {"b": "file", "c": "x"})
    for name in ("a", "b", "c", "d"):
        command.change(name, "new")
    assert command.words == ["--a=new", "--b", "new"]
    assert command.settings == {"b": "new", "c": "new"}


def test_dropping() -> None:
    command = ScriptCommand("s.py", ["--a=1", "--flag", "--b", "two", "--a", "3"], {"b": "file"})
    for name in ("a", "flag", "b", "none"):
        command.drop(name)
    assert (command.words, command.settings) == ([], {})


def test_dropping_several_values() -> None:
    command = ScriptCommand("s.py", ["--args", "a=1", "b=2", "--last", "--args=c"], {})
    command.drop("args")
    assert command.words == ["--last"]


def test_giving() -> None:
    command = ScriptCommand("s.py", ["--args", "a=1", "b=2", "--rate=3", "--flag"], {"rate": 2})
    command.give("args", ["c=1", "d=2"])
    command.give("rate", 4)
    command.give("flag", True)
    assert command.words == ["--args", "c=1", "d=2", "--rate=4", "--flag"]
    assert command.settings == {}

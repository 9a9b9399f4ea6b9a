"""The states of a run with DeepSpeed: all ranks save their parts of it, which Kohya asks of the first one alone.

By itself such a save waits for the others forever, and they wait for the first one in their next step. But all ranks
pass through `wait_for_everyone` right before it. There the others stay and listen to the first one, until it says that
it goes on: with the next step, or whatever else all ranks do together.

At the end of a training accelerate ends the processes' groups, and only then Kohya saves the last state. So they are
ended with the processes.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import distributed

from kohya_ext.runtime.zero import Zero
from kohya_ext.runtime.zero_resume import divide_again, write_map

# What all ranks do together, by the accelerator's methods.
_TOGETHER = ("accumulate", "backward", "end_training", "gather", "gather_for_metrics", "pad_across_processes", "reduce")


class JointStates:
    """One run's. Each of its ranks has one.

    Args:
        args: of the script.
        accelerator: whose methods are wrapped, on the instance.
        zero: the engine.
    """

    def __init__(self, args: argparse.Namespace, accelerator: Any, zero: Zero) -> None:
        self._zero = zero
        self._peers = zero.partition.peers
        self._others_listen = False
        self._saved_for_first: str | None = None
        self._keep_groups(accelerator)
        divide_again(zero)
        self._save_mine = accelerator.save_state
        accelerator.save_state = self._save_together
        if len(self._peers.tables) < 2 or not getattr(args, "save_state", False):
            return
        accelerator.wait_for_everyone = self._meeting(accelerator.wait_for_everyone)
        for name in _TOGETHER:
            if hasattr(accelerator, name):
                setattr(accelerator, name, self._going_on(getattr(accelerator, name)))

    def go_on(self) -> None:
        """The first rank does something that all do: the others listen no longer."""
        if self._others_listen:
            self._others_listen = False
            self._peers.tell({"go on": True})

    # ------------------------------------------------------------------ inside

    def _keep_groups(self, accelerator: Any) -> None:
        end_training = accelerator.end_training

        @functools.wraps(end_training)
        def end_all_but_groups(*given: Any, **named: Any) -> Any:
            accelerator.state.destroy_process_group = lambda *_: None
            return end_training(*given, **named)

        accelerator.end_training = end_all_but_groups

    def _going_on(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def go_on_first(*given: Any, **named: Any) -> Any:
            self.go_on()
            return method(*given, **named)

        return go_on_first

    def _meeting(self, wait: Callable[[], Any]) -> Callable[[], Any]:
        @functools.wraps(wait)
        def wait_and_listen() -> Any:
            self.go_on()
            result = wait()
            if distributed.get_rank() == 0:
                self._others_listen = True
            else:
                self._listen()
            return result

        return wait_and_listen

    def _listen(self) -> None:
        while (told := self._peers.told()) is not None and "save" in told:
            self._saved_for_first = told["save"]
            self._save(told["save"])

    def _save(self, output_dir: str | None, *rest: Any, **named: Any) -> Any:
        result = self._save_mine(output_dir, *rest, **named)
        if output_dir is not None:
            write_map(Path(output_dir), self._zero)
        return result

    def _save_together(self, output_dir: str | None = None, *rest: Any, **named: Any) -> Any:
        if self._others_listen:
            self._peers.tell({"save": output_dir})
        elif output_dir is not None and output_dir == self._saved_for_first:
            self._saved_for_first = None
            return output_dir  # a script in which all ranks call this: it has been done
        return self._save(output_dir, *rest, **named)

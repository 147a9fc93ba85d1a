"""Runs the stages of a demo in its folder: each is skipped when its files are whole, run when not, and timed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType

from rich.console import Console
from rich.markup import escape

from playserve.errors import ServerFault
from playserve_trainer.demo.log import DemoLog
from playserve_trainer.demo.steps import Step
from playserve_trainer.processes import run_command, serve, shown
from playserve_trainer.wording import clock

__all__ = ["SLEEPING_THREADS", "Stages"]

#: Threads that wait sleep: beside other work, spinning ones leave a third of the training speed.
SLEEPING_THREADS: Mapping[str, str] = MappingProxyType({"OMP_WAIT_POLICY": "passive"})


class Stages:
    """The stages of one folder, one after another.

    Args:
        out: The folder.
        console: Where to report.
        log: What ran, and how long.
        total: How many commands there will be, to number them; None: they are not numbered.
        variables: Environment variables that commands get unless they are set already.
    """

    def __init__(
        self,
        out: Path,
        console: Console,
        log: DemoLog,
        *,
        total: int | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._out, self._console, self._log = out, console, log
        self._total, self._number, self._variables = total, 0, variables
        self._started = time.monotonic()

    def run(self, step: Step, *, done: bool, more: Sequence[str] = ()) -> None:
        """Run one command, with `more` arguments at its end, unless its files are whole already.

        Raises:
            ServerFault: It failed; what is finished is kept.
        """
        self._number += 1
        number = f"{self._number}/{self._total} " if self._total is not None else ""
        about = f", about {clock(step.expected_s)}" if step.expected_s and not done else ""
        self._say(number + step.title, about)
        if done:
            self._console.print("finished by an earlier demo in this folder: kept")
            return
        command = (*step.command, *more)
        with self._log.stage(step.name, step.title, ["playserve", *command]):
            self._console.print(f"$ {escape(shown(command))}")
            status = run_command(command, self._variables)
            if status:
                raise ServerFault(
                    f"stage {step.name} ended with status {status}; what is finished is kept in {self._out}"
                )

    @contextmanager
    def within(self, name: str, title: str) -> Iterator[None]:
        """Time a block that is no command as a stage."""
        self._say(title)
        with self._log.stage(name, title, []):
            yield

    @contextmanager
    def server(self, command: Sequence[str]) -> Iterator[str]:
        """Serve for the length of the block; yield "host:port".

        Raises:
            ServerFault: The server ended before it was ready.
            NotReadyError: It was not ready in time.
        """
        self._say("Serve what was published")
        self._console.print(f"$ {escape(shown(command))}")
        with ExitStack() as stack:
            with self._log.stage("serve", "Start the policy server", ["playserve", *command]):
                address = stack.enter_context(serve(command, self._out / "logs" / "serve.log"))
            self._console.print(f"ready at {address}")
            yield address

    def _say(self, title: str, about: str = "") -> None:
        since = clock(time.monotonic() - self._started)
        self._console.print(f"\n[bold]{escape(title)}[/bold] ({since} since the start{about})")

"""How the demo speaks: a headline a step, who does it in a colour of their own, progress for all that takes a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

PERSONAS = {
    "image provider": "cyan",
    "workload provider": "magenta",
    "deployer": "dodger_blue1",
    "auditor": "green",
    "infrastructure": "red",
}
_WIDEST = max(map(len, PERSONAS))


class Work:
    """Something under way: call it with what is done now, or tell how much of it is done."""

    def __init__(self, told: Callable[[str], None], part: Callable[[int, int], None]) -> None:
        self._told = told
        self.part = part

    def __call__(self, step: str) -> None:
        """Name what is done now."""
        self._told(step)


class Narrator:
    """Tells the story on a console. Texts are markup; what comes from elsewhere goes through :meth:`quote`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began = time.monotonic()

    def step(self, number: int, title: str) -> None:
        """Begin a step."""
        self.console.print()
        self.console.print(f"[bold reverse] {number} [/] [bold]{title}[/]")

    def say(self, text: str) -> None:
        """Tell something that nobody in the story does."""
        self.console.print(Padding(text, (0, 0, 0, 2)))

    def by(self, persona: str, text: str) -> None:
        """Tell what one of the parties does."""
        row = Table.grid(padding=(0, 2, 0, 0))
        row.add_column(width=_WIDEST)
        row.add_column()
        row.add_row(f"[bold {PERSONAS[persona]}]{persona}[/]", text)
        self.console.print(Padding(row, (0, 0, 0, 2)))

    def held(self, text: str) -> None:
        """Tell what was looked at and held."""
        row = Table.grid(padding=(0, 1, 0, 0))
        row.add_row("[green]✓[/]", text)
        self.console.print(Padding(row, (0, 0, 0, 2)))

    def quote(self, lines: Iterable[str]) -> None:
        """Show lines of something else, as they are but for their length."""
        most = max(self.console.width - 7, 40)
        for line in lines:
            shown = line if len(line) <= most else f"{line[: most - 1]}…"
            self.console.print(Padding(f"[dim]│[/] {escape(shown)}", (0, 0, 0, 4)))

    def table(self, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
        """Show a small table of markup."""
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
        for name in header:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.console.print(Padding(table, (0, 0, 0, 4)))

    @contextmanager
    def working(self, title: str) -> Iterator[Work]:
        """Show that something is under way, what of it and since when; in the end, how long it took.

        Where nobody watches a terminal, what is done after ten quiet seconds is one line.
        """
        began = time.monotonic()
        if not self.console.is_terminal:
            quiet = began

            def told(step: str) -> None:
                nonlocal quiet
                if time.monotonic() - quiet > 10:
                    quiet = time.monotonic()
                    self.console.print(f"  [dim]… {title}: {escape(step)}[/]", soft_wrap=True)

            yield Work(told, lambda done, total: None)
        else:
            columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
            with Progress(*columns, console=self.console, transient=True) as progress:
                task = progress.add_task(title, total=None)
                most = max(self.console.width - len(title) - 16, 10)

                def show(step: str) -> None:
                    progress.update(task, description=f"{title}: [dim]{escape(step[:most])}[/]")

                yield Work(show, lambda done, total: show(f"{done * 100 // max(total, 1)} %"))
        self.held(f"{title}  [dim]{time.monotonic() - began:.1f} s[/]")

"""What the terminal shows: one line a stage, bars while they run, tables at the end. Quiet when piped."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

console = Console(highlight=False, soft_wrap=True)


class Bar:
    """One progress bar; `note` is the short text at its end."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def start(self, total: int, done: int = 0) -> None:
        self._progress.update(self._task, total=total, completed=done, visible=True)

    def advance(self, note: str = "") -> None:
        self._progress.update(self._task, advance=1, note=note)

    def to(self, done: int, note: str = "") -> None:
        self._progress.update(self._task, completed=done, note=note)


@contextmanager
def progress_bar(title: str) -> Iterator[Bar]:
    """A bar that fits 80 columns with a note of 22."""
    columns = (
        TextColumn("  {task.description:<17}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
    )
    with Progress(*columns, console=console) as progress:
        yield Bar(progress, progress.add_task(title, total=None, note="", visible=True))


def say(text: str) -> None:
    console.print(text, markup=False)


def show_table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """`rows`: the header first."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), title_style="bold")
    for heading in rows[0]:
        table.add_column(heading, justify="right")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)

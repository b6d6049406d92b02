"""Tables as text: Markdown, LaTeX, CSV and for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
from rich.table import Table

from .grid import LEAKING
from .tables import AVERAGE

RULE_NAMES = {
    "source": "the epoch that is best on the sources' validation clips",
    "last": "the last epoch",
    "oracle": "the epoch that is best on the target itself (an oracle: it has seen the "
    "target's labels and compares with no method that has not)",
    "leave_one_source_out": "the epoch that is best where each source in turn was left "
    "out of training",
}
"""In words, for captions."""


@dataclass(frozen=True)
class Layout:
    """One table: rows are methods within sets of modalities, columns are targets.

    Attributes:
        dataset: Its name.
        columns: ``(sources, target)``, the average last.
        rows: ``(modalities, method)``.
        frame: The rows of :func:`.tables.summarise` that it shows.
    """

    dataset: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, str], ...]
    frame: pd.DataFrame

    @classmethod
    def of(cls, frame: pd.DataFrame) -> list[Layout]:
        """One for each dataset."""
        return [
            cls(
                str(dataset),
                tuple(dict.fromkeys(zip(own["sources"], own["target"], strict=True))),
                tuple(
                    dict.fromkeys(zip(own["modalities"], own["method"], strict=True))
                ),
                own,
            )
            for dataset, own in frame.groupby("dataset", sort=False)
        ]

    def cell(self, row: tuple[str, str], column: tuple[str, str]) -> pd.Series | None:
        """The numbers of a cell; None where there are none."""
        own = self.frame
        found = own[
            (own["modalities"] == row[0])
            & (own["method"] == row[1])
            & (own["sources"] == column[0])
            & (own["target"] == column[1])
        ]
        if found.empty or pd.isna(found.iloc[0]["mean"]):
            return None
        return found.iloc[0]

    @property
    def title(self) -> str:
        """The dataset, with a mark where the target's labels were seen."""
        mark = " (oracle)" if self.frame["rule"].iloc[0] in LEAKING else ""
        return self.dataset + mark

    def name(self, row: tuple[str, str]) -> str:
        """Of a row's method."""
        return self.frame.loc[self.frame["method"] == row[1], "name"].iloc[0]

    def count(self, column: tuple[str, str]) -> str:
        """``'N = 180'``; a range where rows differ."""
        cells = (self.cell(row, column) for row in self.rows)
        counts = sorted({int(cell["N"]) for cell in cells if cell is not None})
        if not counts:
            return "N = 0"
        return f"N = {counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "")

    def heading(self, column: tuple[str, str], arrow: str) -> str:
        """``'studio, street → sketch'``, or the average."""
        sources, target = column
        if target == AVERAGE:
            return AVERAGE
        return f"{sources} {arrow} {target}"


# ------------------------------------------------------------------------- captions


def caption(frame: pd.DataFrame, intervals: bool = True) -> str:
    """What the table shows, in sentences: rule, seeds, what ± and bold mean.

    Args:
        frame: Of :func:`.tables.summarise`.
        intervals: Whether the cells have them.
    """
    rule, evaluation = frame["rule"].iloc[0], frame["evaluation"].iloc[0]
    where = {"target": "unseen domains", "in_domain": "held-out clips of the sources"}
    if evaluation == "in_domain" and rule == "source":
        # MultiModalDataset: use='val' and use='in_domain' are the same rows.
        where["in_domain"] += ", which also chose the epoch: somewhat too high"
    seeds = sorted(set(frame["seeds"]) - {0})
    text = f"Top-1 % on {where[evaluation]}; checkpoint: {RULE_NAMES[rule]}. "
    if not seeds:
        return text + "No run of it is finished yet."
    spread = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
    text += f"Mean of {spread} seed{'s' * (seeds[-1] > 1)}"
    if seeds[-1] > 1:
        text += " ± their standard deviation (n - 1)"
    if intervals:
        text += f"; in brackets 95 % intervals {_covers(frame)}"
    return text + (
        ". "
        "Bold: the best, where it differs from every other row of its block (paired "
        "over clips, Holm-adjusted p < .05); underlined: the second, likewise against "
        "those below it. Without support neither is marked, and nothing in a column "
        "with a single seed: its test is over clips alone."
    )


def _covers(frame: pd.DataFrame) -> str:
    if set(frame["covers"]) - {""} == {"clips and seeds"}:
        return "for the choice of clips and of seeds together"
    return (
        "for the choice of clips alone where there is one seed (other seeds would "
        "differ more)"
    )


def difference_caption(frame: pd.DataFrame) -> str:
    """What the table of differences shows."""
    reference = frame["reference"].dropna().iloc[0]
    name = frame.loc[frame["method"] == reference, "name"].iloc[0]
    covers = set(frame["difference_covers"].dropna())
    over = "clips and seeds"
    if covers != {over}:
        over = "clips alone where one of the two has one seed, or clips and seeds"
    return (
        f"Percentage points above {name} on the same clips, [95 % interval over {over}]"
        ", p adjusted by Holm over the methods of the column."
    )


def has_reference(frame: pd.DataFrame) -> bool:
    """Whether methods were compared with one."""
    return "reference" in frame and frame["reference"].notna().any()


# ---------------------------------------------------------------------------- cells


def _value(cell: pd.Series | None) -> str:
    if cell is None:
        return "missing"
    text = f"{cell['mean']:.1f}"
    if not pd.isna(cell["std"]):
        text += f" ± {cell['std']:.1f}"
    # A cell with fewer seeds than the others says so.
    return text + (f" ({cell['seeds']} of {cell['wanted']} seeds)"
                   if cell["seeds"] < cell["wanted"] else "")  # fmt: skip


def _interval(cell: pd.Series | None) -> str:
    return "" if cell is None else f"[{cell['low']:.1f}, {cell['high']:.1f}]"


def _difference(cell: pd.Series | None) -> str:
    if cell is None:
        return "missing"
    if pd.isna(cell.get("difference")):
        return "-"
    low, high = cell["difference_low"], cell["difference_high"]
    interval = f"[{_signed(low)}, {_signed(high)}]"
    return f"{_signed(cell['difference'])} {interval}, p {p_text(cell['p_holm'])}"


def _signed(points: float) -> str:
    """With one decimal; what rounds to zero is ``+0.0``, never ``-0.0``."""
    return f"{round(points, 1) + 0.0:+.1f}"


def p_text(p: float) -> str:
    """``'= .03'`` or ``'< .001'``."""
    return "< .001" if p < 0.001 else f"= {p:.3f}".replace("0.", ".", 1)


def _mark(text: str, cell: pd.Series | None, bold: str, under: str) -> str:
    if cell is not None and cell["best"] and cell["best_supported"]:
        return bold.format(text)
    if cell is not None and cell["second"] and cell["second_supported"]:
        return under.format(text)
    return text


# ------------------------------------------------------------------------- Markdown


def markdown(frame: pd.DataFrame, notes: Sequence[str] = ()) -> str:
    """Tables of accuracies, and of differences where there is a reference.

    Args:
        frame: From :func:`.tables.summarise`.
        notes: Put below.
    """
    parts = []
    for layout in Layout.of(frame):
        parts += [f"### {layout.title}", "", caption(layout.frame), ""]
        parts += _markdown_table(layout, _markdown_cell)
        if has_reference(layout.frame):
            parts += ["", difference_caption(layout.frame), ""]
            parts += _markdown_table(layout, _difference)
        parts.append("")
    return "\n".join([*parts, *(f"- {note}" for note in notes)]).rstrip() + "\n"


def _markdown_cell(cell: pd.Series | None) -> str:
    return f"{_mark(_value(cell), cell, '**{}**', '<u>{}</u>')} {_interval(cell)}"


def _markdown_table(
    layout: Layout, show: Callable[[pd.Series | None], str]
) -> Iterator[str]:
    blocks = len({modalities for modalities, _ in layout.rows}) > 1
    heads = [f"{layout.heading(c, '→')}<br>{layout.count(c)}" for c in layout.columns]
    first = ["modalities", "method"] if blocks else ["method"]
    yield "| " + " | ".join([*first, *heads]) + " |"
    yield "|" + "---|" * len(first) + "---:|" * len(heads)
    for row in layout.rows:
        cells = [show(layout.cell(row, column)).strip() for column in layout.columns]
        own = [row[0], layout.name(row)] if blocks else [layout.name(row)]
        yield "| " + " | ".join([*own, *cells]) + " |"


# ---------------------------------------------------------------------------- LaTeX

_SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def latex(frame: pd.DataFrame, notes: Sequence[str] = ()) -> str:
    """Two ``table`` for each dataset: accuracies, and differences to the reference.

    They need the packages ``booktabs`` and ``amssymb``. Modalities are columns of
    ticks, as in the paper's Table 1.

    Args:
        frame: From :func:`.tables.summarise`.
        notes: Put at the end of the first caption.
    """
    lines = []
    for layout in Layout.of(frame):
        text = " ".join([f"{layout.title}: {caption(layout.frame)}", *notes])
        if layout.frame["seeds"].between(1, layout.frame["wanted"] - 1).any():
            text += " In parentheses: the number of seeds, where some are missing."
        lines += _latex_table(layout, text, _latex_cell)
        if has_reference(layout.frame):
            text = f"{layout.title}: {difference_caption(layout.frame)}"
            lines += _latex_table(layout, text, lambda cell: escape(_difference(cell)))
    return "\n".join(lines)


def _latex_table(
    layout: Layout, text: str, show: Callable[[pd.Series | None], str]
) -> Iterator[str]:
    modalities = list(
        dict.fromkeys(m for names, _ in layout.rows for m in names.split())
    )
    ticks = modalities if len({names for names, _ in layout.rows}) > 1 else []
    yield r"\begin{table}"
    yield r"\centering"
    yield rf"\caption{{{escape(text)}}}"
    yield r"\begin{tabular}{l" + "c" * len(ticks) + "r" * len(layout.columns) + "}"
    yield r"\toprule"
    heads = [
        rf"\shortstack{{{escape(layout.heading(c, 'to'))}\\{layout.count(c)}}}"
        for c in layout.columns
    ]
    yield " & ".join(["Method", *map(escape, ticks), *heads]) + r" \\"
    before = None
    for row in layout.rows:
        if row[0] != before:
            yield r"\midrule"
            before = row[0]
        own = [r"\checkmark" if m in row[0].split() else "" for m in ticks]
        cells = [show(layout.cell(row, column)) for column in layout.columns]
        yield " & ".join([escape(layout.name(row)), *own, *cells]) + r" \\"
    yield r"\bottomrule"
    yield r"\end{tabular}"
    yield r"\end{table}"
    yield ""


def _latex_cell(cell: pd.Series | None) -> str:
    if cell is None:
        return "missing"
    text = f"{cell['mean']:.1f}"
    if not pd.isna(cell["std"]):
        text += rf"\,{{\scriptsize$\pm${cell['std']:.1f}}}"
    if cell["seeds"] < cell["wanted"]:
        text += rf"$^{{({cell['seeds']})}}$"
    marked = _mark(text, cell, r"\textbf{{{}}}", r"\underline{{{}}}")
    return rf"{marked} {{\scriptsize {_interval(cell)}}}"


# ------------------------------------------------------------------------- terminal


def terminal(frame: pd.DataFrame) -> Iterator[Table]:
    """Tables for a console."""
    for layout in Layout.of(frame):
        yield _terminal_table(layout, caption(layout.frame), _terminal_cell)
        if has_reference(layout.frame):
            yield _terminal_table(
                layout, difference_caption(layout.frame), _two_line_difference
            )


def _terminal_table(
    layout: Layout, text: str, show: Callable[[pd.Series | None], str]
) -> Table:
    shown = Table(title=f"{layout.title}: {text}", title_justify="left")
    blocks = len({modalities for modalities, _ in layout.rows}) > 1
    for name in ("modalities", "method") if blocks else ("method",):
        shown.add_column(name, no_wrap=True)
    for column in layout.columns:
        head = f"{layout.heading(column, 'to')}\n{layout.count(column)}"
        shown.add_column(head, justify="right")
    for row in layout.rows:
        own = [row[0], layout.name(row)] if blocks else [layout.name(row)]
        shown.add_row(
            *own, *(show(layout.cell(row, column)) for column in layout.columns)
        )
    return shown


def _terminal_cell(cell: pd.Series | None) -> str:
    text = _mark(_value(cell), cell, "[bold]{}[/bold]", "[underline]{}[/underline]")
    # Markup would take the interval's bracket for its own.
    return f"{text}\n\\{_interval(cell)}" if cell is not None else text


def _two_line_difference(cell: pd.Series | None) -> str:
    return _difference(cell).replace(" [", "\n\\[", 1)

"""A run's report: one HTML page of its own, made from the files of the run's folder.

It needs no script and nothing from anywhere else, and its content policy forbids both: what a party or a plan is called is
shown as text, whatever it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from hansa.learners.distribution import smaller_is_better
from hansa.monitoring import chart, saved
from hansa.monitoring.chart import Series, number, text
from hansa.monitoring.records import RoundRecord
from hansa.monitoring.saved import SavedRun

NOTES: Final = 200
"""Notes of rounds and failures shown; the files have them all."""

_STATUS: Final = {
    "completed": "good",
    "stopped": "good",
    "running": "open",
    "interrupted": "open",
    "failed": "bad",
}

_ENDLESS: Final = "no end is on record: it goes on, or its process was killed; a killed run can be resumed"

_STYLE: Final = (
    """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d242c; --faint: #667380; --line: #d7dde3; --good: #1a7f4b;
  --bad: #b3261e; --open: #8a6a00; --shade: #f3f5f7; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e3e8ed; --faint: #98a4b0; --line: #343c45;
  --good: #55c98d; --bad: #ff8a80; --open: #d9b534; --shade: #1d232a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.2rem 1rem 3rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 0.4rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 0.7rem; padding-bottom: 0.25rem; border-bottom: 1px solid var(--line); }
p { margin: 0.3rem 0 0.7rem; }
.above { margin-top: 1.2rem; }
.faint { color: var(--faint); font-size: 0.87rem; }
.status { font-weight: 600; padding: 0.6rem 0.8rem; border-left: 4px solid; background: var(--shade); margin: 0.8rem 0; }
.status.good { border-color: var(--good); } .status.bad { border-color: var(--bad); } .status.open { border-color: var(--open); }
.status span { font-weight: 400; }
dl.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 0.5rem; margin: 1rem 0; }
dl.figures div { background: var(--shade); padding: 0.5rem 0.7rem; border-radius: 4px; }
dl.figures dt { font-size: 0.8rem; color: var(--faint); }
dl.figures dd { margin: 0; font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; }
dl.figures dd small { display: block; font-size: 0.75rem; font-weight: 400; color: var(--faint); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1.4rem 1.6rem; }
.wide { overflow-x: auto; overflow-wrap: normal; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
th, td { text-align: right; padding: 0.28rem 0.6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } thead th { color: var(--faint); font-size: 0.82rem; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
table.words td, table.words th { text-align: left; overflow-wrap: anywhere; }
tfoot td { font-weight: 600; border-bottom: 0; }
.swatch { display: inline-block; width: 0.75em; height: 0.75em; background: var(--marked); vertical-align: -0.05em; }
pre { background: var(--shade); padding: 0.8rem; border-radius: 4px; white-space: pre-wrap; font-size: 0.82rem; margin: 0; }
@media print { body { max-width: none; padding: 0; font-size: 10.5pt; } h2 { break-after: avoid; }
  svg, tr, dl.figures div, .status { break-inside: avoid; } .faint, .above { break-after: avoid; } .wide { overflow: visible; }
  .charts { grid-template-columns: 1fr 1fr; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
    + chart.STYLE
)


def report(folder: Path) -> str:
    """The page for a run's folder, whatever state the run left it in.

    Args:
        folder: where :class:`~hansa.monitoring.folder.RunFolder` has written a run.

    Returns:
        HTML to write to one file; it is read on a screen of any width, light or dark, and on paper.

    Raises:
        ConfigError: it is no run's folder, or a file of it is damaged.
    """
    run = saved.read(folder)
    parts = [
        _head(run),
        _figures(run),
        _section("Result", _result(run)),
        _section("Curves", _curves(run.records)),
        _section("Parties", _parties(run.records)),
        _section("Traffic", _traffic(run.traffic)),
        _section("Failures", _failures(run)),
        _section("Notes", _notes(run)),
        _section("Plan", f"<pre>{text(run.plan)}</pre>" if run.plan.strip() else ""),
        _section("How it was run", _words(_flat(run.table("settings")))),
        _section("Environment", _words(_flat(run.environment))),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(run.name)}: run report</title>\n<style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + "\n</body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>\n{content}\n</section>" if content else ""


def _head(run: SavedRun) -> str:
    status = str(run.status.get("status") or "unknown")
    cause = str(run.status.get("cause") or "")
    if status in {"running", "unknown"} and not cause:
        cause = _ENDLESS
    done = max((record.round for record in run.records), default=0)
    planned = run.number("rounds")
    rounds = f"{done:,} rounds" if planned is None or planned == done else f"{done:,} of at most {planned:,.0f} rounds"
    said = f" <span>{text(cause)}</span>" if cause else ""
    return (
        f"<h1>{text(run.name)}</h1>\n"
        f'<p class="status {_STATUS.get(status, "open")}">{text(status)} after {rounds}{"." if not cause else ":"}{said}</p>'
    )


def _figures(run: SavedRun) -> str:
    figures: list[tuple[str, str, str]] = []
    for metric in _headline(run.records):
        points = [(record, value) for record, value in saved.series(run.records, metric) if value is not None]
        if points:
            record, value = points[-1]
            figures.append((_title(metric), number(value), f"after round {record.round}"))
    seconds = run.number("seconds")
    virtual = max((record.time for record in run.records), default=0.0)
    messages = sum(counts["messages"] for counts in run.traffic.values())
    sent = sum(counts["bytes"] for counts in run.traffic.values())
    plain = (
        ("parties", run.number("parties"), ""),
        ("parameters", run.number("parameters"), ""),
    )
    figures += [(name, number(value), note) for name, value, note in plain if value is not None]
    if seconds is not None:
        figures.append(("real time", _duration(seconds), ""))
    if virtual > 0:
        figures.append(("virtual time", _duration(virtual), "on the parties' clock"))
    if run.traffic:
        figures.append(("traffic", size(sent), f"{messages:,} messages"))
    boxes = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}{f'<small>{text(note)}</small>' if note else ''}</dd></div>"
        for name, value, note in figures
    )
    digest = run.status.get("digest")
    mark = f'<p class="faint">Plan digest {text(digest)}</p>' if digest else ""
    return (f'<dl class="figures">{boxes}</dl>' if boxes else "") + mark


def _headline(records: Sequence[RoundRecord]) -> list[str]:
    """The metrics that say most: those on the central test set, else over parties, else of training."""
    known = _names(records)
    for prefix in ("test_", "party_", "train_"):
        found = [name for name in known if name.startswith(prefix) and saved.goal(name)]
        found = [name for name in found if not name.endswith(("_mean", "_median", "_worst_decile"))]
        if found:
            return sorted(found, key=smaller_is_better)[:3]
    return []


def _result(run: SavedRun) -> str:
    rows = []
    for metric in _names(run.records):
        points = saved.series(run.records, metric)
        finite = [(record, value) for record, value in points if value is not None]
        last = number(points[-1][1]) if points[-1][1] is not None else "not finite"
        best = ("", "")
        if finite and saved.goal(metric):
            pick = min if smaller_is_better(metric) else max
            record, value = pick(finite, key=lambda point: point[1])
            best = (number(value), str(record.round))
        first = number(points[0][1]) if points[0][1] is not None else "not finite"
        rows.append([_title(metric), first, last, *best])
    parts = []
    if rows:
        parts.append(_table(["metric", "first", "last", "best", "of round"], rows))
    baselines = {name: values for name, values in run.table("baselines").items() if isinstance(values, Mapping)}
    if baselines:
        metrics = list(dict.fromkeys(metric for values in baselines.values() for metric in values))
        last_test = {
            metric: points[-1][1] for metric in metrics if (points := saved.series(run.records, f"test_{metric}"))
        }
        compared: dict[str, Mapping[str, Any]] = {"this run": last_test, **baselines}
        lines = [
            [name, *(_value(values, metric) for metric in metrics)]
            for name, values in sorted(compared.items(), key=lambda pair: pair[0] != "this run")
        ]
        parts.append('<p class="above">Beside baselines, on the central test set:</p>' + _table(["", *metrics], lines))
    return "\n".join(parts)


def _value(values: Mapping[str, Any], metric: str) -> str:
    if metric not in values:
        return "–"
    value = saved.finite(values[metric])
    return "not finite" if value is None else number(value)


def _curves(records: Sequence[RoundRecord]) -> str:
    groups: dict[str, dict[str, str]] = {}
    for metric in _names(records):
        stem, line = _stem(metric)
        values = [value for _, value in saved.series(records, metric)]
        if (
            line and len(values) > 1 and (saved.goal(metric) or len(set(values)) > 1)
        ):  # a count that never moves is no curve
            groups.setdefault(stem, {})[line] = metric
    if not groups:
        return ""
    drawn = [_lines(records, stem, metrics, virtual=False) for stem, metrics in groups.items()]
    if len({record.time for record in records}) > 1:
        goals = {stem: own for stem, own in groups.items() if any(saved.goal(metric) for metric in own.values())}
        drawn += [_lines(records, stem, metrics, virtual=True) for stem, metrics in goals.items()]
    return f'<div class="charts">{"".join(drawn)}</div>'


def _lines(records: Sequence[RoundRecord], stem: str, metrics: Mapping[str, str], virtual: bool) -> str:
    series = [
        Series(line, [(r.time if virtual else r.round, value) for r, value in saved.series(records, metric)])
        for line, metric in metrics.items()
    ]
    missing = sum(value is None for one in series for _, value in one.points)
    remark = f'<p class="faint">{missing} values are not finite; the line has gaps there.</p>' if missing else ""
    title = f"{stem.replace('_', ' ')} over {'virtual time' if virtual else 'rounds'}"
    picture = chart.lines(title, series, "seconds of virtual time" if virtual else "round", whole=not virtual)
    return f"<div>{picture}{remark}</div>"


_KINDS: Final = (("test_", "central test set"), ("train_", "training cohort"), ("party_", "over parties"))
_PARTS: Final = (("_worst_decile", "worst decile of parties"), ("_mean", ""), ("_median", ""))


def _stem(metric: str) -> tuple[str, str]:
    """The chart of a metric and its line there; no line for what would only crowd it.

    >>> _stem("test_accuracy"), _stem("party_accuracy_worst_decile"), _stem("contributors")
    (('accuracy', 'central test set'), ('accuracy', 'worst decile of parties'), ('contributors', 'contributors'))
    """
    for prefix, line in _KINDS:
        if metric.startswith(prefix):
            stem = metric.removeprefix(prefix)
            if prefix == "party_":
                if stem == "count":
                    return "party count", ""
                for suffix, part in _PARTS:
                    if stem.endswith(suffix):
                        return stem.removesuffix(suffix), part
            return stem, line
    return metric, metric


def _title(metric: str) -> str:
    """A metric in words: ``test_accuracy`` is ``test accuracy``."""
    return metric.replace("_", " ")


def _parties(records: Sequence[RoundRecord]) -> str:
    last = next((record for record in reversed(records) if record.parties), None)
    if last is None:
        return ""
    names = dict.fromkeys(metric for own in last.parties.values() for metric in own if metric != "examples")
    pictures = []
    for metric in names:
        values = {party: own[metric] for party, own in last.parties.items() if metric in own}
        small = smaller_is_better(metric)
        # The worst first; what is not finite is worse than any number.
        ordered = sorted(values, key=lambda party: _badness(values[party], small), reverse=True)
        worst = ordered[: max(1, len(ordered) // 10)]
        title = f"{metric.replace('_', ' ')} of each party, round {last.round}"
        if len(values) <= chart.ROWS:
            picture = chart.bars(title, {party: values[party] for party in ordered}, frozenset(worst))
        else:
            picture = chart.histogram(title, list(values.values()), [values[party] for party in worst], metric)
        pictures.append(f"<div>{picture}</div>")
    if not pictures:
        return ""
    legend = f'{len(last.parties):,} parties on their own test examples. <span class="swatch"></span> worst decile'
    return f'<p class="faint">{legend}</p><div class="charts">{"".join(pictures)}</div>'


def _badness(value: float, small_is_better: bool) -> float:
    known = saved.finite(value)
    return float("inf") if known is None else known if small_is_better else -known


def _traffic(traffic: Mapping[str, Mapping[str, int]]) -> str:
    if not traffic:
        return ""
    everything = sum(counts["bytes"] for counts in traffic.values())
    rows = [
        [
            kind,
            f"{counts['messages']:,}",
            size(counts["bytes"]),
            size(counts["bytes"] / counts["messages"]) if counts["messages"] else "–",
            _share(counts["bytes"], everything),
        ]
        for kind, counts in sorted(traffic.items(), key=lambda item: -item[1]["bytes"])
    ]
    total = ["all", f"{sum(c['messages'] for c in traffic.values()):,}", size(everything), "", ""]
    return _table(["message", "count", "bytes", "each", "share"], rows, foot=total)


def _share(part: float, whole: float) -> str:
    if not whole:
        return "–"
    return "< 1%" if 0 < part / whole < 0.005 else f"{part / whole:.0%}"


def _failures(run: SavedRun) -> str:
    failures = run.table("failures")
    shown = list(failures.items())[:NOTES]
    return _words(shown, ("party", "what its program raised")) + _more(len(failures), len(shown), "status.json")


def _notes(run: SavedRun) -> str:
    notes = [(str(record.round), record.note) for record in run.records if record.note]
    parts = [_words(notes[:NOTES], ("round", "note")), _more(len(notes), min(len(notes), NOTES), "metrics.jsonl")]
    if run.unread:
        lines = "One line" if run.unread == 1 else f"{run.unread} lines"
        parts.append(f'<p class="faint">{lines} of metrics.jsonl could not be read and left out.</p>')
    return "".join(parts)


def _more(there: int, shown: int, file: str) -> str:
    return f'<p class="faint">The first {shown} of {there:,}; all are in {file}.</p>' if there > shown else ""


def _words(rows: Iterable[tuple[str, Any]], head: Sequence[str] = ()) -> str:
    return _table(head, [[str(name), str(value)] for name, value in rows], kind="words")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], foot: Sequence[str] = (), kind: str = "numbers") -> str:
    if not rows:
        return ""
    top = f"<thead><tr>{''.join(f'<th>{text(cell)}</th>' for cell in head)}</tr></thead>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    end = f"<tfoot><tr>{''.join(f'<td>{text(cell)}</td>' for cell in foot)}</tr></tfoot>" if foot else ""
    return f'<div class="wide"><table class="{kind}">{top}<tbody>{body}</tbody>{end}</table></div>'


def _flat(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in table.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else [(f"{prefix}{key}", value)]
    return rows


def _names(records: Iterable[RoundRecord]) -> list[str]:
    return list(dict.fromkeys(metric for record in records for metric in record.metrics))


def size(count: float) -> str:
    """A number of bytes for people.

    >>> size(0), size(2720), size(4.2e6)
    ('0 B', '2.7 kB', '4.2 MB')
    """
    for unit, large in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= large:
            return f"{count / large:.1f} {unit}"
    return f"{count:.0f} B"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"

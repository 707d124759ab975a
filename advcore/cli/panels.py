"""Options that several commands have, and the panels in which the help shows all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from ..options import Options, option_info

INPUT, ATTACK, BUDGET, OUTPUT, RUN = "Input", "Attack", "Budget", "Output", "Run"
PANELS = (INPUT, ATTACK, BUDGET, OUTPUT, RUN)
"""Panels of the help in their order."""
_PANEL_OF = {
    **dict.fromkeys(("max_evaluations", "max_queries", "time_limit"), BUDGET),
    **dict.fromkeys(("batch_size", "device", "threads", "deterministic"), RUN),
}
"""Panels of the options of `Options`; the others belong to the attack."""
_METAVARS = {str: "TEXT", int: "NUMBER", float: "NUMBER", bool: "", Path: "FILE"}

Debug = Annotated[
    bool,
    typer.Option("--debug", help="show tracebacks of errors", metavar="", rich_help_panel=RUN),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="print errors alone: no table, progress, notes or warnings",
        metavar="",
        rich_help_panel=OUTPUT,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="print one JSON object in the place of the text (docs/command.md)",
        metavar="",
        rich_help_panel=OUTPUT,
    ),
]
Eps = Annotated[
    list[str] | None,
    typer.Option(
        help="distortions at which the accuracy under attack is given, as in 0.25,0.5,1",
        metavar="NUMBERS",
        rich_help_panel=OUTPUT,
    ),
]


def option(panel: str, help: str, *names: str, **settings: Any) -> Any:
    """Return an option of a panel, for the annotation of a command's parameter."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Options` that the command line has, in their panels.

    Names, types, defaults and texts are those of `Options`. The command gets them as keywords.
    """
    signature = inspect.signature(command, eval_str=True)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = [entry for entry in fields(Options) if option_info(entry.name).command_type]
    parameters += map(_parameter, options)
    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in sorted(parameters, key=_place)]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _place(parameter: inspect.Parameter) -> int:
    """Return the place of a parameter's panel; the context of the command has none."""
    settings = get_args(parameter.annotation)[1:]
    return PANELS.index(settings[0].rich_help_panel) if settings else -1


def _parameter(entry: Field[Any]) -> inspect.Parameter:
    """Return the parameter of a command, as typer reads it."""
    info = option_info(entry.name)
    kind: Any = info.command_type
    text = f"{info.help}; default: {info.without}" if info.without else info.help
    settings: dict[str, Any] = {
        "help": text,
        "rich_help_panel": _PANEL_OF.get(entry.name, ATTACK),
        "metavar": info.metavar or _METAVARS.get(kind, "NUMBER"),
    }
    if info.check.choices:
        choices = list(info.check.choices)
        settings["metavar"] = f"[{'|'.join(choices)}]"
        settings["autocompletion"] = _starting_with(choices)
    if inspect.isfunction(kind):
        settings["parser"], kind = kind, str
    if entry.default is None:
        kind = kind | None
    return inspect.Parameter(
        entry.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=entry.default,
        annotation=Annotated[kind, typer.Option(**settings)],
    )


def _starting_with(choices: list[str]) -> Callable[[str], list[str]]:
    """Return a function that completes the beginning of one of these words."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def complete_model(incomplete: str) -> list[str]:
    """Return the names of models, and the files and folders, that begin so."""
    from ..models import BUILDERS

    names = [name for name in sorted(BUILDERS) if name.startswith(incomplete)]
    return names + complete_file(incomplete)


def complete_file(incomplete: str) -> list[str]:
    """Return the files and folders that begin so."""
    folder, _, begin = incomplete.rpartition("/")
    place = Path(folder or ("/" if incomplete.startswith("/") else "."))
    prefix = incomplete[: len(incomplete) - len(begin)]
    try:
        found = sorted(place.iterdir())
    except OSError:
        return []
    return [
        prefix + path.name + "/" * path.is_dir()
        for path in found
        if path.name.startswith(begin) and (begin or path.name[0] != ".")
    ]

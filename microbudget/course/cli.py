"""The command ``microbudget``: doctor, fetch, run, table, handout."""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from .. import __version__
from ..core import settings
from ..core.errors import MicrobudgetError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 when it did what was asked, 1 when it could not."""
    options = _parser().parse_args(arguments)
    if getattr(options, "profile", None):
        os.environ["MICROBUDGET_PROFILE"] = options.profile
    for stream in (sys.stdout, sys.stderr):  # a console may lack ×, → or ü
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    # a parent that is told to end takes its children along, as with Ctrl-C
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return options.command(options)
    except MicrobudgetError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a home that is a file, read-only, another user's …
        print(f"{_what_failed(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Run it again to go on.", file=sys.stderr)
        return 130


def _what_failed(error: OSError) -> str:
    where = f" {error.filename}" if error.filename else ""
    return (
        f"The system refused{where}: {error.strerror or error}. Free space or mend the "
        "permissions, or set MICROBUDGET_HOME to a folder you may write to."
    )


def _doctor(options) -> int:
    from .doctor import diagnose

    diagnosis = diagnose()
    print(f"microbudget {__version__}\n{diagnosis}")
    if not diagnosis.healthy:
        print("The course can't run here yet: see PROBLEM above.")
        return 1
    waiting = any("microbudget fetch" in found.remedy for found in diagnosis.findings)
    print(f"The course can run here{', after `microbudget fetch`' * waiting}.")
    return 0


def _fetch(options) -> int:
    from .. import assets

    for name in options.names or assets.needed():
        if options.verify and (changed := assets.verify(name)):
            print(f"{name}: {changed[0]} isn't what was fetched; it is fetched again")
            assets.discard(name)
        started = time.perf_counter()
        already = assets.locate(name)
        folder = assets.fetch(name)
        if already:
            print(f"{name}: here already, {folder}")
            continue
        received = assets.bytes_received(name) / 1e6
        seconds = time.perf_counter() - started
        print(f"{name}: {received:.1f} MB received, {seconds:.1f} s, {folder}")
        print(assets.get(name).card())
    if not options.names:
        _decide_precision()
        _train_starting_points()
    return 0


def _decide_precision() -> None:
    from ..core import precision

    if precision.recorded() is None:
        answer = "bfloat16" if precision.decide() else "float32"
        print(f"precision: this processor computes in {answer} (measured once)")


def _train_starting_points() -> None:
    """The networks that several chapters compress; else the first of them trains."""
    runs = settings.load().home / "runs" / "finetuned"
    kept = ("sentiment-*", "flowers-*", "pruning-longer-*")
    if all(any(runs.glob(pattern)) for pattern in kept):
        return  # a network of another recipe is made when it is needed
    import torch

    from ..pruning import flower_baselines
    from ..training import baselines

    torch.set_num_threads(settings.load().threads)
    started = time.perf_counter()

    def done(name: str) -> None:
        seconds = time.perf_counter() - started
        print(f"{name}: trained once on this machine, here after {seconds:.1f} s")

    baselines.sentiment()
    done("sentence classifier")
    net = baselines.flowers()
    done("flower network, its head")
    flower_baselines.fine_tuned(net)
    done("flower network, its last stages")


def _run(options) -> int:
    from . import notebooks

    return notebooks.run(options.names, save=options.save)


def _table(options) -> int:
    from . import report

    if options.write:
        print(f"{report.write_readme()} is up to date")
    else:
        shown = report.every_row if options.rows else report.at_a_glance
        print(shown(report.run_records(settings.load())))
    return 0


def _handout(options) -> int:
    from . import notebooks

    target = options.to or settings.load().home / "handout"
    for path in notebooks.handout(target, options.names):
        print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="microbudget", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        return sub

    command("doctor", _doctor, "can the course run here, and if not, what to do")
    fetch = command("fetch", _fetch, "fetch models and data, once")
    fetch.add_argument(
        "names", nargs="*", metavar="NAME",
        help="default: all needed, and the two networks that chapters start from are "
        "trained",
    )  # fmt: skip
    fetch.add_argument("--profile", choices=settings.PROFILES)
    fetch.add_argument("--verify", action="store_true", help="compare all digests")
    run = command("run", _run, "execute notebooks, offline, without changing them")
    run.add_argument("names", nargs="*", metavar="NOTEBOOK", help="such as 01")
    run.add_argument("--save", action="store_true", help="keep the outputs in them")
    table = command("table", _table, "the at-a-glance table of measured figures")
    what = table.add_mutually_exclusive_group()
    what.add_argument("--rows", action="store_true", help="all that was measured")
    what.add_argument("--write", action="store_true", help="both tables, into README")
    hand = command("handout", _handout, "copies without outputs and solutions")
    hand.add_argument("names", nargs="*", metavar="NOTEBOOK")
    hand.add_argument("--to", type=Path, help="folder; default: data/handout")
    return parser

"""The command line."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from dsvcca.cli import doctor, runs, showing, stores, submitting
from dsvcca.cli.plain import plain_errors

app = typer.Typer(
    name="dsvcca",
    help="Compare neural-network representations by SVCCA and PWCCA, out of core and on a cluster.\n\n"
    "Start with 'dsvcca demo'. With activations of your own: 'dsvcca info STORE', 'dsvcca plan STORE', "
    "'dsvcca compare STORE RESULTS', 'dsvcca report RESULTS'.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def main(
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say on standard error what is done.")] = False,
) -> None:
    if verbose:
        logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
        logging.getLogger("dsvcca").setLevel(logging.INFO)
    if show_version:
        print(f"dsvcca {version('dsvcca')}")
        raise typer.Exit


@app.command()
@plain_errors
def demo(
    folder: Annotated[Path, typer.Argument(help="Where everything goes; run it again to go on.")] = Path("demo"),
    seeds: Annotated[int, typer.Option(min=3, help="Networks to train.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Processes of the local cluster.")] = 2,
) -> None:
    """Train small convnets on real images, compare all layers at all steps, and draw what came out."""
    from dsvcca.demo import run_demo

    run_demo(folder, seeds=seeds, workers=workers)


app.command()(stores.info)
app.command("import")(stores.import_)
app.command()(stores.verify)
app.command()(stores.clean)
app.command("keep-bases")(runs.keep_bases_)
app.command()(runs.plan)
app.command()(runs.compare)
app.command()(showing.report)
app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(submitting.submit)
app.command()(doctor.doctor)

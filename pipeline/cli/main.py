"""`gain`: what a person does besides running the pipeline; each command reads its options and calls one function."""

import functools
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from pipeline.base.errors import PipelineError
from pipeline.base.params import load_params
from pipeline.base.secrets import hide_secrets


class _Commands(TyperGroup):
    """What these commands print, refusals of the command line and tracebacks included, shows no secret."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command."""
        hide_secrets()
        return super().main(*args, **kwargs)


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False)

Profile = Annotated[str | None, typer.Option(help="instead of the profile that params.yaml names")]
Weights = Annotated[Path | None, typer.Option(help="safetensors file, instead of one from the registry")]
Alias = Annotated[str, typer.Option(help="of the version in the registry")]


def command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function the command `name`; a PipelineError is printed in one line, and the exit code is 1."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except PipelineError as error:
                sys.exit(f"{name}: error: {error}")

        return app.command(name)(run)

    return add


def _print_version(asked: bool) -> None:
    if asked:
        print(f"gain {metadata.version('guided-attention')}")
        raise typer.Exit


@app.callback()
def gain(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="show the version and leave")
    ] = False,
) -> None:
    """Guided attention for segmentation networks."""


@command("lr-find")
def lr_find(
    stage: Annotated[Literal["pretrain", "classify", "finetune"], typer.Argument(help="the stage to test")],
    variant: Annotated[str, typer.Argument(help="of finetune")] = "",
    lowest: Annotated[float, typer.Option(help="first learning rate")] = 1.0e-6,
    highest: Annotated[float, typer.Option(help="last learning rate")] = 1.0,
    steps: Annotated[int, typer.Option(min=10, help="training steps from the first rate to the last")] = 100,
    profile: Profile = None,
    seed: Annotated[int | None, typer.Option(help="instead of the seed that params.yaml names")] = None,
    folder: Annotated[Path, typer.Option(help="where the stage's inputs lie")] = Path(),
) -> None:
    """Test which learning rates a stage stands; a plot, a suggestion and a run in MLflow."""
    from pipeline.cli.lr_find import Rates, find_learning_rate

    params = load_params(profile=profile, seed=seed)
    print(f"lr-find: {find_learning_rate(params, folder, stage, variant, Rates(lowest, highest, steps))}")


@command("doctor")
def doctor(
    profile: Profile = None, folder: Annotated[Path, typer.Option(help="where data/ and models/ lie")] = Path()
) -> None:
    """Say whether the profile can run here, what is missing and how to get it; exit code 1 if it cannot."""
    from pipeline.cli.doctor import examine

    if not folder.is_dir():
        raise PipelineError(f"{folder}: no such folder")
    failures = []
    for finding in examine(load_params(profile=profile), folder):
        print(f"{finding.verdict:<5} {finding.subject}: {finding.text}", flush=True)
        if finding.verdict == "fail":
            failures.append(finding.subject)
    if failures:
        sys.exit(f"doctor: this profile cannot run here: {', '.join(failures)}")


@command("import-masks")
def import_masks(
    source: Annotated[Path, typer.Argument(help="folder of masks or labelme files, or a folder or archive of CVAT's")],
    out: Annotated[Path, typer.Option(help="folder in VOC layout that gets SegmentationClass and classes.txt")],
    classes: Annotated[
        str | None, typer.Option(help="file or list of NAME, VALUE=NAME or NAME:R,G,B; labelmap.txt without it")
    ] = None,
    by: Annotated[
        Literal["colours", "values"] | None, typer.Option(help="what says the class, where both could")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace files that are there")] = False,
) -> None:
    """Convert masks in colours, grey levels, 0 and 255, or labelme's polygons into palette PNGs and classes.txt."""
    from pipeline.datasets import import_masks

    found = import_masks.import_masks(source, classes, out, by=by, overwrite=overwrite)
    print(f"import-masks: {found.num_masks} masks in {out / 'SegmentationClass'}; {found.shares()}")


@command("flow")
def flow(
    settings: Annotated[list[str] | None, typer.Argument(help="parameters of the flow, NAME=VALUE")] = None,
    deployment: Annotated[str, typer.Option(help="what to run")] = "train/local",
) -> None:
    """Run a deployment on a Prefect server, started here with a worker if none runs; exit code 1 if it fails."""
    from pipeline.flows.local_server import run_flow
    from pipeline.flows.settings import parse_settings

    sys.exit(run_flow(deployment, parse_settings(settings or [])))


@command("down")
def down() -> None:
    """Stop the Prefect server and workers that `gain flow` started, and nothing else."""
    from pipeline.flows.processes import stop

    ended = stop()
    print(f"down: stopped {', '.join(ended)}" if ended else "down: no server or worker of `gain flow` was running")


@command("promote")
def promote(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="compare only")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="back to the champion before this one")] = False,
    reason: Annotated[str, typer.Option(help="why, for the audit trail")] = "",
    profile: Profile = None,
) -> None:
    """Make the challenger the champion if the rules of params.yaml hold; exit code 1 if they do not."""
    from pipeline.release import promotion

    params = load_params(profile=profile)
    name = params.register_.registered_model_name
    if rollback:
        decision = promotion.roll_back(name, reason=reason, dry_run=dry_run)
    else:
        decision = promotion.promote(name, params.promote, reason=reason, dry_run=dry_run)
    print(decision.markdown())
    if not decision.accepted:
        sys.exit(1)


@command("register")
def register(
    verify: Annotated[bool, typer.Option("--verify", help="look first, and add only what is missing")] = False,
) -> None:
    """Make the best model of the last `dvc repro` the challenger again, and runs that MLflow lost, from reports/."""
    from pipeline.cli.register import register_again

    register_again(verify=verify)


@command("sync")
def sync() -> None:
    """Send MLflow the records that are still waiting, each once; exit code 1 if that fails."""
    from pipeline.tracking.sender import num_waiting, send_waiting

    waiting = num_waiting()
    if not send_waiting():
        sys.exit(1)
    print(f"sync: {waiting - num_waiting()} records sent, {num_waiting()} waiting")


@command("ui")
def ui(port: Annotated[int, typer.Option(help="of MLflow's UI on 127.0.0.1")] = 5000) -> None:
    """Show the runs in MLflow's UI, with the addresses of the views that a comparison begins with."""
    from pipeline.cli.ui import show_runs

    sys.exit(show_runs(port))


@command("predict")
def predict(
    images: Annotated[
        list[str], typer.Argument(help="JPEG, PNG, WebP, BMP or TIFF files of any size, folders of them, or patterns")
    ],
    out: Annotated[Path, typer.Option(help="folder for the pictures and predictions.json")],
    weights: Weights = None,
    alias: Alias = "champion",
    profile: Profile = None,
) -> None:
    """Classes, segmentation and attention of images, as overlays and numbers."""
    from pipeline.cli.predict import chosen_weights, predict_images

    with chosen_weights(weights, alias, profile) as path:
        predict_images(images, out, path)


@command("demo")
def demo(
    weights: Annotated[
        list[Path] | None, typer.Option(help="safetensors files to compare, instead of the registry's")
    ] = None,
    profile: Profile = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="of the page on 127.0.0.1")] = 5002,
) -> None:
    """Open a page on which champion and challenger, or control, answer a picture of yours side by side."""
    from pipeline.cli.demo import show_demo

    show_demo(weights or [], profile, port)


@command("serve")
def serve(
    alias: Alias = "champion",
    profile: Profile = None,
    host: Annotated[str, typer.Option(help="address to listen at; there is no password")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5001,
    workers: Annotated[int, typer.Option(min=1, max=256, help="processes, each with a network of its own")] = 1,
    waiting: Annotated[int, typer.Option(min=0, max=1000, help="requests of a worker that may wait")] = 8,
) -> None:
    """Serve a version of the registry over HTTP, as `mlflow models serve` does, with limits on what waits."""
    from pipeline.cli.serve import Address, serve_model

    sys.exit(serve_model(alias, profile, Address(host, port), workers=workers, waiting=waiting))


@command("export")
def export(
    out: Annotated[Path, typer.Option(help="the ONNX file to write")],
    weights: Weights = None,
    alias: Alias = "champion",
    profile: Profile = None,
) -> None:
    """Write an ONNX graph with class probabilities, segmentation logits and attention as outputs."""
    from pipeline.cli.predict import chosen_weights
    from pipeline.release.onnx import export_onnx

    with chosen_weights(weights, alias, profile) as path:
        export_onnx(path, out)
    print(f"export: {out}, {out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    app()

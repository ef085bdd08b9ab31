"""`gain`: what a person does beside the pipeline."""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.base.errors import PipelineError
from pipeline.base.files import atomic_file, write_csv, write_json
from pipeline.base.params import load_params

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def gain() -> None:
    """Guided attention for segmentation networks."""


@app.command("lr-find")
def find_learning_rate(
    stage: Annotated[Literal["pretrain", "classify", "finetune"], typer.Argument(help="the stage to test")],
    variant: Annotated[str, typer.Argument(help="of finetune")] = "",
    lowest: Annotated[float, typer.Option(help="first learning rate")] = 1.0e-6,
    highest: Annotated[float, typer.Option(help="last learning rate")] = 1.0,
    steps: Annotated[int, typer.Option(min=10, help="training steps from the first rate to the last")] = 100,
    profile: Annotated[str | None, typer.Option(help="instead of the profile that params.yaml names")] = None,
    seed: Annotated[int | None, typer.Option(help="instead of the seed that params.yaml names")] = None,
    folder: Annotated[Path, typer.Option(help="where the stage's inputs lie")] = Path(),
) -> None:
    """Test which learning rates a stage stands; a plot, a suggestion and a run in MLflow."""
    try:
        _find_learning_rate(stage, variant, lowest, highest, steps, profile, seed, folder)
    except PipelineError as error:
        sys.exit(f"lr-find: error: {error}")


@app.command("doctor")
def diagnose(
    profile: Annotated[str | None, typer.Option(help="instead of the profile that params.yaml names")] = None,
    folder: Annotated[Path, typer.Option(help="where data/ and models/ lie")] = Path(),
) -> None:
    """Say whether the profile can run here, what is missing and how to get it; exit code 1 if it cannot."""
    from pipeline.cli.doctor import examine

    if not folder.is_dir():
        sys.exit(f"doctor: error: {folder}: no such folder")
    try:
        findings = []
        for finding in examine(load_params(profile=profile), folder):
            findings.append(finding)
            print(f"{finding.verdict:<5} {finding.subject}: {finding.text}", flush=True)
    except PipelineError as error:
        sys.exit(f"doctor: error: {error}")
    failures = [finding.subject for finding in findings if finding.verdict == "fail"]
    if failures:
        sys.exit(f"doctor: this profile cannot run here: {', '.join(failures)}")


@app.command("flow")
def run_flow(
    settings: Annotated[list[str] | None, typer.Argument(help="parameters of the flow, NAME=VALUE")] = None,
    deployment: Annotated[str, typer.Option(help="what to run")] = "train/local",
) -> None:
    """Run a deployment on a Prefect server, started here with a worker if none runs; exit code 1 if it fails."""
    from pipeline.flows.local_server import run_flow as run
    from pipeline.flows.settings import parse_settings

    try:
        sys.exit(run(deployment, parse_settings(settings or [])))
    except PipelineError as error:
        sys.exit(f"flow: error: {error}")


@app.command("down")
def stop_server() -> None:
    """Stop the Prefect server and workers that `gain flow` started, and nothing else."""
    from pipeline.flows.processes import stop

    ended = stop()
    print(f"down: stopped {', '.join(ended)}" if ended else "down: nothing that was started here is running")


@app.command("promote")
def promote_challenger(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="judge only")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="back to the champion before this one")] = False,
    reason: Annotated[str, typer.Option(help="why, for the audit trail")] = "",
    profile: Annotated[str | None, typer.Option(help="instead of the profile that params.yaml names")] = None,
) -> None:
    """Make the challenger the champion if the rules of params.yaml hold; exit code 1 if they do not."""
    from pipeline.release import promotion

    try:
        chosen = load_params(profile=profile)
        decision = promotion.decide(chosen, rollback=rollback, reason=reason, dry_run=dry_run)
    except PipelineError as error:
        sys.exit(f"promote: error: {error}")
    print(decision.markdown())
    if not decision.accepted:
        sys.exit(1)


@app.command("sync")
def send_records() -> None:
    """Send MLflow what could not be sent when it happened, each thing once; exit code 1 if it still cannot."""
    from pipeline.tracking.sender import num_waiting, send_waiting

    waiting = num_waiting()
    if not send_waiting():
        sys.exit(1)
    print(f"sync: {waiting - num_waiting()} records sent, {num_waiting()} waiting")


@app.command("ui")
def show_runs(port: Annotated[int, typer.Option(help="of MLflow's UI on 127.0.0.1")] = 5000) -> None:
    """Show the runs in MLflow's UI, with the addresses of the views that a comparison begins with."""
    from pipeline.base.errors import without_credentials
    from pipeline.release.registry import registry_errors
    from pipeline.tracking.saved_views import VIEWS, view_page
    from pipeline.tracking.server import connect, problem_with, tracking_uri

    uri = tracking_uri()
    try:
        with registry_errors("the list of runs"):
            _, experiment_id = connect()
    except PipelineError as error:
        sys.exit(f"ui: error: {error}")
    base = without_credentials(uri.rstrip("/")) if uri.startswith("http") else f"http://127.0.0.1:{port}"
    pages = [f"{name}: {base}/{view_page(name, experiment_id)}" for name in VIEWS]
    if uri.startswith("http"):
        print(*pages, sep="\n")
        return
    command = ["ui", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen([sys.executable, "-W", "ignore", "-m", "mlflow", *command])
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    with suppress(KeyboardInterrupt):  # which reaches the server too
        while server.poll() is None and problem_with(base):
            time.sleep(0.5)
        if server.poll() is None:
            print("", *pages, "", sep="\n", flush=True)  # last, so that they can be found
    with suppress(KeyboardInterrupt):
        sys.exit(server.wait())


@app.command("predict")
def predict_images(
    images: Annotated[list[Path], typer.Argument(help="PNG or JPEG files of any size")],
    out: Annotated[Path, typer.Option(help="folder for the pictures and predictions.json")],
    weights: Annotated[Path | None, typer.Option(help="safetensors file, instead of one from the registry")] = None,
    alias: Annotated[str, typer.Option(help="of the version in the registry")] = "champion",
    profile: Annotated[str | None, typer.Option(help="instead of the profile that params.yaml names")] = None,
) -> None:
    """Classes, segmentation and attention of images, as overlays and numbers."""
    try:
        with _weights(weights, alias, profile) as path:
            _predict(images, out, path)
    except PipelineError as error:
        sys.exit(f"predict: error: {error}")


@app.command("export")
def export_network(
    out: Annotated[Path, typer.Option(help="the ONNX file to write")],
    weights: Annotated[Path | None, typer.Option(help="safetensors file, instead of one from the registry")] = None,
    alias: Annotated[str, typer.Option(help="of the version in the registry")] = "champion",
    profile: Annotated[str | None, typer.Option(help="instead of the profile that params.yaml names")] = None,
) -> None:
    """Write an ONNX graph with class probabilities, segmentation logits and attention as outputs."""
    try:
        from pipeline.release.onnx import export_onnx

        with _weights(weights, alias, profile) as path:
            export_onnx(path, out)
    except PipelineError as error:
        sys.exit(f"export: error: {error}")
    print(f"export: {out}, {out.stat().st_size / 2**20:.1f} MiB")


@contextmanager
def _weights(weights: Path | None, alias: str, profile: str | None) -> Iterator[Path]:
    """The file that the user names, or for a while the one behind an alias of the registry."""
    if weights is not None:
        yield weights
        return
    from pipeline.release.registry import download_weights

    name = load_params(profile=profile).register_.registered_model_name
    with tempfile.TemporaryDirectory() as folder:
        yield download_weights(name, alias, Path(folder))


def _predict(images: list[Path], out: Path, weights: Path) -> None:
    import torch
    from PIL import Image

    from pipeline.data.voc import voc_palette
    from pipeline.model.weights import load_weights
    from pipeline.release.prediction import Outputs, palette_png, predict, probability_table, read_image
    from pipeline.report.overlays import attention_overlay, segmentation_overlay

    stems = [path.stem for path in images]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise PipelineError(f"{twice[0]}: two images of this name; their results would be one file")
    try:
        contents = {path: path.read_bytes() for path in images}
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PipelineError(f"{error.filename}: {error.strerror}") from error
    decoded = {path: read_image(content, str(path)) for path, content in contents.items()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, class_names = load_weights(weights)
    if outside := [name for name in class_names if Path(name).name != name]:
        raise PipelineError(f"{weights}: the class {outside[0]!r} cannot be part of a file's name; rename it")
    outputs = Outputs(model.to(device).eval())
    numbers = {}
    for path, image in decoded.items():
        found = predict(outputs, class_names, image, device)
        Image.fromarray(segmentation_overlay(image, found.segmentation)).save(out / f"{path.stem}_segmentation.png")
        for name, attention in found.attention.items():
            Image.fromarray(attention_overlay(image, attention)).save(out / f"{path.stem}_attention_{name}.png")
        (out / f"{path.stem}_mask.png").write_bytes(palette_png(found.segmentation, voc_palette()))
        numbers[str(path)] = found.class_probs
        print(f"{path}: {probability_table(found.class_probs)}", flush=True)
    write_json(out / "predictions.json", numbers)


def _find_learning_rate(
    stage: str,
    variant: str,
    lowest: float,
    highest: float,
    steps: int,
    profile: str | None,
    seed: int | None,
    folder: Path,
) -> None:
    params = load_params(profile=profile, seed=seed)
    variants = list(params.variants)
    if (stage == "finetune") != bool(variant) or (variant and variant not in variants):
        raise PipelineError(f"finetune takes a variant, one of {', '.join(variants)}; the other stages take none")
    if not 0 < lowest < highest:
        raise PipelineError(f"--lowest {lowest:g} and --highest {highest:g} must be 0 < lowest < highest")
    from pipeline.base.workspace import Workspace
    from pipeline.tracking.tracker import Tracker, Tracking

    with Tracking() as tracking:
        from pipeline.report.charts import learning_rate_chart  # torch and matplotlib: seconds; the sender gets ready
        from pipeline.training.assembly import assemble
        from pipeline.training.range_test import range_test

        run = assemble(params.on_one_device(), Workspace(folder), stage, variant)
        result = range_test(run.task, lowest=lowest, highest=highest, num_steps=steps)
        suggestion = result.suggestion
        picture = learning_rate_chart(
            result.rates, result.losses, result.smoothed, suggestion, f"{run.task.name}: learning-rate range test"
        )
        base = folder / "reports" / "lr_find" / run.task.name.replace("/", "_")
        rows = zip(result.rates, result.losses, result.smoothed, strict=True)
        write_csv(base.with_suffix(".csv"), [{"rate": r, "loss": x, "smoothed": y} for r, x, y in rows])
        with atomic_file(base.with_suffix(".png")) as partial:
            picture.save(partial, "PNG")
        with Tracker(
            tracking,
            f"lr-find-{run.task.name.replace('/', '-')}",
            run_name=f"lr-find-{variant or stage}-seed{params.seed}",
            params=run.used,
            tags={"stage": "lr-find", "variant": variant, "profile": params.profile, "seed": str(params.seed)},
        ) as tracker:
            for step, (rate, loss) in enumerate(zip(result.rates, result.losses, strict=True)):
                tracker.log_metrics({"lr_find/learning_rate": rate, "lr_find/loss": loss}, step=step)
            if suggestion is not None:
                tracker.log_metrics({"lr_find/suggestion": suggestion}, step=0)
            tracker.log_image("lr_find", picture, step=0)
    found = (
        f"try learning_rate: {suggestion:.1e}" if suggestion else "the loss fell at no rate; look at frozen and data"
    )
    print(f"lr-find: {run.task.name}: {found} (now {run.task.options.learning_rate:g}); see {base.with_suffix('.png')}")


if __name__ == "__main__":
    app()

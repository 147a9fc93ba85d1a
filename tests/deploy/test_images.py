"""The images: what their file says, and, where they are built, playserve in them as a pod runs it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import build
import pytest

from playserve_client.client import PolicyClient

ROOT = Path(__file__).resolve().parents[2]
CONTAINERFILE = (ROOT / "deploy" / "images" / "Containerfile").read_text()


def test_every_image_is_a_stage_and_holds_one_extra_of_the_distribution() -> None:
    stages = re.findall(r"^FROM \S+ AS (\S+)$", CONTAINERFILE, re.MULTILINE)
    assert stages == ["build", "runtime", *build.IMAGES]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    missing = {image.extra for image in build.IMAGES.values()} - extras.keys()
    if missing:
        pytest.skip(f"pyproject.toml has no extra {', '.join(sorted(missing))} yet")


def test_images_are_not_root_and_get_signals_themselves() -> None:
    runtime = CONTAINERFILE.split("AS runtime")[1]
    assert "USER 10001:10001" in runtime
    assert not re.search(r"^(RUN|ADD|USER (root|0))", runtime, re.MULTILINE)  # nothing is fetched or run as root
    assert 'ENTRYPOINT ["playserve"]' in runtime
    assert all(command.startswith('["') for command in re.findall(r"^CMD (.+)$", runtime, re.MULTILINE))


def test_the_context_of_a_build_is_what_the_file_copies() -> None:
    ignored = (ROOT / "deploy" / "images" / "containerignore").read_text().splitlines()
    context = {line[1:] for line in ignored if line.startswith("!")}
    copied = set()
    for names in re.findall(r"^COPY (?!--from)(.+) \S+$", CONTAINERFILE, re.MULTILINE):
        copied |= set(names.split())
    assert context == copied
    assert all((ROOT / name).exists() for name in context)


def test_the_chart_names_the_images_that_are_built() -> None:
    import yaml

    values = yaml.safe_load((ROOT / "helm" / "playserve" / "values.yaml").read_text())
    ours = [values["inference"], values["control"], values["jobs"]["grid"], values["jobs"]["evaluation"]]
    built = {image.tag.removeprefix("localhost/").partition(":")[0] for image in build.IMAGES.values()}
    assert {of["image"]["repository"] for of in ours} == built
    user = values["security"]["podSecurityContext"]
    assert user["runAsUser"] == user["runAsGroup"] == build.USER


def test_settings_of_this_machine_are_mounted_and_not_copied() -> None:
    command = build.build_command(
        build.IMAGES["inference-cpu"],
        base="localhost/base",
        pip_args="--a b",
        more="s3fs",
        mounts=[Path("/etc/pip.conf")],
    )
    assert command[:4] == ["buildah", "bud", "--isolation", "chroot"]
    for words in (["--build-arg", "EXTRA=serve"], ["--build-arg", "PIP_ARGS=--a b"], ["--build-arg", "MORE=s3fs"]):
        assert " ".join(words) in " ".join(command)
    assert command[command.index("--volume") + 1] == "/etc/pip.conf:/etc/pip.conf:ro"


def test_cuda_in_an_image_for_cpus_is_refused(tmp_path: Path) -> None:
    packages = tmp_path / "opt/playserve/lib/python3.11/site-packages"
    (packages / "torch").mkdir(parents=True)
    build.refuse_cuda(tmp_path)
    (packages / "nvidia").mkdir()
    with pytest.raises(SystemExit, match=r"site-packages/nvidia is in an image for CPUs.*--find-links"):
        build.refuse_cuda(tmp_path)


# -- in the images, where they are built ------------------------------------------------------------------------------


@contextmanager
def built(name: str, require_program: Callable[[str], None]) -> Iterator[Path]:
    """Mount the file system of an image; skip without root, buildah or the image."""
    require_program("buildah")
    if os.geteuid() != 0:
        pytest.skip("needs root: images are mounted")
    image = build.IMAGES[name]
    known = subprocess.run(["buildah", "inspect", "--type", "image", image.tag], check=False, capture_output=True)
    if known.returncode:
        pytest.skip(f"{image.tag} is not built: python deploy/images/build.py build {name}")
    with build.mounted(image.tag) as root:
        yield root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("inference-cpu", ["serve", "--help"]), ("control", ["control", "--help"]),
        ("evaluator", ["rollout", "--help"]), ("trainer", ["grid", "--help"]),
    ],
)  # fmt: skip
def test_the_entry_point_runs_as_nobody_on_a_read_only_root(
    name: str, arguments: list[str], require_program: Callable[[str], None]
) -> None:
    with built(name, require_program) as root:
        done = subprocess.run(build.run_command(root, arguments), check=True, capture_output=True, text=True)
        assert done.stdout.startswith("usage: playserve")
        # Nothing of a builder is left.
        assert not list(root.glob("opt/playserve/lib/python3*/site-packages/pip"))
        assert not shutil.which("cc", path=str(root / "usr/bin"))
        if not build.IMAGES[name].cuda:
            build.refuse_cuda(root)


@pytest.mark.slow
def test_the_image_serves_a_store_that_is_mounted(tmp_path: Path, require_program: Callable[[str], None]) -> None:
    """The CPU inference image as the chart runs it: PID 1, user 10001, read-only root, the store at /store."""
    store = tmp_path / "store"
    publish(store, tmp_path / "checkpoint")
    # The user in the image is another one.
    for path in [store, *store.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    arguments = ["serve", "--store", "/store", "--port", "0", "--drain-grace-s", "1"]
    with built("inference-cpu", require_program) as root:
        command = build.run_command(root, arguments, [(store, "/store")])
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            ready = server.stdout.readline()
            port = re.search(r" port=(\d+)", ready)
            assert port, ready
            try:
                with PolicyClient(f"127.0.0.1:{port[1]}") as client:
                    assert [policy.spec.name for policy in client.list_policies()] == ["tiny"]
            finally:
                # `unshare` itself waits and takes no signal; PID 1 of the new namespace is its child.
                children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()
                os.kill(int(children.split()[0]), signal.SIGTERM)
            assert server.wait() == 0


def publish(store: Path, folder: Path) -> None:
    """Publish a small policy."""
    from playserve_trainer import checkpoint
    from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy
    from playserve_trainer.store import CheckpointStore

    model = TinyRecurrentPolicy(TinyRecurrentConfig(hidden=16))
    checkpoint.save(folder, model, checkpoint.Manifest.describe(model, seed=1))
    CheckpointStore(store).publish("tiny", folder)

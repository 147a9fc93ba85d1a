"""Builds the images of deploy/images/Containerfile with buildah, and tries them: no daemon, no registry of images.

::

    python deploy/images/build.py base                              # a Debian base, by debootstrap
    python deploy/images/build.py build inference-cpu --base localhost/playserve-base:bookworm
    python deploy/images/build.py try inference-cpu -- serve --help # as user 10001 on a read-only root

Needs root, buildah and, for `base`, debootstrap (Debian's packages of these names). Without --base, images stand on
docker.io/library/python, which a machine without that registry cannot pull. pip's own settings (a mirror, a
certificate) are the machine's: they are mounted while an image is built, and stay out of it.

Images that compute on CPUs take torch's CPU wheel, from torch's own index, or, where that is out of reach, from a
folder: ``--pip-args "--find-links /opt/wheels" --mount /opt/wheels``. One that holds gigabytes of CUDA all the same is
refused.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["IMAGES", "Image", "build_command", "main", "refuse_cuda", "run_command"]

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CPU_WHEELS = "--extra-index-url https://download.pytorch.org/whl/cpu"
LOCAL_BASE = "localhost/playserve-base:bookworm"
#: What pip may be told by the machine, and what it may be told to read.
PIP_SETTINGS = (Path("/etc/pip.conf"), Path("/etc/ssl/certs/ca-certificates.crt"))
USER = 10001


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image.

    Attributes:
        target: Stage of the Containerfile.
        extra: The extra of the distribution that it holds.
        cuda: Whether torch is to be the build for CUDA.
    """

    target: str
    extra: str
    cuda: bool = False

    @property
    def tag(self) -> str:
        """The image's local name."""
        name, _, variant = self.target.partition("-")
        return f"localhost/playserve-{name}:{variant or 'latest'}"


IMAGES = {
    image.target: image
    for image in (
        Image(target="inference-cpu", extra="serve"),
        Image(target="inference-cuda", extra="serve", cuda=True),
        Image(target="control", extra="control"),
        Image(target="evaluator", extra="envs"),
        Image(target="trainer", extra="train", cuda=True),
    )
}


def build_command(image: Image, *, base: str, pip_args: str, more: str, mounts: Sequence[Path]) -> list[str]:
    """Return buildah's command line.

    Args:
        image: Which.
        base: Image with Python to stand on; empty: the Containerfile's own.
        pip_args: More arguments of pip.
        more: More packages than the extra has.
        mounts: Files and folders of this machine that are there, read-only, while it is built.
    """
    command = [
        "buildah", "bud", "--isolation", "chroot", "--layers=false", "--target", image.target,
        "--ignorefile", str(HERE / "containerignore"), "--file", str(HERE / "Containerfile"), "--tag", image.tag,
        "--build-arg", f"EXTRA={image.extra}", "--build-arg", f"PIP_ARGS={pip_args}", "--build-arg", f"MORE={more}",
    ]  # fmt: skip
    if base:
        command += ["--build-arg", f"BASE={base}"]
    for path in mounts:
        command += ["--volume", f"{path}:{path}:ro"]
    return [*command, str(ROOT)]


def run_command(root: Path, arguments: Sequence[str], mounts: Sequence[tuple[Path, str]] = ()) -> list[str]:
    """Return a command that runs `playserve` in the file system of an image, as a pod of the chart would.

    The root is read-only, /tmp and /dev/shm are memory, the user is 10001 without capabilities, the process is PID 1 of
    its own PID namespace.

    Args:
        root: Where the image is mounted.
        arguments: Of `playserve`.
        mounts: (folder of this machine, place in the image) to be there as well, read-only.
    """
    inside = shlex.quote(str(root))
    steps = [
        f"mount --bind {inside} {inside}",
        f"mount -t proc proc {inside}/proc",
        f"mount -t tmpfs -o mode=1777 tmpfs {inside}/tmp",  # noqa: S108 - of the image
        f"mount --rbind /dev {inside}/dev",
    ]
    for source, place in mounts:
        steps += [f"mkdir -p {inside}{place}", f"mount --bind -o ro {shlex.quote(str(source))} {inside}{place}"]
    steps.append(f"mount -o remount,ro,bind {inside}")
    environment = ["PATH=/opt/playserve/bin:/usr/local/bin:/usr/bin:/bin", "HOME=/tmp", "PYTHONDONTWRITEBYTECODE=1"]
    steps.append(
        f"exec chroot {inside} setpriv --reuid {USER} --regid {USER} --clear-groups --inh-caps=-all "
        f"--bounding-set=-all --no-new-privs env -i {shlex.join(environment)} playserve {shlex.join(arguments)}"
    )
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", "\n".join(steps)]


@contextlib.contextmanager
def mounted(tag: str) -> Iterator[Path]:
    """Mount an image's file system for the length of the block."""
    container = _output("buildah", "from", "--pull-never", tag)
    try:
        yield Path(_output("buildah", "mount", container))
    finally:
        subprocess.run(["buildah", "rm", container], check=True, stdout=subprocess.DEVNULL)


def refuse_cuda(root: Path) -> None:
    """Exit if CUDA's libraries lie in the file system of an image that has no use for them."""
    if found := sorted(root.glob("opt/playserve/lib/python3*/site-packages/nvidia")):
        raise SystemExit(
            f"{found[0].relative_to(root)} is in an image for CPUs: pip found no CPU wheel of torch; name a "
            "folder that has one by --pip-args '--find-links DIR' --mount DIR"
        )


def make_base(suite: str, mirror: str) -> None:
    """Make LOCAL_BASE: Debian with Python, nothing else."""
    with tempfile.TemporaryDirectory(prefix="playserve-base-") as folder:
        root = Path(folder) / "root"
        packages = "python3,python3-venv,ca-certificates"
        _run("debootstrap", "--variant=minbase", f"--include={packages}", suite, str(root), mirror)
        for place in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
            for path in (root / place).glob("*"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        container = _output("buildah", "from", "scratch")
        _run("buildah", "add", "--quiet", container, str(root), "/")
        _run("buildah", "config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", container)
        _run("buildah", "commit", "--quiet", "--rm", container, LOCAL_BASE)


def _run(*command: str) -> None:
    sys.stderr.write(f"$ {shlex.join(command)}\n")
    subprocess.run(command, check=True)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def main(arguments: Sequence[str]) -> int:
    """Run one action; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    base = actions.add_parser("base", help=f"make {LOCAL_BASE}")
    base.add_argument("--suite", default="bookworm", help="of Debian (default bookworm)")
    base.add_argument("--mirror", default="http://deb.debian.org/debian", help="of Debian")
    build = actions.add_parser("build", help="build an image")
    build.add_argument("image", choices=sorted(IMAGES))
    build.add_argument("--base", default="", help="image to stand on (default: the Containerfile's)")
    build.add_argument("--pip-args", help=f"(default for CPU images: {CPU_WHEELS})")
    build.add_argument("--more", default="", help="more packages, such as s3fs")
    build.add_argument("--mount", action="append", default=[], type=Path, help="folder that pip reads (repeatable)")
    try_ = actions.add_parser("try", help="run playserve in an image, as a pod would")
    try_.add_argument("image", choices=sorted(IMAGES))
    try_.add_argument("arguments", nargs=argparse.REMAINDER, help="of playserve, after --")
    args = parser.parse_args(arguments)
    if args.action == "base":
        make_base(args.suite, args.mirror)
        return 0
    image = IMAGES[args.image]
    if args.action == "build":
        mounts = [path for path in (*PIP_SETTINGS, *args.mount) if path.exists()]
        pip_args = ("" if image.cuda else CPU_WHEELS) if args.pip_args is None else args.pip_args
        _run(*build_command(image, base=args.base, pip_args=pip_args, more=args.more, mounts=mounts))
        if not image.cuda:
            with mounted(image.tag) as root:
                refuse_cuda(root)
        return 0
    with mounted(image.tag) as root:
        wanted = args.arguments[1:] if args.arguments[:1] == ["--"] else args.arguments
        return subprocess.run(run_command(root, wanted), check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

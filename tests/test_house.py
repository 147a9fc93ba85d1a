"""The walls of the house: floors, light imports, sizes, and documents that name only what exists."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "playserve": "proto",
    "playserve_client": "client",
    "playserve_trainer": "trainer",
    "playserve_services": "services",
}
SOURCES = sorted(
    path
    for package, folder in PACKAGES.items()
    for path in (ROOT / folder / package).rglob("*.py")
    if "_pb2" not in path.name
)
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 60
#: Longer functions, each with its reason: {"path:function": "why"}.
LONG_FUNCTIONS: dict[str, str] = {}

# Runs in a fresh interpreter: refuses the named modules, then imports what it is told.
BLOCKED_IMPORT = """
import importlib, sys
blocked, wanted = sys.argv[1].split(","), sys.argv[2:]
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Wall())
for name in wanted:
    importlib.import_module(name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
#: Import names of everything that an extra brings and the core install does not.
EXTRAS = [
    "torch", "safetensors", "fsspec", "rich", "lz4", "simplejpeg", "PIL", "mss", "pynput", "nle", "ale_py", "gymnasium",
    "cv2", "tritonclient", "prometheus_client", "fastapi", "grpc_health", "grpc_reflection", "pydantic",
    "pydantic_settings", "uvloop", "starlette", "uvicorn", "av", "vizdoom", "yaml", "transformers",
    "sentence_transformers", "jwt", "cryptography", "sqlalchemy", "alembic", "psycopg", "python_multipart", "pygame",
]  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(blocked: list[str], modules: list[str]) -> set[str]:
    """Import `modules` in a fresh interpreter in which `blocked` are missing; return all top-level names loaded."""
    command = [sys.executable, "-c", BLOCKED_IMPORT, ",".join(blocked), *modules]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_floors_hold() -> None:
    lint_imports = Path(sys.executable).parent / "lint-imports"
    if not lint_imports.exists():
        pytest.skip("import-linter is not installed")
    done = subprocess.run([lint_imports, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_client_and_the_wire_import_without_torch() -> None:
    modules = [module_name(path) for path in SOURCES if path.relative_to(ROOT).parts[0] in ("proto", "client")]
    assert "playserve_client" in modules
    loaded = imported(["torch", "fastapi", "pydantic", "prometheus_client"], modules)
    assert "playserve_client" in loaded


def test_the_core_install_is_enough_for_the_client() -> None:
    assert "numpy" in imported(EXTRAS, ["playserve.errors", "playserve.specs", "playserve.cli", "playserve_client"])


def test_subcommands_are_listed_by_the_core_install() -> None:
    modules = [entry.value for entry in entry_points(group="playserve.commands")]
    assert modules
    loaded = imported(EXTRAS, modules)
    assert not loaded & {"torch", "fastapi", "nle", "ale_py"}


def test_the_trainer_imports_without_servers() -> None:
    modules = [module_name(path) for path in SOURCES if path.relative_to(ROOT).parts[0] == "trainer"]
    imported(["fastapi", "prometheus_client", "grpc_health", "grpc_reflection", "tritonclient"], modules)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_small_and_say_what_they_own(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= MAX_MODULE_LINES
    if path.name != "__init__.py" or text.strip():
        assert ast.get_docstring(tree), "no module docstring"
    where = str(path.relative_to(ROOT))
    long = {
        f"{where}:{node.name}": node.end_lineno - node.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert {name: lines for name, lines in long.items() if name not in LONG_FUNCTIONS} == {}


def test_public_names_exist() -> None:
    import importlib

    for package in ("playserve", "playserve_client"):
        for path in SOURCES:
            if module_name(path).partition(".")[0] != package:
                continue
            module = importlib.import_module(module_name(path))
            for name in getattr(module, "__all__", ()):
                assert hasattr(module, name), f"{module.__name__}.__all__ names {name}"


def test_packages_are_typed_and_shipped() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    shipped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert shipped == [f"{folder}/{package}" for package, folder in PACKAGES.items()]
    for folder in shipped:
        assert (ROOT / folder / "py.typed").exists()


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def test_the_makefile_has_what_the_house_promises() -> None:
    assert {"demo", "test", "lint", "types", "gen", "bench", "gpu", "system-deps", "help", "install"} <= make_targets()


def test_ci_runs_only_what_the_makefile_has() -> None:
    commands = re.findall(r"\bmake ([a-z-]+)", (ROOT / ".ci/run").read_text(encoding="utf-8"))
    assert commands
    assert set(commands) <= make_targets()


DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_only_what_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.S))
    assert set(re.findall(r"\bmake ([a-z][a-z-]*)", code)) <= make_targets()
    commands = {entry.name for entry in entry_points(group="playserve.commands")}
    assert set(re.findall(r"(?:^|[`$/ ])playserve ([a-z][a-z-]*)", code, re.M)) <= commands
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_readme_gives_the_two_commands_on_its_first_screen() -> None:
    first = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:60])
    assert "make demo" in first
    assert "make test" in first


def test_every_pin_of_the_project_is_in_the_constraints() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    wanted = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    for entry in wanted:
        match = re.match(r"([\w.-]+)(?:\[[^]]*\])?(?:==([\w.]+))?", entry)
        assert match is not None
        name = re.sub(r"[-_.]+", "-", match[1]).lower()
        if name == "playserve":  # an extra that takes another one in
            continue
        assert name in pinned, f"{name} is not in constraints.txt"
        assert match[2] in (None, pinned[name]), f"{entry}, but constraints.txt has {pinned[name]}"


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


def test_gpu_tests_are_skipped_with_a_message_where_there_is_no_device() -> None:
    done = run(sys.executable, "deploy/dev/gpu.py", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert "no CUDA device here; skipped" in done.stdout


def test_gpu_tests_need_nothing_that_a_bare_machine_lacks() -> None:
    # Wherever a GPU test lives, its file is collected there without our extras and our servers' packages.
    import gpu

    for name in gpu.gpu_tests():
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        top = {
            alias.name.partition(".")[0] for node in tree.body if isinstance(node, ast.Import) for alias in node.names
        }
        top |= {(node.module or "").partition(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom)}
        assert not top & {"nle", "ale_py", "gymnasium", "cv2", "tritonclient", "lz4", "simplejpeg"}, name


def test_gpu_tests_say_what_a_machine_lacks_and_take_it_from_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu

    monkeypatch.setattr(gpu, "NEEDED", {"sys": "python", "not_on_this_machine.part": "not-on-this-machine"})
    assert gpu.unpacked_wheels(tmp_path / "wheels", tmp_path / "site") == []
    assert gpu.missing("") == ["not-on-this-machine"]
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "not_on_this_machine-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("not_on_this_machine/part.py", "")
    roots = gpu.unpacked_wheels(tmp_path / "wheels", tmp_path / "site")
    assert roots == [str(tmp_path / "site")]
    assert gpu.missing(os.pathsep.join(roots)) == []


def test_gpu_tests_are_collected_by_the_settings_of_bare_machines() -> None:
    # As on such a machine: its own settings, and a device that torch does not see here.
    pretend = "import sys, gpu; gpu.device_name = lambda: 'a GPU'; sys.exit(gpu.main(['--collect-only', '-q']))"
    done = run(sys.executable, "-c", pretend, PYTHONPATH=str(ROOT / "deploy/dev"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_gpu.py::" in done.stdout


def test_gpu_tests_import_with_what_make_gpu_asks_for() -> None:
    import gpu

    assert gpu.missing("") == []
    asked = {"torch", *(name.partition(".")[0] for name in gpu.NEEDED)}
    modules = set()
    for name in (*gpu.gpu_tests(), "tests/support/rig.py"):  # the rig is what conftest.py beside them imports
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported(sorted({*EXTRAS, "lint_imports"} - asked), sorted(m for m in modules if m.partition(".")[0] in PACKAGES))


def test_system_deps_succeeds_without_root(tmp_path: Path) -> None:
    # A PATH that lacks node and apt-get, and an `id` that is not root's.
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    done = run("bash", "deploy/dev/system-deps.sh", PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "not root; would install: nodejs npm" in done.stdout


def test_missing_programs_are_counted_by_name(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    (tmp_path / "test_sample.py").write_text(
        "def test_a(require_program): require_program('no-such-program')\n"
        "def test_b(require_program): require_program('sh')\n"
    )
    done = run(sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", f"--rootdir={tmp_path}", str(tmp_path))
    assert done.returncode == 0, done.stdout
    assert "tests skipped for missing system dependencies: 1" in done.stdout
    assert "test_sample.py::test_a: no-such-program" in done.stdout
    assert done.stdout.rstrip().splitlines()[-1].startswith("1 passed, 1 skipped")

"""The layers of ARCHITECTURE.md hold, and the check that says so can say no."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def lint_imports(config: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache", "--config", str(config)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_layers_hold() -> None:
    ended = lint_imports(ROOT / "pyproject.toml")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "0 broken" in ended.stdout


def test_the_check_finds_a_broken_layer(tmp_path: Path) -> None:
    upside_down = tmp_path / "importlinter.toml"
    upside_down.write_text(
        '[tool.importlinter]\nroot_package = "node"\n[[tool.importlinter.contracts]]\nname = "upside down"\ntype = "layers"\n'
        'layers = ["node.domain", "node.journal"]\n'
    )
    assert lint_imports(upside_down).returncode == 1


def test_every_module_of_the_package_stands_in_a_layer() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    layers = text[text.index("layers = [") : text.index("]\n", text.index("layers = ["))]
    names = {
        path.stem if path.is_file() else path.name
        for path in (ROOT / "node").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert not [name for name in names - {"__init__"} if f"node.{name} " not in layers.replace('"', " ")]

"""`python -m jaxcnn`, of a checkout and of an installed wheel."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

import jaxcnn.__main__ as main
from jaxcnn import cli
from jaxcnn.errors import UserError
from tests.conftest import ROOT
from tests.scripts.commands import NAMES


def test_every_command_is_listed_and_a_mistyped_one_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jaxcnn"])
    main.main()
    listed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert {name for name, _ in listed} == {*NAMES, "parity"}
    assert all(text.endswith((".", "`")) and len(text) < 120 for _, text in listed)
    monkeypatch.setattr(sys, "argv", ["/x/jaxcnn/__main__.py", "trian"])
    with pytest.raises(UserError, match="no command 'trian': python -m jaxcnn; did you mean train"):
        main.main()
    monkeypatch.setattr(sys, "argv", ["jaxcnn", "--version"])
    main.main()
    assert capsys.readouterr().out.startswith("jaxcnn 0.")
    monkeypatch.setattr(sys, "argv", ["jaxcnn evaluate"])
    cli.complain("not my/scripts/x.py: here; run scripts/prepare_data.py or python -m parity")
    assert capsys.readouterr().err == "error: not my/scripts/x.py: here; run jaxcnn prepare_data or jaxcnn parity\n"


def test_a_wheel_has_all_packages_and_the_commands(tmp_path):
    source, installed = tmp_path / "source", tmp_path / "installed"
    for name in ("jaxcnn", "parity", "scripts"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = source.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    for path in (path for name in ("jaxcnn", "parity", "scripts") for path in (source / name).rglob("*.*")):
        assert (installed / str(path.relative_to(source)).replace("scripts", "jaxcnn_scripts")).exists(), path
    entry = "import sys; sys.argv[0] = '/bin/jaxcnn'; from jaxcnn.__main__ import start; start()"
    for called, begin in (["-m", "jaxcnn"], "python -m jaxcnn"), (["-c", entry], "jaxcnn"):
        done = subprocess.run(
            [sys.executable, "-S", *called, "benchmark", "--help"],
            cwd=tmp_path, env={"PYTHONPATH": f"{installed}:{sysconfig.get_paths()['purelib']}"}, capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: {begin} benchmark ")
        assert f"\n  {begin} benchmark --scaling" in done.stdout
        assert "scripts/" not in done.stdout

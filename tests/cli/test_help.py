"""Help is there at once: no command imports torch before it runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.calling import done, kdscale, refused

COMMANDS = (
    "", "train", "check", "evaluate", "data", "data pack", "data index", "bench", "bench step", "show", "export", "publish", "quickstart", "sweep", "results",
    "parity", "plan", "teach", "checkpoints",
)  # fmt: skip
HEAVY = ("torch", "timm", "torchvision", "transformers", "accelerate", "webdataset", "numpy", "matplotlib")
PROBE = (
    "import sys; sys.argv = ['kdscale', *sys.argv[1:], '--help']\n"
    "from kdscale.cli.main import main\n"
    "try: main()\n"
    "except SystemExit as end: assert not end.code\n"
    f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])\n"
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_does_and_imports_nothing_heavy(command: str) -> None:
    told = subprocess.run([sys.executable, "-c", PROBE, *command.split()], capture_output=True, text=True, check=True)
    assert told.stderr == ""
    assert told.stdout.startswith("Usage: kdscale")
    assert told.stdout.endswith("heavy: []\n"), told.stdout[-200:]
    assert all(len(line) <= 80 for line in told.stdout.splitlines())
    assert "..." not in told.stdout.partition("Commands:")[2], "a command's first sentence is cut"


def test_version() -> None:
    assert done("--version").startswith("kdscale 0.")


@pytest.mark.parametrize("group", ["", "data", "bench"])
def test_a_group_alone_is_answered_with_its_help(group: str) -> None:
    said = kdscale(*group.split())
    assert said.code == 64
    assert said.err.startswith("Usage: kdscale")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("trian", ["'trian'", "'train'"]),
        ("data pakc a b", ["'pakc'", "'pack'"]),
        ("train", ["RECIPE"]),
        ("train quickstart", ["--out"]),
        ("train quickstart --outt x", ["--outt", "--out"]),
        ("evaluate x --crop 7", ["--crop", "1"]),
        ("bench step quickstart --pairs 1", ["--pairs", "3"]),
        ("publish x", ["--repo"]),
        ("show", ["WHAT"]),
        ("show recipes epochs=3", ["'epochs=3'", "RECIPE"]),
        ("show methods --json", ["--json", "methods"]),
    ],
)
def test_misuse_is_one_line(line: str, words: list[str]) -> None:
    told = refused(*line.split())
    assert all(word in told for word in words), told


def test_a_file_in_the_place_of_a_folder_is_one_line() -> None:
    assert "is a file" in refused("train", "quickstart", "--out", __file__)

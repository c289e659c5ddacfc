"""README's method in one file is a file that trains: as it stands there, in a folder of the reader's own."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.engine import small

README = Path(__file__).resolve().parents[2] / "README.md"


def snippet(page: str) -> str:
    """The Python of the section about a method in one file: its one block that defines a class."""
    section = page.partition("## A method in one file\n")[2].partition("\n## ")[0]
    blocks: list[str] = []
    block = ""
    for line in [*section.splitlines(), "end"]:
        if line and not line.startswith("    "):
            blocks, block = [*blocks, block], ""
        else:
            block += line + "\n"
    (code,) = (textwrap.dedent(block) for block in blocks if "class " in block)
    return code


def test_the_method_that_readme_shows_trains_where_it_is_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small.shards(tmp_path / "shards")
    (tmp_path / "mine.py").write_text(snippet(README.read_text()))
    monkeypatch.chdir(tmp_path)
    tiny = ["data.train={size: 16, crop: none}", "data.batch=24", "data.eval_crop=1.0", "data.workers=0"]
    words = ["networks.student=resnet8", "networks.teacher={name: cnn6, floor: 0}", "machine.threads=1"]
    small.kdscale("train", "mine.py", f"data.source={data}", *tiny, *words, "steps=2", "--out", "run")
    entry = small.lines(tmp_path / "run")[-1]
    assert entry["step"] == 2
    assert set(entry["losses"]) == {"ce", "kd"}
    assert "top1" in small.kdscale("evaluate", "run").stdout

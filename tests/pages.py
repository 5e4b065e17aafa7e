"""Pages of the documentation whose commands are run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>.*?) -->\n)?```sh\n(?P<code>.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes
    ----------
    text
        Its text.
    run
        Blocks of commands that are run, in order.
    others
        Blocks that are not -> why.
    """

    text: str
    run: list[str]
    others: dict[str, str]


def read_page(name: str) -> Page:
    """Read a page of ``docs``; every block of commands in it is run or says why not."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    blocks = [(m["code"], m["reason"]) for m in BLOCK.finditer(text)]
    run = [code for code, reason in blocks if reason is None]
    return Page(text, run, {code: reason for code, reason in blocks if reason is not None})


def environment(own: dict[str, str]) -> dict[str, str]:
    """Return variables with the commands of this interpreter first on the path."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    programs = [str(Path(sys.executable).parent), os.environ["PATH"]]
    both = {"PYTHONPATH": os.pathsep.join(paths), "PATH": os.pathsep.join(programs)}
    return {**os.environ, **both, **own}


def run_script(code: str, directory: Path, own: dict[str, str]) -> str:
    """Run commands as somebody would who stops at the first that fails; return their output."""
    # The jobs in the background are the script's, and end with it.
    script = f"set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n{code}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=directory,
        env=environment(own),
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

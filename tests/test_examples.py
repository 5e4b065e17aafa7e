"""Examples and README: every program runs and is precise, every figure is right."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aegis_dask.ckks.parameters import PRESETS, Parameters

ROOT = Path(__file__).parents[1]
EVERY_EXAMPLE = sorted((ROOT / "examples").glob("*.py"))
LAYER = "06_encrypted_layer"  # needs the weights of MiniLM, and has no choice of parameters
REFRESHING = "07_refreshing"  # takes parameters with bootstrapping
EXAMPLES = [script for script in EVERY_EXAMPLE if script.stem not in (LAYER, REFRESHING)]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PRESET = "insecure-n10-d40"  # 6 levels; fresh ciphertexts have 36 bits of precision
MIN_PRECISION_BITS = 20


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def worst_bits(output: str) -> list[float]:
    return [float(bits) for bits in re.findall(r"(\S+) bits at worst", output)]


def test_there_are_examples() -> None:
    assert [script.name[:2] for script in EVERY_EXAMPLE] == [
        "01",
        "02",
        "03",
        "04",
        "05",
        "06",
        "07",
    ]


@pytest.mark.slow
def test_the_layer_example_runs_and_is_precise() -> None:
    result = run_python(str(ROOT / "examples" / f"{LAYER}.py"))
    assert result.returncode == 0, result.stderr
    assert "INSECURE" in result.stdout
    assert worst_bits(result.stdout)[0] > 7  # 1e-2


def test_the_example_of_refreshing_runs_and_is_precise() -> None:
    script = str(ROOT / "examples" / f"{REFRESHING}.py")
    result = run_python(script, "--preset", "insecure-n10-d40-b4")
    assert result.returncode == 0, result.stderr
    assert "bootstraps at" in result.stdout
    assert worst_bits(result.stdout)[0] > 12  # (x + x^2) / 2 multiplies errors by up to 1.5


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_an_example_runs_and_is_precise(script: Path) -> None:
    result = run_python(str(script), "--preset", PRESET)
    assert result.returncode == 0, result.stderr
    assert "insecure" in result.stderr.lower()  # nobody uses such a preset without seeing it
    if script.stem == "03_polynomial":
        rows = [line.split() for line in result.stdout.splitlines() if re.match(r" +\d", line)]
        precisions = [float(against_polynomial) for _, _, against_polynomial, _ in rows]
    else:
        precisions = worst_bits(result.stdout)
    assert precisions
    assert min(precisions) >= MIN_PRECISION_BITS


@pytest.mark.parametrize("script", EVERY_EXAMPLE, ids=lambda script: script.stem)
def test_an_example_fits_on_a_screen(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) < 80


def test_the_program_in_the_readme_runs_and_is_precise() -> None:
    graph, program = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert graph[graph.index("def program") :].strip() in re.sub(
        r'    """.*?"""\n', "", (ROOT / "graphs" / "bert_layer.py").read_text(encoding="utf-8")
    )
    result = run_python("-c", program)
    assert result.returncode == 0, result.stderr
    (precision,) = worst_bits(result.stdout)
    assert precision >= MIN_PRECISION_BITS


def test_the_table_of_the_readme_has_every_secure_preset_and_its_sizes() -> None:
    rows = [line.strip("|").split("|") for line in README.splitlines() if line.startswith("| `n")]
    table = {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in rows}
    assert list(table) == [name for name, literal in PRESETS.items() if not literal.insecure]
    for name, cells in table.items():
        p = Parameters.preset(name)
        ciphertext_bytes = 2 * len(p.limbs(p.max_level)) * 4 * p.ring_degree
        assert cells == [
            f"2^{p.literal.log_n}",
            f"{p.slots:,}",
            str(p.max_level),
            f"2^{p.literal.scale_bits}",
            f"{p.log2_key_modulus:.0f}",
            f"{p.evaluation_key_bytes / 1e6:.1f}",
            f"{ciphertext_bytes / 1e6:.1f}",
        ]

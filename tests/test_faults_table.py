"""The table of faults is that of the tests, and the guards that are taken out are in the code."""

import subprocess
import sys
import tomllib

import pytest

from tests.fault_table import PAGE, ROOT


def test_the_page_of_faults_is_that_of_the_tests():
    code = "from tests.fault_table import *; print(page(PAGE.read_text()) == PAGE.read_text(), len(collected()))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    same, count = said.stdout.split()[-2:]
    assert same == "True", "run: python tests/fault_table.py"
    assert int(count) >= 60
    assert PAGE.exists()


@pytest.mark.skipif(not (ROOT / "dsvcca").exists(), reason="no source here: what is installed is tested")
def test_every_guard_that_is_taken_out_is_in_the_code_once():
    mutants = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())["mutant"]
    found = {one["guard"]: (ROOT / one["file"]).read_text().count(one["before"]) for one in mutants}
    assert {guard: count for guard, count in found.items() if count != 1} == {}
    tests = {name.split("::")[0] for one in mutants for name in one["test"].split(" -- ")[0].split("|")}
    assert all((ROOT / name).exists() for name in tests)

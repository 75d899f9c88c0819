"""The table of faults is that of the tests."""

import subprocess
import sys

from tests.fault_table import PAGE, ROOT


def test_the_page_of_faults_is_that_of_the_tests():
    code = "from tests.fault_table import *; print(page(PAGE.read_text()) == PAGE.read_text(), len(collected()))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    same, count = said.stdout.split()[-2:]
    assert same == "True", "run: python tests/fault_table.py"
    assert int(count) >= 60
    assert PAGE.exists()

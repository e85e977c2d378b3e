"""The proof of ``make adoption`` with few customers: each case occurs once."""

from pathlib import Path

import pytest

from sandbox.business.cases import CASES
from tests.adoption.run import prove

pytestmark = pytest.mark.processes


def test_a_small_business_is_adopted_and_managed_as_its_truth_says(tmp_path: Path) -> None:
    lines: list[str] = []
    assert prove(tmp_path, count=len(CASES), seed=1, say=lines.append) == 0, "\n".join(lines)

"""In which numbers a device computes."""

from pathlib import Path

import pytest
import torch

from encoder.runtime.device import settled_precision
from encoder.training.optim import autocast

PRODUCTS = {True: torch.bfloat16, False: torch.float32}


@pytest.mark.parametrize("has_instructions", [True, False])
def test_auto_is_bf16_only_where_the_processor_multiplies_in_it(monkeypatch, has_instructions):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_instructions)
    assert settled_precision("auto", "cpu") == ("bf16" if has_instructions else "fp32")
    assert [settled_precision(given, "cpu") for given in ("fp32", "bf16")] == ["fp32", "bf16"]
    matrix = torch.eye(4)
    with autocast("auto"):
        assert (matrix @ matrix).dtype == PRODUCTS[has_instructions]
    with autocast("bf16"):  # asked for by name, it is what was asked for
        assert (matrix @ matrix).dtype == torch.bfloat16


def test_this_processor_s_flags_agree():
    """Against what the system says of the processor, where it says so."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        pytest.skip("no /proc/cpuinfo here")
    assert (settled_precision("auto", "cpu") == "bf16") == ("avx512_bf16" in flags)

"""``orchestrator audit`` answers at once."""

from __future__ import annotations

import subprocess
import sys


def test_the_audit_loads_no_torch() -> None:
    """Reading a ledger takes NumPy alone."""
    code = "import sys, orchestrator.cli.audit, orchestrator.ledger_audit; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

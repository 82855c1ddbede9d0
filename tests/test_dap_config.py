"""Settings are checked without the libraries that only a run needs."""

import subprocess
import sys
from pathlib import Path


def test_a_config_loads_neither_torch_nor_timm_nor_numpy() -> None:
    code = (
        "import sys; from dap import PruneConfig; PruneConfig(sparsity=0.75);"
        "assert not {'torch', 'timm', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[1], timeout=120)

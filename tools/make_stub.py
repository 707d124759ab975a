"""Write advcore/_core.pyi, the types of the compiled module, from the installed module itself.

Needs pybind11-stubgen. ``python tools/make_stub.py [PATH]``; the tests compare the file in the
repository with what this writes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

STUB = Path(__file__).parent.parent / "advcore" / "_core.pyi"


def generate() -> str:
    """Text of the stub."""
    from advcore import _core

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-P", "-m", "pybind11_stubgen", "advcore._core", "-o", folder]
        subprocess.run(command, check=True, capture_output=True)
        text = (Path(folder) / "advcore" / "_core.pyi").read_text()

    def value(match: re.Match[str]) -> str:
        name, owner = match.groups()
        return f"    {name} = {getattr(_core, owner)[name].value}"

    # Enum members with their values; what IntEnum itself has is left out.
    text = re.sub(r"^    (\w+): typing\.ClassVar\[(\w+)\]$", value, text, flags=re.MULTILINE)
    text = re.sub(r"    @classmethod\n    def __new__\(cls, value\):\n        \.\.\.\n", "", text)
    return re.sub(r"    def __format__\(self, format_spec\):\n        \.\.\.\n", "", text)


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else STUB).write_text(generate())

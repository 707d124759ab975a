"""Write advcore/_core.pyi, the types of the compiled module, from the installed module itself.

The program needs pybind11-stubgen. With ``--check`` it writes nothing and fails if the file in the
repository differs.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

STUB = Path(__file__).parent.parent / "advcore" / "_core.pyi"


def generate() -> str:
    """Return the text of the stub."""
    from advcore import _core

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-P", "-m", "pybind11_stubgen", "advcore._core", "-o", folder]
        subprocess.run(command, check=True, capture_output=True)
        text = (Path(folder) / "advcore" / "_core.pyi").read_text()

    def value(match: re.Match[str]) -> str:
        name, owner = match.groups()
        return f"    {name} = {getattr(_core, owner)[name].value}"

    # Enum members get their values, and the methods of IntEnum itself are left out.
    text = re.sub(r"^    (\w+): typing\.ClassVar\[(\w+)\]$", value, text, flags=re.MULTILINE)
    text = re.sub(r"    @classmethod\n    def __new__\(cls, value\):\n        \.\.\.\n", "", text)
    return re.sub(r"    def __format__\(self, format_spec\):\n        \.\.\.\n", "", text)


def main() -> None:
    """Write the stub, or with --check fail if it is not up to date."""
    if "--check" not in sys.argv[1:]:
        STUB.write_text(generate())
    elif STUB.read_text() != generate():
        sys.exit(f"{STUB.name} is not up to date: run `make stub`")


if __name__ == "__main__":
    main()

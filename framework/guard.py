"""The import names `kernels` and `models` are common words: check that they are ours."""

from __future__ import annotations

import importlib.util
from pathlib import Path

NEIGHBOURS = ("kernels", "models")


def refuse_shadowed_packages() -> None:
    """ImportError if `kernels` or `models` is another distribution's, with name and cure."""
    root = Path(__file__).resolve().parent.parent
    for name in NEIGHBOURS:
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found is None:
            raise ImportError(
                f"the package {name!r} that framework is built on cannot be imported; "
                "install the project again with `pip install -e .`"
            )
        if found != root / name / "__init__.py":  # a file kernels.py, or <root>/sub/kernels, too
            place = found.parent if found.name == "__init__.py" else found
            raise ImportError(
                f"the package {name!r} in {place} {_owner(name)}shadows framework's own in "
                f"{root / name}. Uninstall or rename it, or give framework a virtual environment"
            )


def _owner(name: str) -> str:
    """The distributions that installed a package of this name, for the message."""
    import importlib.metadata  # 0.1 s, for the message only

    owners = importlib.metadata.packages_distributions().get(name, [])
    others = sorted(set(owners) - {"framework-dl"})
    return f"(installed by {', '.join(others)}) " if others else ""

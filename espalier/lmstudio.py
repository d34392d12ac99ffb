"""Where LM Studio and Ollama look for models on this machine.

LM Studio reads ``<home>/models/<publisher>/<name>/`` and needs nothing else: files that lie there
are models. Its home is the folder that ``~/.lmstudio-home-pointer`` names, else ``~/.lmstudio``,
else, of old versions, ``~/.cache/lm-studio``.
"""

import shutil
from pathlib import Path

from espalier.errors import Conflict

_POINTER = ".lmstudio-home-pointer"
_HOMES = (".lmstudio", ".cache/lm-studio")


def lm_studio_models(user_home: Path | None = None) -> Path:
    """Return LM Studio's folder of models; raise Conflict on a machine without LM Studio."""
    user_home = user_home or Path.home()
    homes = [user_home / name for name in _HOMES]
    pointer = user_home / _POINTER
    if pointer.is_file():
        named = pointer.read_text(encoding="utf-8").strip()
        if named:
            homes.insert(0, Path(named).expanduser())
    for home in homes:
        if home.is_dir():
            return home / "models"
    raise Conflict(
        f"LM Studio is not on this machine: there is no {homes[0]}.",
        hint="Start LM Studio once, so that it makes its folder; or `espalier pull REF DIR` and"
        " import DIR on the machine that has it.",
    )


def ollama() -> str:
    """Return the path of Ollama's program; raise Conflict on a machine without it."""
    found = shutil.which("ollama")
    if found is None:
        raise Conflict(
            "Ollama is not on this machine: there is no `ollama` on the PATH.",
            hint="Install it from its own site, or `espalier pull REF DIR` and run"
            " `ollama create NAME -f Modelfile` in DIR on the machine that has it.",
        )
    return found

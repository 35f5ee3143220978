"""Where requests may reach on the disk: inside the roots, once links are resolved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.settings import Settings


@dataclass(frozen=True)
class Places:
    """`roots`: resolved folders. `folder`: where relative paths start. `hidden`: what is in the roots and nobody's business."""

    roots: tuple[Path, ...]
    folder: Path
    hidden: tuple[Path, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> Places:
        """Those that the server's settings allow; without ROOTS the folder of the file, and OUTPUT_DIR."""
        folder, token = settings.config.parent, settings.service.token_file
        named = [Path(root) for root in settings.service.roots] or [folder]
        roots = {path.resolve() for path in (*named, settings.training.output_dir)}
        return cls(tuple(sorted(roots)), folder, (token.resolve(),) if token else ())

    def inside(self, text: str) -> Path:
        """The real path of what a request names. ValueError where it lies outside, says nothing of what is there."""
        if "\0" in text or not text.strip():
            raise ValueError("is no path")
        path = Path(text)
        try:
            real = (path if path.is_absolute() else self.folder / path).resolve()
        except (OSError, RuntimeError):  # a circle of links, too long a name
            raise ValueError("cannot be used as a path") from None
        if not self.has(real):
            raise ValueError("lies outside of the folders that this server may use ([Service] ROOTS)")
        return real

    def file(self, path: Path) -> Path | None:
        """The real path of a file, once links are resolved. None where requests may not reach it, and where it is no file:
        to open a named pipe might never end."""
        try:
            real = path.resolve()
            return real if real.is_file() and self.has(real) else None
        except (OSError, RuntimeError):  # a circle of links
            return None

    def has(self, path: Path) -> bool:
        """Whether a path, once links are resolved, is one that requests may reach."""
        real = path.resolve()
        return real not in self.hidden and any(real.is_relative_to(root) for root in self.roots)

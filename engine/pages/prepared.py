"""report.html of prepare_data.py: what was kept, changed and left out."""

from pathlib import Path
from typing import Any

from engine.pages.html import page, table


def write_report(prepared: dict[str, Any], path: Path) -> None:
    """Write the page.

    Args:
        prepared: Content of prepared.json.
        path: The page to write.
    """
    files = [(file["name"], file["rows"], file["kept"]) for file in prepared["files"]]
    path.write_text(page("Prepared data", [table(("file", "rows", "kept"), files)]), encoding="utf-8")

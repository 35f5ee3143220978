"""The page at /: three files of this folder, and a policy under which it can reach nothing but this server."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

FOLDER = Path(__file__).with_name("page")
# Styles may stand in the report, which is shown in a frame that can do nothing and has this policy, too.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "frame-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
HEADERS = {"content-security-policy": POLICY, "cache-control": "no-cache"}

router = APIRouter(include_in_schema=False)


@router.get("/")
def page() -> FileResponse:
    """The page."""
    return FileResponse(FOLDER / "index.html", headers=HEADERS)


@router.get("/page.css")
def style() -> FileResponse:
    """Its looks."""
    return FileResponse(FOLDER / "page.css", headers=HEADERS)


@router.get("/page.js")
def script() -> FileResponse:
    """What it does."""
    return FileResponse(FOLDER / "page.js", headers=HEADERS)

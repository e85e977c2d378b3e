"""``/docs``: the document as a page, everything that it loads from this server alone.

The program that draws it comes with a package (fastapi-offline: Swagger UI, MIT), pinned and hashed like all others,
so no address on the network is trusted with a page that people paste their tokens into.
"""

from __future__ import annotations

from importlib import resources
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from api import problems

PAGE: Final = "/docs"
# Swagger UI sets styles on its elements; scripts there are none but those of this server.
POLICY: Final = (
    "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; connect-src 'self'; "
    "img-src 'self' data:; script-src 'self'; style-src 'self' 'unsafe-inline'"
)
A_DAY: Final = "public, max-age=86400"

_HTML: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>billing-sync</title>
<link rel="icon" href="/docs/favicon.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
# Without a validator: its badge would send the document's address to somebody else's server.
_START: Final = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#page",
  deepLinking: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
});
"""
_KINDS: Final = {
    "favicon.png": "image/png",
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
}


def add(app: FastAPI) -> None:
    """Outside the document and the table of permissions: who may not call anything may still read what there is."""
    static = resources.files("fastapi_offline") / "static"
    parts = {name: ((static / name).read_bytes(), kind) for name, kind in _KINDS.items()}
    parts["start.js"] = (_START.encode(), "text/javascript; charset=utf-8")

    async def page(_request: Request) -> Response:
        return HTMLResponse(_HTML, headers={"Content-Security-Policy": POLICY})

    async def part(request: Request) -> Response:
        found = parts.get(request.path_params["name"])
        if found is None:
            detail = "There is nothing under this path."
            raise problems.not_found(detail)
        return Response(found[0], media_type=found[1], headers={"Cache-Control": A_DAY})

    app.add_route(PAGE, page, include_in_schema=False)
    app.add_route(f"{PAGE}/{{name}}", part, include_in_schema=False)

"""``/docs``: the OpenAPI document as a page that loads everything from this server.

Swagger UI comes with a package (fastapi-offline, MIT), pinned and hashed like all others. So no other server is trusted
with a page into which users paste their tokens.
"""

from __future__ import annotations

from importlib import resources
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from api import problems

DOCS_PATH: Final = "/docs"
# Swagger UI sets styles on its elements; scripts are loaded from this server only.
DOCS_CSP: Final = (
    "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; connect-src 'self'; "
    "img-src 'self' data:; script-src 'self'; style-src 'self' 'unsafe-inline'"
)
DOCS_CACHE_CONTROL: Final = "public, max-age=86400"

_DOCS_HTML: Final = """<!doctype html>
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
# Without a validator: its badge would send the document's address to another server.
_START_SCRIPT: Final = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#page",
  deepLinking: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
});
"""
_ASSET_MEDIA_TYPES: Final = {
    "favicon.png": "image/png",
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
}


def add_docs_routes(app: FastAPI) -> None:
    """The page is outside the document and the permission table: anyone may read the documentation."""
    static = resources.files("fastapi_offline") / "static"
    assets = {name: ((static / name).read_bytes(), media_type) for name, media_type in _ASSET_MEDIA_TYPES.items()}
    assets["start.js"] = (_START_SCRIPT.encode(), "text/javascript; charset=utf-8")

    async def page(_request: Request) -> Response:
        return HTMLResponse(_DOCS_HTML, headers={"Content-Security-Policy": DOCS_CSP})

    async def asset(request: Request) -> Response:
        found = assets.get(request.path_params["name"])
        if found is None:
            detail = "There is no such path."
            raise problems.not_found(detail)
        return Response(found[0], media_type=found[1], headers={"Cache-Control": DOCS_CACHE_CONTROL})

    app.add_route(DOCS_PATH, page, include_in_schema=False)
    app.add_route(f"{DOCS_PATH}/{{name}}", asset, include_in_schema=False)

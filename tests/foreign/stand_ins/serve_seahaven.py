"""Serve seahaven-stripe-world. It runs in an environment of its own, with another Python than the project's.

The package asks for Python 3.14, where an annotation is evaluated only if somebody asks for it. Before 3.14 its modules
are therefore compiled with the flag that has nearly the same effect (annotations as text). Nothing else is changed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

EVALUATES_ANNOTATIONS_LATE = (3, 14)
LATE_ANNOTATIONS = annotations.compiler_flag


class LateAnnotationsLoader(SourceFileLoader):
    """Compiles each module anew: compiled files that Python stored before have the annotations of the other kind."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        flags = LATE_ANNOTATIONS
        code: CodeType = compile(self.get_data(path), path, "exec", flags=flags, dont_inherit=True)
        return code


class SeahavenFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("seahaven"):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = LateAnnotationsLoader(spec.loader.name, spec.loader.path)
        return spec


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    if sys.version_info < EVALUATES_ANNOTATIONS_LATE:
        sys.meta_path.insert(0, SeahavenFinder())
    # By name: the project's own environment does not have these packages.
    world: Any = importlib.import_module("seahaven_stripe_world")
    handler: Any = importlib.import_module("seahaven_stripe_world.http_api")
    http: Any = importlib.import_module("seahaven.http")
    http.serve(world.world, handler.handle, port=port, reset_options={"startup": {"livemode": False}})


if __name__ == "__main__":
    main()

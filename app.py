"""Entry of the CDK command: settings -> stacks -> templates in the output folder. Calls neither AWS nor git.

`python app.py` alone synthesises into `cdk.out`; `make synth` does that.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from infra.toolkit import node

os.environ.setdefault("JSII_NODE", str(node()))  # before aws_cdk, which starts Node.js when it is imported

from aws_cdk import App

from infra.app import build, settings_of

FOLDER = Path(__file__).resolve().parent


def main() -> None:
    """Synthesise the deployment that the context describes; the CDK command says where the templates go."""
    # Feature flags come from cdk.json whoever starts this, so that a template does not depend on how it was made.
    flags = json.loads((FOLDER / "cdk.json").read_text(encoding="utf-8"))["context"]
    app = App(context=flags, outdir=os.environ.get("CDK_OUTDIR", "cdk.out"))  # set by the CDK command
    build(app, settings_of(app))
    app.synth()


if __name__ == "__main__":
    main()

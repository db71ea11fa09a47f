"""Which stacks a deployment has: stateful ones (buckets, network, broker) apart from those that can go any time."""

from __future__ import annotations

from pathlib import Path

from aws_cdk import App, Tags

from infra import outputs
from infra.settings import Settings
from infra.stacks.storage import StorageStack
from infra.stacks.workers import WorkerImage, WorkersStack

#: On everything that can carry a tag, with the deployment's name: bills and budgets go by it.
DEPLOYMENT_TAG = "peerless:deployment"


def settings_of(app: App) -> Settings:
    """The settings in the file that the context names (`cdk -c settings=FILE`), else the defaults."""
    path = app.node.try_get_context("settings")
    return Settings.from_file(Path(str(path))) if path else Settings()


def build(app: App, settings: Settings) -> None:
    """Add all stacks of a deployment to `app`."""
    Tags.of(app).add(DEPLOYMENT_TAG, settings.name)
    storage = StorageStack(app, f"{settings.prefix}-{outputs.STORAGE}", settings)
    images: WorkerImage | None = None
    workers: list[WorkersStack] = []
    if settings.workers and (settings.local or images is not None):
        for number, ranks in enumerate(settings.groups):
            stack = WorkersStack(
                app,
                f"{settings.prefix}-{outputs.WORKERS}{number}",
                settings,
                ranks=ranks,
                storage=storage,
                images=images,
                shared=workers[0] if workers and settings.shared_worker else None,
            )
            workers.append(stack)

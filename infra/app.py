"""Which stacks a deployment has: stateful ones (buckets, network, broker) apart from those that can go any time."""

from __future__ import annotations

from pathlib import Path

from aws_cdk import App, Tags

from infra import outputs
from infra.settings import Settings
from infra.stacks.images import ImagesStack
from infra.stacks.storage import StorageStack
from infra.stacks.workers import WorkersStack

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
    images = None if settings.local else ImagesStack(app, f"{settings.prefix}-{outputs.IMAGES}", settings)
    workers: list[WorkersStack] = []
    if settings.workers:
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
            if images is not None:
                # An image's tag is a literal, so nothing else says that the image comes first.
                stack.add_stack_dependency(images)
            workers.append(stack)

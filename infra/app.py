"""Which stacks a deployment has: stateful ones (buckets, network, broker) apart from those that can go any time."""

from __future__ import annotations

from pathlib import Path

from aws_cdk import App, Tags

from infra import outputs
from infra.settings import Settings
from infra.stacks.broker import BrokerStack
from infra.stacks.images import ImagesStack
from infra.stacks.network import NetworkStack
from infra.stacks.peers import PeersStack
from infra.stacks.storage import StorageStack
from infra.stacks.watch import WatchStack
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
    if images is not None:
        _peers_and_watch(app, settings, storage, images, workers)


def _peers_and_watch(
    app: App, settings: Settings, storage: StorageStack, images: ImagesStack, workers: list[WorkersStack]
) -> None:
    """What only AWS itself has: network, broker, instances, and what watches over them."""
    network = NetworkStack(app, f"{settings.prefix}-{outputs.NETWORK}", settings)
    broker = None
    if settings.broker:
        broker = BrokerStack(app, f"{settings.prefix}-{outputs.BROKER}", settings, network=network)
    peers: list[PeersStack] = []
    for number, ranks in enumerate(settings.groups):
        stack = PeersStack(
            app,
            f"{settings.prefix}-{outputs.PEERS}{number}",
            settings,
            ranks=ranks,
            network=network,
            storage=storage,
            images=images,
            broker=broker,
            workers=workers[number] if workers else None,
        )
        stack.add_stack_dependency(images)  # see above
        peers.append(stack)
    WatchStack(
        app,
        f"{settings.prefix}-{outputs.WATCH}",
        settings,
        storage=storage,
        broker=broker,
        workers=workers,
        peers=peers,
    )

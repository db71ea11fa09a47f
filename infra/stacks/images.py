"""The two container images, built in the cloud, or with this machine's Docker where the settings say so. Stateless."""

from __future__ import annotations

import tempfile
from pathlib import Path

from aws_cdk import CfnOutput, CfnWaitConditionHandle, RemovalPolicy, Stack
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_lambda as lambda_
from constructs import Construct
from deploy_time_build import ContainerImageBuild

from contract.errors import ConfigError
from infra import outputs
from infra.images.staging import PEER, WORKER, Image, build_arguments, fingerprint, stage
from infra.settings import Settings
from infra.stacks.image_build import tend

#: Images kept per repository: the one in use, and some to go back to. The function keeps a copy of its own.
KEPT_IMAGES = 5


class ImagesStack(Stack):
    """Attributes: `worker_code`, `worker_image_uri`, `peer_image_uri` and `peer_repository`.

    An image's tag is the fingerprint of all that is said to its build, so templates of functions and instances change
    when their code does. Synthesis needs neither Docker nor a network. Raises ConfigError for own code that is missing.
    """

    def __init__(self, scope: Construct, id: str, settings: Settings) -> None:
        super().__init__(scope, id, description=f"Container images of the Peerless deployment {settings.name}")
        self._settings = settings
        self._builds: list[ContainerImageBuild] = []
        self._worker = self._image(WORKER) if settings.workers else None
        self._peer_repository, _, self._peer_image_uri = self._image(PEER)
        if self._builds:
            tend(self, settings, self._builds)
        else:
            # Docker's images are assets; a stack with nothing but assets would not be deployed. This one costs nothing.
            CfnWaitConditionHandle(self, "Nothing")
        if settings.code_digest:
            CfnOutput(self, outputs.CODE_DIGEST, value=settings.code_digest)

    @property
    def worker_code(self) -> lambda_.DockerImageCode:
        """The worker image, for a function. Raises ConfigError where the deployment has no workers."""
        if self._worker is None:
            raise ConfigError("a deployment without workers has no worker image")
        repository, tag, _ = self._worker
        return lambda_.DockerImageCode.from_ecr(repository, tag_or_digest=tag)

    @property
    def worker_image_uri(self) -> str:
        """`registry/repository:tag` of the worker image. Raises ConfigError as `worker_code` does."""
        if self._worker is None:
            raise ConfigError("a deployment without workers has no worker image")
        return self._worker[2]

    @property
    def peer_image_uri(self) -> str:
        """`registry/repository:tag` of the peer image."""
        return self._peer_image_uri

    @property
    def peer_repository(self) -> ecr.IRepository:
        """Where instances pull the peer image from, for their grants."""
        return self._peer_repository

    def _image(self, image: Image) -> tuple[ecr.IRepository, str, str]:
        """Repository, tag and `registry/repository:tag` of an image that deploying builds."""
        settings = self._settings
        arguments = build_arguments(settings)
        arm = settings.architecture == "arm64"
        platform = ecr_assets.Platform.LINUX_ARM64 if arm else ecr_assets.Platform.LINUX_AMD64
        name = image.name.capitalize()
        # CDK copies the context into its output folder at once, so this one may go.
        with tempfile.TemporaryDirectory(prefix="peerless-image-") as folder:
            context = Path(folder, image.name)
            stage(image, context, settings)
            tag = fingerprint(context, platform.platform, *(f"{key}={value}" for key, value in arguments.items()))
            if settings.local_docker:
                asset = ecr_assets.DockerImageAsset(
                    self, name, directory=str(context), build_args=arguments, platform=platform, extra_hash=tag
                )
                return asset.repository, asset.image_tag, asset.image_uri
            repository = self._repository(f"{name}Repository")
            built = ContainerImageBuild(
                self,
                name,
                directory=str(context),
                build_args=arguments,
                platform=platform,
                repository=repository,
                tag=tag,
            )
        self._builds.append(built)
        # The attribute, as CDK would make the address of the repository's ARN with functions that take no reference to
        # another stack's output.
        made = repository.node.default_child
        assert isinstance(made, ecr.CfnRepository)
        return repository, tag, f"{made.attr_repository_uri}:{tag}"

    def _repository(self, id: str) -> ecr.Repository:
        repository = ecr.Repository(
            self,
            id,
            image_scan_on_push=True,
            # Back at earlier sources, as CloudFormation is when a deployment fails, the same tag is pushed again.
            image_tag_mutability=ecr.TagMutability.MUTABLE,
            encryption=ecr.RepositoryEncryption.AES_256,
            removal_policy=RemovalPolicy.DESTROY,
            empty_on_delete=True,
        )
        repository.add_lifecycle_rule(description="images of earlier deployments", max_image_count=KEPT_IMAGES)
        return repository

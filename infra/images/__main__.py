"""`python -m infra.images locks`: make the lock files again. `stage NAME FOLDER`: a build context, to look at."""

from __future__ import annotations

import sys
from pathlib import Path

from infra.images import locks
from infra.images.staging import IMAGES, stage
from infra.settings import Settings


def main(arguments: list[str]) -> int:
    """Exit status: 0, or 2 for arguments that mean nothing."""
    images = {image.name: image for image in IMAGES}
    match arguments:
        case ["locks"]:
            for image in IMAGES:
                locks.write(image)
        case ["stage", name, folder] if name in images:
            stage(images[name], Path(folder), Settings())
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

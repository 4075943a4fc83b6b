"""Command: a public set of pictures -> an image folder with manifest and licences.

`python -m trainer.datasets emoji --out data/emoji`. Archives are fetched by npm, pip or apt, or
taken from `--cache`. A folder that is there is whole, and the same command finds its work done.
Exit codes: 0 the folder is there, 1 an archive could not be had or the disk failed, 2 the request
cannot be met, 130 interrupted.
"""

import sys
from typing import Annotated

import tyro

from trainer.command_line import read_arguments
from trainer.monitor import set_up_logging
from trainer.prepare.drawings import Drawings
from trainer.prepare.elpv import Elpv
from trainer.prepare.emoji import Emoji
from trainer.prepare.fashion_mnist import FashionMnist
from trainer.prepare.image_folder import Request, prepare
from trainer.prepare.openclipart import OpenClipart
from trainer.prepare.torchvision_set import TorchvisionSet

AnySet = (
    Annotated[Emoji, tyro.conf.subcommand("emoji")]
    | Annotated[FashionMnist, tyro.conf.subcommand("fashion-mnist")]
    | Annotated[Elpv, tyro.conf.subcommand("elpv")]
    | Annotated[OpenClipart, tyro.conf.subcommand("openclipart")]
    | Annotated[Drawings, tyro.conf.subcommand("drawings")]
    | Annotated[TorchvisionSet, tyro.conf.subcommand("torchvision")]
)


def parse(argv: list[str] | None) -> Request:
    """Read a set's name, then its flags; raises as `read_arguments`."""
    return read_arguments(
        lambda: tyro.cli(
            AnySet,
            args=argv,
            prog="python -m trainer.datasets",
            description="Make an image folder of a public set of pictures.",
            config=(tyro.conf.OmitSubcommandPrefixes,),
        )
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    request = parse(argv)
    set_up_logging(is_main=True)
    try:
        prepare(request)
    except (FileNotFoundError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(f"{request.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

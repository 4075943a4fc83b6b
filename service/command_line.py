"""The service's command line: settings, and what is wrong with them, before anything is loaded."""

import argparse
import difflib
import logging
import os
import socket
from collections.abc import Sequence
from errno import EADDRINUSE
from typing import Any

from pydantic import ValidationError
from pydantic_settings import CliSettingsSource, SettingsError

from service.settings import Settings

logger = logging.getLogger(__name__)

DESCRIPTION = """Serve a model file over HTTP. Each option is a setting, and each setting an
environment variable as well: --max-images 16 is ESVIT_MAX_IMAGES=16. Lists are written with commas:
--image-formats JPEG,PNG."""


class BadSettings(ValueError):
    """Settings that nothing can be served with, a line for each."""


def read_settings(arguments: Sequence[str]) -> Settings:
    """Read settings from the command line, and from the environment what is not there.

    Raises:
        BadSettings: naming each one at fault; no value is echoed, for it could be a key.
        SystemExit: after --help, or after a line about an argument that is none.
    """
    parser = argparse.ArgumentParser(
        prog="python -m service",
        usage="%(prog)s [--SETTING VALUE ...]",
        description=DESCRIPTION,
        allow_abbrev=False,
    )
    try:
        source: CliSettingsSource[Any] = CliSettingsSource(
            Settings,
            cli_parse_args=list(arguments),
            root_parser=parser,
            cli_kebab_case=True,
            cli_hide_none_type=True,
        )
    except SettingsError as error:  # as below
        raise BadSettings(str(error)) from error
    return make_settings(_cli_settings_source=source)


def make_settings(**given: Any) -> Settings:  # Any: as pydantic takes them
    """Make settings of what is given, and of the environment.

    Raises:
        BadSettings: naming each one at fault; no value is echoed, for it could be a key.
    """
    try:
        return Settings(**given)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise BadSettings("\n".join(_told(p["loc"], p["msg"]) for p in problems)) from error
    except SettingsError as error:  # an environment variable that should be JSON and is not
        raise BadSettings(str(error)) from error


def check_address(host: str, port: int) -> None:
    """Find out whether there can be listened, before the minutes that a model may take to load.

    Raises:
        BadSettings: if not.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise BadSettings(f"setting host: {host} is no host that can be found") from error
    reasons = [reason for address in found if (reason := _why_not(address))]
    if EADDRINUSE in reasons or len(reasons) == len(found):  # one may lack where IPv6 is off
        raise BadSettings(
            f"settings host, port: {host}:{port} cannot be listened on: {os.strerror(reasons[0])}; "
            "ESVIT_PORT=8001 or --port 8001 takes another port, 0 any that is free"
        )


def warn_of_unknown_variables() -> None:
    """Say which variables look like settings and are none: a limit believed to be set is not."""
    known = {f"ESVIT_{name.upper()}" for name in Settings.model_fields}
    for name in sorted(os.environ):
        if name.upper().startswith("ESVIT_") and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1)
            meant = f"; is {near[0]} meant?" if near else ""
            logger.warning(
                "the environment variable %s is no setting of the service%s", name, meant
            )


def _why_not(found: tuple[Any, ...]) -> int | None:
    """Give the error of listening on an address that `getaddrinfo` found, None if there is none."""
    family, kind, protocol, _, address = found
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.errno
    return None


def _told(place: Sequence[int | str], message: str) -> str:
    """Say what is wrong with a setting; one that follows from several names them itself."""
    name = ".".join(str(part) for part in place)
    reason = message.removeprefix("Value error, ")
    return f"setting {name}: {reason}" if name else f"settings: {reason}"

"""softprompt serve: answer requests with many saved prompts on one backbone."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from softprompt.cli._console import Report, reporting
from softprompt.cli._options import BackboneName, Debug, Device, Dtype, open_backbone

if TYPE_CHECKING:
    from softprompt.backbones.base import Backbone
    from softprompt.serving import Engine, Settings

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    folder: Annotated[
        Path, typer.Argument(help="Folder with saved prompts, one folder each. It is followed.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: a free one.")] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with API keys. Needed to listen on anything but this machine.", show_default=False
        ),
    ] = None,
    no_keys: Annotated[
        bool, typer.Option("--no-keys", help="Let everybody ask, from other machines too.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that requests may call this server by; repeat it for several. *: any.",
            show_default=False,
        ),
    ] = None,
    limits: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Limit or time, as in max_queue=4096; repeat it for several. docs/serving.md lists them.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        Literal["process", "ray"],
        typer.Option(help="Where requests are answered: in this process, or by replicas on a Ray cluster."),
    ] = "process",
    replicas: Annotated[int, typer.Option(min=1, help="Replicas of --engine ray.")] = 2,
    log_requests: Annotated[
        bool, typer.Option("--log/--no-log", help="A line of JSON to stderr for each request, without texts.")
    ] = True,
    backbone: BackboneName = None,
    dtype: Dtype = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Serve saved prompts over HTTP, in the manner of OpenAI's API."""
    with reporting(False, debug) as report:
        try:
            from softprompt.serving.keys import read_keys
            from softprompt.serving.server import Server
        except ImportError as error:
            raise ValueError(
                f"serving needs packages that are not installed ({error.name}): pip install 'softprompt[serve]'"
            ) from error
        from softprompt.serving import Engine
        from softprompt.serving.gate import LOOPBACK

        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} is no folder: expected one with saved prompts, one folder each"
            )
        if host not in _LOOPBACK and keys is None and not no_keys:
            raise ValueError(
                f"--host {host} lets other machines ask: give --keys FILE, or --no-keys to let everybody ask"
            )
        keyring = None if keys is None else read_keys(keys)
        settings = _settings(limits or [])
        names = [*LOOPBACK, *(allow_host or [])]
        if engine == "ray":
            from softprompt.serving.ray_replicas import Plan, RayServer, wait_for_a_signal

            opening = partial(_backbone, folder.resolve(), backbone, dtype, device)
            plan = Plan(opening, folder.resolve(), settings, keys and keys.resolve(), [*names, host])
            with RayServer(plan, replicas=replicas, host=host, port=port) as cluster:
                report.human.print(f"{replicas} replicas serve {folder} on {cluster.address}", markup=False)
                wait_for_a_signal()
            return
        opened = _backbone(folder, backbone, dtype, device)
        answering = Engine(opened, folder, settings)
        server = Server(
            answering,
            host=host,
            port=port,
            keys=keyring,
            hosts=names,
            on_up=lambda: _announce(report, server.address, answering, folder),
        )
        _log_to_stderr(log_requests)
        with contextlib.suppress(KeyboardInterrupt):  # the drain is over by then
            server.listen()


def _settings(given: Sequence[str]) -> Settings:
    from pydantic import TypeAdapter

    from softprompt.serving import Settings

    pairs = [one.partition("=") for one in given]
    for one, (name, equals, _) in zip(given, pairs, strict=True):
        if not name or not equals:
            raise ValueError(f"--set {one!r}: expected NAME=VALUE, as in --set max_queue=4096")
    return TypeAdapter(Settings).validate_python({name.strip(): value for name, _, value in pairs})


def _backbone(folder: Path, name: str | None, dtype: str | None, device: str | None) -> Backbone:
    """The backbone that the prompts were trained on. Raises ValueError where they name several, or none is known."""
    from softprompt import store

    if name is not None:
        return open_backbone(name, dtype, device)
    named: dict[tuple[str, str | None, bool], list[str]] = {}
    for path in sorted(folder.iterdir()):
        place = next((at for at in (path, path / "prompt") if (at / "prompt.json").is_file()), None)
        if place is not None:
            with contextlib.suppress(ValueError, OSError):  # the engine says so, and leaves it out
                saved = store.load(place).backbone
                kind = saved.name, saved.revision, saved.family == "prefix-lm"
                named.setdefault(kind, []).append(path.name)
    if not named:
        raise ValueError(f"{folder} holds no saved prompt that can be read: give --backbone")
    if len(named) > 1:
        told = "; ".join(f"{kind[0]} ({', '.join(names[:3])})" for kind, names in named.items())
        raise ValueError(
            f"the prompts were trained on several backbones, and a server has one: give --backbone. Found: {told}"
        )
    ((found, revision, prefix_lm),) = named
    return open_backbone(found, dtype, device, revision=revision, prefix_lm=prefix_lm)


def _log_to_stderr(requests: bool) -> None:
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("softprompt.serving")
    log.addHandler(handler)
    log.propagate = False
    logging.getLogger("softprompt.serving.access").setLevel(logging.INFO if requests else logging.WARNING)


def _announce(report: Report, address: str, engine: Engine, folder: Path) -> None:
    count = len(engine.registry)
    report.human.print(
        f"{count} prompt{'s' * (count != 1)} of {folder} on {engine.backbone.name} at {address}/v1, playground at"
        f" {address}/ (Ctrl-C ends it)",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )

"""The ``cpu`` device: ONNX Runtime on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from deploynas.device import reference
from deploynas.device.base import Identity, LocalDevice
from deploynas.errors import InvalidInputError, UnknownNameError
from deploynas.onboard.processor import (
    DEFAULT_PROVIDER,
    available_cores,
    describe,
    worker_command,
)


class CpuDevice(LocalDevice):
    """This machine through ONNX Runtime.

    Args:
        threads: Threads inside one operator.
        provider: An execution provider of the installed runtime.

    Raises:
        InvalidInputError: More threads than cores.
        UnknownNameError: The runtime has no such provider.
    """

    def __init__(self, threads: int = 1, provider: str = DEFAULT_PROVIDER) -> None:
        super().__init__()
        if not 1 <= threads <= len(available_cores()):
            raise InvalidInputError(
                f"--threads {threads}: this machine offers 1 to {len(available_cores())}"
            )
        if provider != DEFAULT_PROVIDER:
            import onnxruntime

            available = onnxruntime.get_available_providers()
            if provider not in available:
                raise UnknownNameError("execution provider", provider, available)
        self._threads = threads
        self._provider = provider

    @cached_property
    def identity(self) -> Identity:
        """Who measures."""
        return identity_of(describe(self._provider, self._threads), self._provider, self._threads)

    def command(self, session: int) -> list[str]:
        """A worker pinned to ``threads`` of the fastest cores, another set each session."""
        return worker_command(self._provider, self._threads, session)


def identity_of(facts: Mapping[str, object], provider: str, threads: int) -> Identity:
    """The identity of a machine that runs the onboard worker, by what it says of itself."""
    recorded = {name: str(value) for name, value in facts.items() if name != "processor"}
    return Identity(
        device="cpu",
        processor=str(facts["processor"]),
        runtime="onnxruntime " + ".".join(recorded["runtime_version"].split(".")[:2]),
        provider=provider,
        threads=threads,
        session_options={
            "allow_spinning": "0",
            "execution_mode": "sequential",
            "reference_set": reference.VERSION,
        },
        recorded=recorded,
    )

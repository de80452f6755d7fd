"""Encode settings in the wire's names: their defaults, and which combinations are allowed."""

from collections.abc import Mapping
from typing import Any

from convertrilo._model import Model
from convertrilo.codec import from_request
from convertrilo.errors import Issue, ValidationError
from convertrilo.models import ConfirmRequest, JobCreateRequest

_DEFAULTS: Mapping[str, Any] = {
    "codec": "h264",
    "resolution": "1080p",
    "fps": 30,
    "container": "mp4",
    "preset": "fast",
    "bitrateTier": "medium",
    "passes": 1,
    "policy": "gpu_first",
    "quality": None,
    "optimize": None,
    "vmafTarget": None,
}
_CODECS_OF = {
    "mp4": ("h264", "h265", "av1"),
    "mkv": ("h264", "h265", "av1"),
    "webm": ("av1",),
    "mov": ("h264", "h265"),
}
_CHECKED_AS: Mapping[type[Model], tuple[str, ...]] = {
    JobCreateRequest: ("codec", "resolution", "fps", "container", "preset", "bitrateTier", "passes", "policy"),
    ConfirmRequest: ("quality", "optimize", "vmafTarget"),  # the widest bounds that the contract has for a target
}


def settings_of(*wires: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the settings of several request bodies over the defaults; the first body that has a setting wins."""
    settings = dict(_DEFAULTS)
    for wire in reversed(wires):
        settings.update({name: wire[name] for name in _DEFAULTS if wire.get(name) is not None})
    return settings


def unsupported(codec: str, container: str) -> str | None:
    """Return why `container` cannot carry `codec`, or None if it can."""
    codecs = _CODECS_OF[container]
    return None if codec in codecs else f"{container} cannot carry {codec}; it carries {', '.join(codecs)}"


def settings_issues(settings: Mapping[str, Any]) -> list[Issue]:
    """Return what is wrong with merged settings.

    A body may carry settings that its own operation does not define, so its model has not checked them.
    """
    issues: list[Issue] = []
    for model, names in _CHECKED_AS.items():
        try:
            from_request(model, {name: settings[name] for name in names if settings[name] is not None})
        except ValidationError as error:
            issues += error.issues
    wrong = {issue.path for issue in issues}
    if not wrong & {"codec", "container"} and (problem := unsupported(settings["codec"], settings["container"])):
        issues.insert(0, Issue("container", problem))
    return issues

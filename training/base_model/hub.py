"""Get a model from the Hugging Face Hub, or a mirror of it (HF_ENDPOINT): only the files that training needs.

huggingface_hub does the work: its cache (HF_HOME), resuming of a cut download, HF_TOKEN, HF_HUB_OFFLINE. Here its errors
become messages that say what to do. They never repeat what a library says: it may contain a token.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from training.base_model import model_folder, model_json
from training.errors import MachineError, UserError
from training.system import privacy

FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "tokenizer*", "merges.txt", "vocab.txt"]
NOT = ["*/*", "consolidated*"]  # other formats of the same weights stand in folders; Mistral's own beside the others
CODE = ["*.py"]  # fetched where it may run, and never else, whatever it is called


@dataclass(frozen=True)
class Remote:
    """A model on the Hub before its download. `size` in bytes; None where the Hub does not say, as `parameters`."""

    commit: str | None
    config: dict[str, Any]
    size: int | None
    parameters: int | None


def look(name: str, revision: str | None, trust_remote_code: bool) -> Remote:
    """What the Hub says about a model; downloads config.json only. UserError when it is no model to train here."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # it is public, and not listed

    _endpoint()
    with _explained(name, revision):
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size for file in info.siblings or ()}
        fits = isinstance(info.sha, str) and all(
            isinstance(file, str) and (size is None or (isinstance(size, int) and size >= 0))
            for file, size in sizes.items()
        )
        parameters = info.safetensors.total if info.safetensors else None
    if not fits or not (parameters is None or isinstance(parameters, int)):
        raise _strange()
    if acting := [file for file in sizes if privacy.visible(file) != file]:  # a progress bar would print it
        raise UserError(f"{name} has a file whose name holds control characters: {privacy.shown(acting[0])}")
    allowed, ignored = _patterns(trust_remote_code)
    wanted = list(filter_repo_objects(sizes, allow_patterns=allowed, ignore_patterns=ignored))
    if "config.json" not in sizes or not any(file.endswith(".safetensors") for file in wanted):
        raise UserError(f"{name}{_hint(sizes)}")
    with _explained(name, revision):
        config = model_json.parse(
            Path(hf_hub_download(name, "config.json", revision=info.sha)).read_bytes(), f"{name}: config.json"
        )
    if problems := model_folder.config_problems(config, trust_remote_code):
        raise UserError([f"{name}: {problem}" for problem in problems])
    known = [size for file in wanted if (size := sizes[file]) is not None]
    return Remote(info.sha, config, sum(known) if len(known) == len(wanted) else None, parameters)


def download(
    name: str, revision: str | None, trust_remote_code: bool, say: Callable[[str], None]
) -> tuple[Path, str | None]:
    """The model's folder in the local cache, and its commit. From the cache alone with HF_HUB_OFFLINE.

    Raises MachineError (exit 3) when the Hub cannot be reached or refuses, UserError when it is no model to train.
    """
    from huggingface_hub import constants, snapshot_download

    allowed, ignored = _patterns(trust_remote_code)
    if constants.is_offline_mode():
        with _explained(name, revision):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=allowed, ignore_patterns=ignored))
        return folder, folder.name
    try:
        remote = look(name, revision, trust_remote_code)
    except MachineError as error:
        # A model that was downloaded before serves without the network, said aloud; a refusal is not overruled.
        if not isinstance(error, _Unreachable) or not (cached := _cached(name, revision, allowed, ignored)):
            raise
        say(f"{error}; using the copy downloaded before")
        return cached, cached.name
    _enough_disk(name, remote)
    say(f"{name}: getting {_megabytes(remote.size)} from {_endpoint()} (what is there already is kept)")
    with _explained(name, revision):
        # By its name and not by the commit just seen: only so the cache remembers the name for a run without network.
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=allowed, ignore_patterns=ignored))
    return folder, folder.name


def plan(
    name: str, revision: str | None, trust_remote_code: bool, say: Callable[[str], None]
) -> tuple[Remote, Path] | None:
    """What a plan needs of a model that is not here yet, and the folder with all of it that was downloaded: not the weights.

    None when the model is here.

    Raises as `download`, also where the disk would not hold the weights.
    """
    from huggingface_hub import constants, snapshot_download

    allowed, ignored = _patterns(trust_remote_code)
    if constants.is_offline_mode() or _cached(name, revision, allowed, ignored):
        return None
    remote = look(name, revision, trust_remote_code)
    _enough_disk(name, remote)
    say(f"{name} is not here yet: a run gets {_megabytes(remote.size)} from {_endpoint()} first, this check does not")
    with _explained(name, revision):
        small = [pattern for pattern in allowed if "safetensors" not in pattern]
        folder = snapshot_download(name, revision=revision, allow_patterns=small, ignore_patterns=ignored)
    return remote, Path(folder)


class _Unreachable(MachineError):
    """No answer from the Hub."""


@contextmanager
def _explained(name: str, revision: str | None) -> Iterator[None]:
    """Turn huggingface_hub's errors into ours. `from None`: a chained error would be printed with its request."""
    import httpx
    from huggingface_hub import errors

    at = f" at the revision {revision}" if revision else ""
    try:
        yield
    except errors.GatedRepoError:
        raise MachineError(
            f"{name} is gated: ask for access at {_endpoint()}/{name} with your account, then set HF_TOKEN to a token of it "
            f"(now {'set, but not enough' if _token() else 'not set'})"
        ) from None
    except errors.RevisionNotFoundError:
        raise MachineError(
            f"{name} has no revision {revision}: see its branches and tags at {_endpoint()}/{name}/tree/main"
        ) from None
    except errors.RepositoryNotFoundError:
        private = "a private model needs HF_TOKEN" if not _token() else "HF_TOKEN may lack the right to read it"
        raise MachineError(f"the Hub ({_endpoint()}) knows no {name}: check the spelling; {private}") from None
    except errors.HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        if code in (401, 403):
            raise MachineError(f"the Hub ({_endpoint()}) refuses {name} (HTTP {code}): check HF_TOKEN") from None
        raise _Unreachable(f"the Hub ({_endpoint()}) fails on {name}{at} (HTTP {code}): try again later") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        from huggingface_hub import constants

        if constants.is_offline_mode():
            raise MachineError(
                f"{name}{at} was never downloaded, and HF_HUB_OFFLINE is set: unset it once, or name a local folder"
            ) from None
        raise _Unreachable(_unreachable(name)) from None
    except errors.HFValidationError:
        raise UserError(
            f"{name} is no name of a model on the Hub; it is written org/name, as in Qwen/Qwen3-0.6B"
        ) from None
    except OSError as error:
        if error.errno is not None and error.filename is not None:  # the disk's, not the network's
            raise MachineError(f"{error.filename} cannot be written: {error.strerror}") from None
        raise _Unreachable(_unreachable(name)) from None
    except httpx.HTTPError:
        raise _Unreachable(_unreachable(name)) from None
    except (httpx.InvalidURL, ValueError, ImportError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _proxy_or_strange(error) from None


def _proxy_or_strange(error: Exception) -> _Unreachable:
    """The address of a proxy is wrong, which is seen before anything is asked; else the library made nothing of the answer."""
    import httpx

    if isinstance(error, (TypeError, KeyError, AttributeError, RecursionError)) or (
        not isinstance(error, httpx.InvalidURL) and "proxy" not in str(error).lower()
    ):
        return _strange()
    if isinstance(error, httpx.InvalidURL) and (ranges := _excepted_ranges()):
        return _Unreachable(f"NO_PROXY: ranges of addresses cannot be read there ({', '.join(ranges)}): leave them out")
    return _Unreachable(
        "the proxy in HTTPS_PROXY, HTTP_PROXY or ALL_PROXY cannot be used: it is written http://HOST:PORT, or "
        f"http://USER:PASSWORD@HOST:PORT ({privacy.shown(str(error)).rstrip('.')})"
    )


def _excepted_ranges() -> list[str]:
    """What NO_PROXY has of IPv6 ranges, over which httpx stumbles."""
    named = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
    return [privacy.shown(one.strip()) for one in named if ":" in one and "/" in one and "://" not in one]


def _strange() -> _Unreachable:
    return _Unreachable(
        f"the Hub ({_endpoint()}) answers with something else than its API: a proxy or a login page? Check the network, "
        "the proxy and HF_ENDPOINT, or name a local folder"
    )


def _unreachable(name: str) -> str:
    return (
        f"the Hub ({_endpoint()}) cannot be reached for {name}: check the network or proxy, name a mirror in HF_ENDPOINT, "
        "or name a local folder; run again, a cut download goes on where it stopped"
    )


def _patterns(trust_remote_code: bool) -> tuple[list[str], list[str]]:
    """Which files of a model are fetched, and which of those are not."""
    return ([*FILES, *CODE], NOT) if trust_remote_code else (FILES, [*NOT, *CODE])


def _cached(name: str, revision: str | None, allowed: list[str], ignored: list[str]) -> Path | None:
    from huggingface_hub import errors, snapshot_download

    try:
        found = snapshot_download(
            name, revision=revision, allow_patterns=allowed, ignore_patterns=ignored, local_files_only=True
        )
        model_folder.check(Path(found))  # a cut download leaves a folder too
    except (errors.LocalEntryNotFoundError, UserError):
        return None
    return Path(found)


def _enough_disk(name: str, remote: Remote) -> None:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    while not cache.exists():
        cache = cache.parent
    free = shutil.disk_usage(cache).free
    if remote.size and remote.size > free:
        raise MachineError(
            f"{name} takes {_megabytes(remote.size)}, {cache} has {_megabytes(free)} left: free some, or move HF_HOME"
        )


def _hint(sizes: dict[str, int | None]) -> str:
    if "adapter_config.json" in sizes:
        return " is a LoRA adapter, no model: name the model it belongs to, or a merged one"
    if any(file.endswith(".gguf") for file in sizes):
        return " holds GGUF files: download one and name it, or name the original model"
    if any(file.endswith(".bin") for file in sizes):
        return " holds pickled weights only (.bin), which can run code when read; safetensors are wanted"
    return " is no model folder: it lacks config.json or safetensors"


def _megabytes(size: int | None) -> str:
    return "an unknown number of bytes" if size is None else f"{size / 1e6:,.0f} MB"


def _token() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())


def _endpoint() -> str:
    """The Hub's address without a name or password that may stand in it. MachineError where HF_ENDPOINT is no address."""
    from huggingface_hub import constants

    address = constants.ENDPOINT
    scheme, slashes, rest = address.partition("://")
    if scheme.lower() not in ("http", "https") or not slashes:
        raise _Unreachable(f"HF_ENDPOINT needs https:// in front of {privacy.shown(address.rpartition('@')[2])}")
    name, slash, path = rest.partition("/")
    host = name.rpartition("@")[2]
    shown = privacy.shown(f"{scheme}{slashes}{host}{slash}{path}")
    try:
        parts = urlsplit(f"//{host}")
        known = bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise _Unreachable(f"HF_ENDPOINT = {shown} is no address; it is written https://HOST or https://HOST:PORT")
    return shown

"""The Hugging Face Hub, or a mirror of it (HF_ENDPOINT): its data sets, and what its errors mean.

huggingface_hub does the work: its cache (HF_HOME), resuming of a cut download, HF_TOKEN, HF_HUB_OFFLINE. Here its errors
become messages that say what to do. They never repeat what a library says: it may contain a token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import MachineError, UserError
from training.hubs import listing as listings
from training.hubs import network
from training.hubs.listing import Listing, RemoteFile
from training.hubs.wanted import Unreachable, Wanted, enough_disk, megabytes
from training.system import files

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile


def listing(wanted: Wanted, say: Callable[[str], None]) -> Listing:
    """What stands in a data set. A commit that was listed before is not asked for again, nor is anything when offline.

    Raises MachineError (exit 3) when the Hub cannot be reached or refuses, UserError when its files have names that
    cannot be.
    """
    from huggingface_hub import constants

    folder = _folder(wanted) / "listings"
    found = listings.kept(folder, wanted.revision)
    if found and (constants.is_offline_mode() or listings.pinned(folder, wanted.revision)):
        return found
    try:
        new = _asked(wanted)
    except Unreachable as error:
        if not found:
            raise
        say(f"{error}; using the list of its files from before")
        return found
    listings.keep(folder, new, wanted.revision)
    return new


def fetch(wanted: Wanted, listed: Listing, names: Sequence[str], say: Callable[[str], None]) -> list[Path]:
    """These files of a data set on this machine, each held against the listing; what is in the cache is not fetched again."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    there = {
        name: try_to_load_from_cache(wanted.name, name, revision=listed.commit, repo_type="dataset") for name in names
    }
    missing = [listed.files[name].size for name in names if not isinstance(there[name], str)]
    if missing and not constants.is_offline_mode():
        known = [size for size in missing if size is not None]
        size = sum(known) if len(known) == len(missing) else None
        enough_disk(wanted.name, size, Path(constants.HF_HUB_CACHE), "HF_HOME")
        say(f"{wanted.name}: getting {megabytes(size)} from {endpoint()} (what is there already is kept)")
    found = []
    for name in names:
        with explained(wanted):
            path = Path(hf_hub_download(wanted.name, name, revision=listed.commit, repo_type="dataset"))
        _hold(wanted, path, name, listed.files[name])
        found.append(path)
    return found


def _asked(wanted: Wanted) -> Listing:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    endpoint()
    with explained(wanted):
        commit = HfApi().dataset_info(wanted.name, revision=wanted.revision).sha
        tree = HfApi().list_repo_tree(wanted.name, recursive=True, revision=commit, repo_type="dataset")
        entries = [entry for entry in islice(tree, 2 * listings.MOST) if isinstance(entry, RepoFile)]
        content = {entry.path: _file_of(entry) for entry in entries}
    fits = isinstance(commit, str) and all(
        isinstance(path, str) and (file.size is None or (isinstance(file.size, int) and file.size >= 0))
        for path, file in content.items()
    )
    if not fits or commit is None:
        raise strange(wanted)
    if problem := listings.unfit(wanted.name, commit, content):
        raise UserError(problem)
    return Listing(commit, content)


def _file_of(entry: RepoFile) -> RemoteFile:
    """A file with those of its digests that are some: of one that LFS keeps git has the digest of a pointer."""
    sha256, git = entry.lfs.sha256 if entry.lfs else None, entry.blob_id
    if isinstance(sha256, str) and listings.SHA256.fullmatch(sha256):
        return RemoteFile(entry.size, sha256)
    return RemoteFile(
        entry.size, None, git if isinstance(git, str) and not entry.lfs and listings.SHA1.fullmatch(git) else None
    )


def _hold(wanted: Wanted, path: Path, name: str, said: RemoteFile) -> None:
    """MachineError, and the file is gone, where it is not the one that was listed."""
    try:
        size = path.stat().st_size
        right = said.size in (None, size)
        if right and said.sha256:
            right = files.sha256(path) == said.sha256
        elif right and said.git:
            right = _git_digest(path, size) == said.git
    except OSError as error:
        raise MachineError(f"{path} cannot be read: {error.strerror}") from None
    if not right:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise MachineError(differs(wanted, name, f"the Hub ({endpoint()})"))


def differs(wanted: Wanted, name: str, hub: str) -> str:
    """What to say of a file that is not the one that was listed."""
    return (
        f"{wanted.name}: {name} is not the file that {hub} lists (its size or SHA-256 is another): it was changed "
        "meanwhile, or damaged on the way; run again, it is fetched anew"
    )


def _git_digest(path: Path, size: int) -> str:
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _folder(wanted: Wanted) -> Path:
    """Where huggingface_hub keeps a data set."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=wanted.name, repo_type="dataset")


@contextmanager
def explained(wanted: Wanted) -> Iterator[None]:
    """Turn huggingface_hub's errors into ours. `from None`: a chained error would be printed with its request."""
    import httpx
    from huggingface_hub import errors

    name = wanted.name
    try:
        yield
    except errors.GatedRepoError:
        raise MachineError(
            f"{name} is gated: ask for access at {_page(wanted)} with your account, then set HF_TOKEN to a token of it "
            f"(now {'set, but not enough' if _token() else 'not set'})"
        ) from None
    except errors.RevisionNotFoundError:
        raise MachineError(
            f"{name} has no revision {wanted.revision}: see its branches and tags at {_page(wanted)}/tree/main"
        ) from None
    except errors.RepositoryNotFoundError:
        private = (
            f"a private {wanted.noun} needs HF_TOKEN" if not _token() else "HF_TOKEN may lack the right to read it"
        )
        raise MachineError(f"the Hub ({endpoint()}) knows no {name}: check the spelling; {private}") from None
    except errors.HfHubHTTPError as error:
        raise _refused(wanted, error) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        from huggingface_hub import constants

        if constants.is_offline_mode():
            raise MachineError(
                f"{name}{wanted.at} was never downloaded, and HF_HUB_OFFLINE is set: unset it once, or {wanted.instead}"
            ) from None
        raise _unreachable(wanted) from None
    except errors.HFValidationError:
        example = "Qwen/Qwen3-0.6B" if wanted.is_model else "owner/name"
        raise UserError(
            f"{name} is no name of a {wanted.noun} on the Hub; it is written org/name, as in {example}"
        ) from None
    except OSError as error:
        if error.errno is not None and error.filename is not None:  # the disk's, not the network's
            raise MachineError(f"{error.filename} cannot be written: {error.strerror}") from None
        raise _unreachable(wanted) from None
    except httpx.HTTPError:
        raise _unreachable(wanted) from None
    except (httpx.InvalidURL, ValueError, ImportError, TypeError, KeyError, AttributeError, RecursionError) as error:
        # The last ones: the library made nothing of the answer.
        of_library = isinstance(error, (TypeError, KeyError, AttributeError, RecursionError))
        raise (None if of_library else network.of_the_proxy(error)) or strange(wanted) from None


def _page(wanted: Wanted) -> str:
    return f"{endpoint()}/{'' if wanted.is_model else 'datasets/'}{wanted.name}"


def _refused(wanted: Wanted, error: Exception) -> MachineError:
    """An HTTP status that huggingface_hub has no name for."""
    response = getattr(error, "response", None)
    code = getattr(response, "status_code", None)
    if code in (401, 403):
        return MachineError(f"the Hub ({endpoint()}) refuses {wanted.name} (HTTP {code}): check HF_TOKEN")
    after = str(getattr(response, "headers", {}).get("Retry-After", ""))
    wait = f"try again in {after} s" if after.isdecimal() else "try again later"
    return Unreachable(f"the Hub ({endpoint()}) fails on {wanted.name}{wanted.at} (HTTP {code}): {wait}")


def strange(wanted: Wanted) -> Unreachable:
    """What to say of an answer that is not the Hub's."""
    return Unreachable(
        f"the Hub ({endpoint()}) answers with something else than its API: a proxy or a login page? Check the network, "
        f"the proxy and HF_ENDPOINT, or {wanted.instead}"
    )


def _unreachable(wanted: Wanted) -> Unreachable:
    return Unreachable(
        f"the Hub ({endpoint()}) cannot be reached for {wanted.name}: check the network or proxy, name a mirror in "
        f"HF_ENDPOINT, or {wanted.instead}; run again, a cut download goes on where it stopped. {wanted.elsewhere('hf')}"
    )


def _token() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())


def endpoint() -> str:
    """The Hub's address without a name or password that may stand in it. Unreachable where HF_ENDPOINT is no address."""
    from huggingface_hub import constants

    return network.address(constants.ENDPOINT, "HF_ENDPOINT")

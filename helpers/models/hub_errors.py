"""What can go wrong with a request to the Hugging Face Hub, and what the reader can do about it."""

from __future__ import annotations


class DownloadError(RuntimeError):
    """The weights cannot be downloaded, or do not fit on this machine; the message says what to do."""


def http_errors() -> tuple[type[Exception], ...]:
    """Return the exception types that a request to the Hub may raise."""
    from huggingface_hub.errors import DryRunError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    # The first is the base class of the HTTP library in use: httpx or httpx2, depending on huggingface_hub's version.
    return (HfHubHTTPError.__bases__[0], DryRunError, LocalEntryNotFoundError, OfflineModeIsEnabled)


def advice(error: Exception, repo: str, revision: str | None) -> tuple[str, str]:
    """Return what went wrong with a request for `repo` at `revision`, and what to do about it."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.DryRunError | errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # these two only say that something went wrong
    status = getattr(getattr(error, "response", None), "status_code", None)
    at, miniature = page(repo), 'or run with weights="miniature", which needs no download'
    if isinstance(error, errors.GatedRepoError) and status == 403:
        return (
            f"{repo} is gated, and your account has no access yet",
            f"accept the licence at {at} with the account that you are logged in with (`hf auth whoami`), "
            f"{miniature}.",
        )
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repo} is gated",
            f"accept the licence at {at}, then log in with `hf auth login` (or set HF_TOKEN) and start again, "
            f"{miniature}.",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{repo} has no revision {revision!r}",
            f"give a branch, tag or commit from {at}/commits/main, or None for the main branch.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{repo} is not on the Hub, or it is private",
            f"look at {at}, and log in with `hf auth login` if it is yours, {miniature}.",
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set", f"unset it to download {repo}, {miniature}."
    if status in (401, 403):
        return f"the Hub refused your token ({status})", f"log in again with `hf auth login`, {miniature}."
    if status is not None:
        outages = "https://status.huggingface.co reports outages"
        return f"the Hub answered {status}", f"try again in a few minutes ({outages}), {miniature}."
    reason = f"{constants.ENDPOINT} cannot be reached ({type(error).__name__})"
    return reason, f"check the connection, {miniature}."


def page(repo: str) -> str:
    """Return the URL of the repository's page. Licences are accepted there even if HF_ENDPOINT names a mirror."""
    return f"https://huggingface.co/{repo}"

"""What a person sees when the single process is up.

Responsible for: the callback URLs to hand in, and a `curl` line that works at once. It goes to standard output, logs
go to standard error. The one place where secrets are shown, on purpose: only here can they be copied from.
"""

import json
import uuid
from collections.abc import Mapping
from urllib.parse import quote

from shared.vendors import Vendor

_DOCS = {Vendor.APIBOX: "api.box", Vendor.KIE: "kie.ai", Vendor.SUNOAPI: "sunoapi.org"}


def banner(
    *,
    local_url: str,
    public_url: str | None,
    tokens: Mapping[Vendor, str],
    ops_url: str,
    files: str,
    sample_link: str | None,
    color: bool,
    signing: frozenset[Vendor] = frozenset(),
) -> str:
    """Compose the text.

    Args:
        local_url: where the ingress listens.
        public_url: where vendors reach it, if that is known.
        tokens: of the vendors that are served by token.
        ops_url: of the operations server.
        files: the folder or the address that files are kept in.
        sample_link: of the sample file, if it is served.
        color: whether the reader's terminal shows colour.
        signing: vendors whose callbacks must be signed too; a `curl` line could not do that.
    """
    bold, dim, plain = ("\x1b[1m", "\x1b[2m", "\x1b[0m") if color else ("", "", "")
    base = (public_url or local_url).rstrip("/")
    lines = ["", f"{bold}Wavekeep is running.{plain}", "", "Callback URLs to hand in (callBackUrl):"]
    lines += [f"  {_DOCS[vendor]:<12} {callback_url(base, vendor, token)}" for vendor, token in tokens.items()]
    if public_url is None:
        lines.append(
            f"  {dim}Vendors must reach this host: set WAVEKEEP_PUBLIC_URL to its public https address.{plain}"
        )
    lines += ["", f"Files    {files}", f"Status   {ops_url}/readyz   {ops_url}/metrics"]
    unsigned = [vendor for vendor in tokens if vendor not in signing]
    if sample_link is not None and unsigned:
        vendor, token = unsigned[0], tokens[unsigned[0]]
        lines += ["", "Try it, in another terminal:", f"  {curl_line(local_url, vendor, token, sample_link)}"]
        lines.append(
            f"  {dim}Its file is a sample served at {sample_link}: for it, exactly this address is opened in the"
            f" fence (off: WAVEKEEP_SAMPLE_FILE=false).{plain}"
        )
    return "\n".join([*lines, "", "Ctrl-C ends it; nothing that was answered 200 is lost.", ""])


def callback_url(base: str, vendor: Vendor, token: str) -> str:
    """Return the URL a vendor is handed; a token may hold any character."""
    return f"{base}/callbacks/{vendor}?token={quote(token, safe='')}"


def curl_line(local_url: str, vendor: Vendor, token: str, sample_link: str) -> str:
    """Return a command that sends a callback of a new task about the sample file."""
    task_id = uuid.uuid4().hex
    body = {"code": 200, "msg": "success", "data": {"task_id": task_id, "audioWavUrl": sample_link}}
    return (
        f"curl -i '{callback_url(local_url, vendor, token)}'"
        f" -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
    )

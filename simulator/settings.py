"""The settings of the simulator.

Responsible for: one frozen model of them, with defaults that suit a test. It must not read the environment: that is
the command line's (`simulator.__main__`).
"""

import msgspec

from shared.vendors import Vendor


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How one simulator runs.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        public_url: base of the links it gives out; empty means the address it listens on.
        callback_urls: where each vendor calls back, unless a plan says otherwise.
        api_key: what `Authorization: Bearer` must carry, for every vendor.
        hmac_key: the key `kie` signs with; null means that it does not sign.
        retry_scale: multiplies the vendor's retry intervals of 1, 5 and 15 minutes.
        callback_timeout_s: how long the vendor waits for its 200.
        rate_limit, rate_window_s: API requests allowed to one account, and within how long.
        seed: of ids, names and samples; null means random.
    """

    host: str = "127.0.0.1"
    port: int = 0
    public_url: str = ""
    callback_urls: dict[Vendor, str] = msgspec.field(default_factory=dict)
    api_key: str = "simulator-api-key"
    hmac_key: str | None = None
    retry_scale: float = 1.0
    callback_timeout_s: float = 15.0
    rate_limit: int = 20
    rate_window_s: float = 10.0
    seed: int | None = None

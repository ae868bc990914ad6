"""What is not an address is an error that says so, be it in the parameters or in the redirect of a server."""

import pytest

from foundry.config import ConfigError, FoundryError
from foundry.data.fetch.redirects import Redirects
from foundry.data.fetch.sources import parse_address

ODD = [
    "http://[::1",
    "https://[::1/x",
    "https://h:99999/x",
    "https://h:port/x",
    "https://[zz]/x",
    "https://",
    "http:",
    "https:///x",
]


@pytest.mark.parametrize("address", ODD)
def test_what_is_not_an_address_is_refused(address):
    with pytest.raises(ConfigError, match="one:"):
        parse_address(address, f"one: url {address!r}")


@pytest.mark.parametrize(
    "location", ["http://[::1", "https://[::1/x", "https://h:99999/x", "//[", "ftp://h/x", "javascript:1"]
)
@pytest.mark.parametrize("allow_private", [True, False])
def test_a_redirect_to_what_is_not_an_address_is_refused(location, allow_private):
    start = "https://a.example/x"
    with pytest.raises(FoundryError, match=r"a\.example"):
        Redirects(start, allow_private).next([start], location)

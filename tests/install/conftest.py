"""The checkouts of every era, as the tests of `checkout` have them."""

from tests.checkout.conftest import (  # noqa: F401 - fixtures
    checkout,
    make,
    no_waiting_for_the_disk,
    presets,
    public,
    templates,
)
